"""A repeated request with the same id takes effect once."""

import asyncio

import grpc
import pytest

from cellstate.v1.session_pb2 import (
    CreateSessionRequest,
    DeleteSessionRequest,
    ForkSessionRequest,
    ResetSessionRequest,
    Session,
)
from tests.fake_clock import FakeClock
from tests.integration.serving import Served
from tests.integration.sessions.calls import feed, listed, missing
from tests.integration.snapshots import export, import_of
from tests.integration.stubs import refusal, text

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_a_repeated_create_answers_as_the_first(server: Served, name: str) -> None:
    request = CreateSessionRequest(session=Session(model="lstm-text", labels={"test": name}), request_id=name)

    first = await server.stubs.sessions.CreateSession(request)
    await feed(server, first.session.name, text("a"))
    again = await server.stubs.sessions.CreateSession(request)

    assert again == first
    assert await listed(server, f'labels.test="{name}"') == [[first.session.name]]


async def test_concurrent_creates_make_one_session(server: Served, name: str) -> None:
    request = CreateSessionRequest(session=Session(model="lstm-text", labels={"test": name}), request_id=name)

    answers = await asyncio.gather(*(server.stubs.sessions.CreateSession(request) for _ in range(20)))

    assert len({answer.session.uid for answer in answers}) == 1
    assert await listed(server, f'labels.test="{name}"') == [[answers[0].session.name]]


async def test_a_create_that_failed_may_be_tried_again(server: Served, name: str) -> None:
    await server.create("lstm-text", name)
    request = CreateSessionRequest(session=Session(model="lstm-text", name=name), request_id=name)
    assert (await refusal(server.stubs.sessions.CreateSession(request))).reason == "SESSION_EXISTS"
    await server.stubs.sessions.DeleteSession(DeleteSessionRequest(name=name))

    assert (await server.stubs.sessions.CreateSession(request)).session.name == name


async def test_a_repeated_fork_answers_as_the_first(server: Served, name: str) -> None:
    await server.create("lstm-text", name)
    request = ForkSessionRequest(name=name, session=Session(labels={"test": name}), request_id=name)

    first = await server.stubs.sessions.ForkSession(request)
    await feed(server, name, text("moves on"))

    assert await server.stubs.sessions.ForkSession(request) == first
    assert await listed(server, f'labels.test="{name}"') == [[first.session.name]]


async def test_a_repeated_import_answers_as_the_first(server: Served, name: str) -> None:
    await server.create("lstm-text", name, labels={"test": name})
    data = await export(server.stubs, name)

    first = await server.stubs.sessions.ImportSession(iter(import_of(data, request_id=name)))
    again = await server.stubs.sessions.ImportSession(iter(import_of(data, request_id=name, chunk_bytes=1000)))

    assert again == first
    assert len((await listed(server, f'labels.test="{name}"'))[0]) == 2
    await feed(server, name, text("a"))
    other = await export(server.stubs, name)
    told = await refusal(server.stubs.sessions.ImportSession(iter(import_of(other, request_id=name))))
    assert (told.code, told.reason) == (grpc.StatusCode.ABORTED, "REQUEST_ID_CONFLICT")


async def test_a_repeated_reset_answers_as_the_first(server: Served, name: str) -> None:
    created = await server.create("lstm-text", name)
    request = ResetSessionRequest(name=name, uid=created.uid, request_id=name)

    first = await server.stubs.sessions.ResetSession(request)
    await feed(server, name, text("abc"))

    assert await server.stubs.sessions.ResetSession(request) == first
    assert (await server.get(name)).position == 3


async def test_a_repeated_delete_is_no_error_for_ten_minutes(server: Served, clock: FakeClock, name: str) -> None:
    await server.create("lstm-text", name)
    request = DeleteSessionRequest(name=name, request_id=name)

    await server.stubs.sessions.DeleteSession(request)
    clock.turn(599)
    await server.stubs.sessions.DeleteSession(request)

    clock.turn(2)
    assert (await refusal(server.stubs.sessions.DeleteSession(request))).reason == "SESSION_CLOSED"
    assert (await missing(server, name)).reason == "SESSION_CLOSED"


async def test_ids_of_different_calls_never_meet(server: Served, name: str) -> None:
    await server.stubs.sessions.CreateSession(CreateSessionRequest(session=Session(model="lstm-text", name=name), request_id=name))

    await server.stubs.sessions.ResetSession(ResetSessionRequest(name=name, request_id=name))
    await server.stubs.sessions.ForkSession(ForkSessionRequest(name=name, request_id=name))
    await server.stubs.sessions.DeleteSession(DeleteSessionRequest(name=name, request_id=name))
