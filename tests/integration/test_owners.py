"""Owners see their own sessions only, and limits count them."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from cellstate.v1.inference_pb2 import OneToManyRequest, OneToOneRequest, Program, RunRequest
from cellstate.v1.session_pb2 import (
    CreateSessionRequest,
    DeleteSessionRequest,
    ExportSessionRequest,
    ForkSessionRequest,
    GetSessionRequest,
    ListSessionsRequest,
    ResetSessionRequest,
    Session,
    UpdateSessionRequest,
)
from cellstate_service.settings import SessionSettings
from tests.integration.canary import read_session
from tests.integration.serving import Served, link_models, serving
from tests.integration.snapshots import export, import_of
from tests.integration.stubs import Refusal, Stubs, chunk, many_to_one, on_session, open_many, refusal, responses, text
from tests.integration.tokens import OwnersStubs, write_tokens

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """A server that knows Ada and Bob, with few sessions for each."""
    folder = tmp_path_factory.mktemp("owners")
    tokens = write_tokens(folder / "tokens", ada="one", bob="two")
    limits = SessionSettings(max_sessions=5, max_sessions_per_owner=3)
    async with serving(
        link_models(models, folder, "lstm-text", "gru-text"), tokens_file=tokens, sessions=limits, store={"kind": "memory"}, metrics_port=None
    ) as served:
        yield served


async def _stubs(server: Served, token: str) -> AsyncIterator[Stubs]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.app.port}") as channel:
        stubs = OwnersStubs(channel, token)
        yield stubs
        for session in (await stubs.sessions.ListSessions(ListSessionsRequest())).sessions:
            await stubs.sessions.DeleteSession(DeleteSessionRequest(name=session.name))


@pytest_asyncio.fixture(loop_scope="module")
async def ada(server: Served) -> AsyncIterator[Stubs]:
    async for stubs in _stubs(server, "one"):
        yield stubs


@pytest_asyncio.fixture(loop_scope="module")
async def bob(server: Served) -> AsyncIterator[Stubs]:
    async for stubs in _stubs(server, "two"):
        yield stubs


def create(name: str, model: str = "lstm-text") -> CreateSessionRequest:
    return CreateSessionRequest(session=Session(name=name, model=model))


CALLS: dict[str, Callable[[Stubs, str], Any]] = {
    "GetSession": lambda s, name: s.sessions.GetSession(GetSessionRequest(name=name)),
    "UpdateSession": lambda s, name: s.sessions.UpdateSession(UpdateSessionRequest(session=Session(name=name, labels={"a": "b"}))),
    "DeleteSession": lambda s, name: s.sessions.DeleteSession(DeleteSessionRequest(name=name)),
    "DeleteSession with uid": lambda s, name: s.sessions.DeleteSession(DeleteSessionRequest(name=name, uid="x")),
    "ResetSession": lambda s, name: s.sessions.ResetSession(ResetSessionRequest(name=name)),
    "ForkSession": lambda s, name: s.sessions.ForkSession(ForkSessionRequest(name=name)),
    "ForkSession at a position": lambda s, name: s.sessions.ForkSession(ForkSessionRequest(name=name, position=99)),
    "ExportSession": lambda s, name: s.sessions.ExportSession(ExportSessionRequest(name=name)),
    "OneToOne": lambda s, name: s.inference.OneToOne(OneToOneRequest(target=on_session(name), input=text("a"))),
    "OneToOne by force": lambda s, name: s.inference.OneToOne(OneToOneRequest(target=on_session(name, take_over=True), input=text("a"))),
    "OneToOne at a position": lambda s, name: s.inference.OneToOne(OneToOneRequest(target=on_session(name, position=7, uid="x"), input=text("a"))),
    "OneToMany": lambda s, name: s.inference.OneToMany(OneToManyRequest(target=on_session(name))),
    "ManyToOne": lambda s, name: s.inference.ManyToOne(iter(many_to_one(on_session(name)))),
    "ManyToMany": lambda s, name: s.inference.ManyToMany(iter([open_many(on_session(name))])),
}


def as_of_nothing(told: Refusal) -> bool:
    return (told.code, told.reason, told.metadata) == (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND", {})


@pytest.mark.parametrize("call", CALLS)
async def test_somebody_elses_session_answers_as_one_that_never_existed(ada: Stubs, bob: Stubs, call: str) -> None:
    await ada.sessions.CreateSession(create("secret"))
    await ada.inference.ManyToOne(iter(many_to_one(on_session("secret"), text("abc"))))
    stream = ada.inference.ManyToMany()
    await stream.write(open_many(on_session("secret")))
    await stream.read()
    before = await read_session(ada, "secret")

    elses, nobodys = await refusal(CALLS[call](bob, "secret")), await refusal(CALLS[call](bob, "never-there"))

    assert as_of_nothing(elses)
    assert elses == nobodys
    assert await read_session(ada, "secret") == before
    stream.cancel()


async def test_run_on_somebody_elses_session_answers_as_on_none(ada: Stubs, bob: Stubs) -> None:
    await ada.sessions.CreateSession(create("secret"))

    programs = [Program(target=on_session(name), input=text("a")) for name in ("secret", "never-there")]
    elses, nobodys = (await bob.inference.Run(RunRequest(programs=programs))).results

    assert elses.failure.message == nobodys.failure.message
    assert (elses.failure.code, elses.failure.reason) == (nobodys.failure.code, nobodys.failure.reason)
    assert (await read_session(ada, "secret")).position == 0


async def test_names_are_ones_own(ada: Stubs, bob: Stubs) -> None:
    for stubs, sequence in ((ada, "abc"), (bob, "x")):
        await stubs.sessions.CreateSession(create("same"))
        await stubs.inference.ManyToOne(iter(many_to_one(on_session("same"), text(sequence))))

    first, second = await read_session(ada, "same"), await read_session(bob, "same")

    assert (first.owner, first.position, second.owner, second.position) == ("ada", 3, "bob", 1)
    listed = (await bob.sessions.ListSessions(ListSessionsRequest())).sessions
    assert [(session.name, session.owner) for session in listed] == [("same", "bob")]
    await bob.sessions.DeleteSession(DeleteSessionRequest(name="same"))
    assert await read_session(ada, "same") == first


async def test_only_the_owner_is_told_why_a_session_is_gone(ada: Stubs, bob: Stubs) -> None:
    await ada.sessions.CreateSession(create("gone"))
    await ada.sessions.DeleteSession(DeleteSessionRequest(name="gone"))

    assert (await refusal(CALLS["GetSession"](ada, "gone"))).reason == "SESSION_CLOSED"
    assert as_of_nothing(await refusal(CALLS["GetSession"](bob, "gone")))


async def test_request_ids_are_ones_own(ada: Stubs, bob: Stubs) -> None:
    requests = [CreateSessionRequest(session=Session(name=name, model="lstm-text"), request_id="the-same-id") for name in ("one", "two")]

    first = (await ada.sessions.CreateSession(requests[0])).session
    second = (await bob.sessions.CreateSession(requests[1])).session

    assert (first.owner, first.name, second.owner, second.name) == ("ada", "one", "bob", "two")


async def test_a_snapshot_belongs_to_who_imports_it(ada: Stubs, bob: Stubs) -> None:
    await ada.sessions.CreateSession(create("given"))

    copy = (await bob.sessions.ImportSession(iter(import_of(await export(ada, "given"))))).session

    assert copy.owner == "bob"
    assert as_of_nothing(await refusal(CALLS["GetSession"](ada, copy.name)))


async def test_the_owners_limit_counts_sessions_however_made(ada: Stubs, bob: Stubs) -> None:
    await ada.sessions.CreateSession(create("first"))
    await ada.sessions.CreateSession(create("second", "gru-text"))
    await ada.sessions.ForkSession(ForkSessionRequest(name="first"))
    snapshot = await export(ada, "first")

    for call in (
        ada.sessions.CreateSession(create("fourth")),
        ada.sessions.ForkSession(ForkSessionRequest(name="first")),
        ada.sessions.ImportSession(iter(import_of(snapshot))),
    ):
        told = await refusal(call)
        assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
    assert (await bob.sessions.CreateSession(create("first"))).session.owner == "bob"
    await ada.sessions.DeleteSession(DeleteSessionRequest(name="second"))
    assert (await ada.sessions.CreateSession(create("fourth"))).session.name == "fourth"


async def test_the_limit_of_a_model_counts_the_sessions_of_all(ada: Stubs, bob: Stubs) -> None:
    for stubs, names in ((ada, "abc"), (bob, "de")):
        for name in names:
            await stubs.sessions.CreateSession(create(name))

    told = await refusal(bob.sessions.CreateSession(create("f")))

    assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SESSION_LIMIT")
    assert told.retry_s
    assert (await bob.sessions.CreateSession(create("f", "gru-text"))).session.model == "gru-text"
    await bob.sessions.DeleteSession(DeleteSessionRequest(name="f"))
    assert await responses(ada.inference.ManyToMany(iter([open_many(on_session("a")), chunk(text("goes on"))])))
    await ada.sessions.DeleteSession(DeleteSessionRequest(name="a"))
    assert (await bob.sessions.CreateSession(create("f"))).session.name == "f"
