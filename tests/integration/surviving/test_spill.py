"""More sessions than are resident: those that were not used for the longest time go to the store, and come back when they are called."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration

from cellstate.v1.inference_pb2 import OneToOneRequest
from cellstate.v1.session_pb2 import (
    DURABILITY_MEMORY,
    DURABILITY_PERIODIC,
    DURABILITY_SYNC,
    CreateSessionRequest,
    DeleteSessionRequest,
    GetSessionRequest,
    ListSessionsRequest,
    Session,
)
from cellstate_service.settings import SessionSettings
from tests.fake_clock import FakeClock
from tests.integration.serving import Served, link_models, serving
from tests.integration.stubs import chunk, on_session, open_many, refusal, text

pytestmark = pytest.mark.asyncio(loop_scope="module")
MOST = 4
DURABILITIES = (DURABILITY_MEMORY, DURABILITY_PERIODIC, DURABILITY_SYNC)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = link_models(models, tmp_path_factory.mktemp("spill"), "lstm-text")
    async with serving(folder, sessions=SessionSettings(max_sessions=MOST, max_sessions_per_owner=40)) as served:
        yield served


async def step(server: Served, name: str) -> bytes:
    request = OneToOneRequest(target=on_session(name), input=text("a"))
    answer: bytes = (await server.stubs.inference.OneToOne(request)).output.SerializeToString()
    return answer


async def test_spilled_sessions_return_as_they_were(server: Served) -> None:
    names = [f"a{number:02}" for number in range(12)]
    for number, name in enumerate(names):
        await server.create("lstm-text", name, seed=1, durability=DURABILITIES[number % 3])
    rounds = [[await step(server, name) for name in names] for _ in range(3)]
    for answers in rounds:
        assert len(set(answers)) == 1, "all took the same steps"
    assert len({answers[0] for answers in rounds}) == 3
    assert await server.metric("cellstate_sessions", model="lstm-text") == MOST
    assert await server.metric("cellstate_spills_total", model="lstm-text") >= 12 * 3 - MOST
    assert await server.metric("cellstate_returns_total", model="lstm-text", how="clean") >= 12 * 3 - MOST
    assert [(await server.get(name)).position for name in names] == [3] * 12
    listed = (await server.stubs.sessions.ListSessions(ListSessionsRequest())).sessions
    assert [(session.name, session.position) for session in listed] == [(name, 3) for name in names]


async def test_many_callers_at_once_each_get_their_session(server: Served) -> None:
    names = [f"a{number:02}" for number in range(12)]
    before = [(await server.get(name)).position for name in names]

    async def busy(name: str) -> None:
        for _ in range(5):
            await step(server, name)

    for group in (names[:3], names[3:6], names[6:9], names[9:]):
        await asyncio.gather(*(busy(name) for name in group), *(server.get(name) for name in group))
    assert [(await server.get(name)).position for name in names] == [position + 5 for position in before]


async def test_sessions_with_a_call_on_them_stay(server: Served) -> None:
    streams = []
    for number in range(MOST):
        stream = server.stubs.inference.ManyToMany()
        await stream.write(open_many(on_session(f"a{number:02}")))
        await stream.read()
        streams.append(stream)
    told = await refusal(server.stubs.inference.OneToOne(OneToOneRequest(target=on_session("a11"), input=text("a"))))
    assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SESSION_LIMIT")
    told = await refusal(server.stubs.sessions.CreateSession(CreateSessionRequest(session=Session(model="lstm-text"))))
    assert told.reason == "SESSION_LIMIT"
    for stream in streams:
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
    await step(server, "a11")


async def test_steps_go_together_on_channels_whose_sessions_are_still_brought_in(server: Served) -> None:
    names = ["c0", "c1", *(f"after-{number}" for number in range(MOST))]
    for name in names:
        await server.create("lstm-text", name, seed=1)
        await step(server, name)
    before = await server.metric("cellstate_returns_total", model="lstm-text", how="clean")
    stream = server.stubs.inference.ManyToMany()
    for make in (lambda number: open_many(on_session(f"c{number}", position=1)), lambda _: chunk(text("a")), lambda _: chunk(text("b"))):
        first, second = make(0), make(1)
        first.channel, second.channel = 1, 2
        first.more.append(second)
        await stream.write(first)
    heard = {1: 0, 2: 0}
    async with asyncio.timeout(20):
        while min(heard.values()) < 3:
            answer = await stream.read()
            for part in (answer, *answer.more):
                assert not part.HasField("failure"), part.failure
                heard[part.channel] = max(heard[part.channel], part.output.position)
    assert heard == {1: 3, 2: 3}
    assert await server.metric("cellstate_returns_total", model="lstm-text", how="clean") == before + 2
    stream.cancel()
    for name in names:
        await server.stubs.sessions.DeleteSession(DeleteSessionRequest(name=name))


async def test_a_name_in_the_store_is_taken(server: Served) -> None:
    told = await refusal(server.stubs.sessions.CreateSession(CreateSessionRequest(session=Session(model="lstm-text", name="a00"))))
    assert told.code is grpc.StatusCode.ALREADY_EXISTS
    await step(server, "a00")


async def test_a_quota_counts_spilled_sessions(server: Served) -> None:
    for number in range(28):
        await server.create("lstm-text", f"b{number:02}")
    told = await refusal(server.stubs.sessions.CreateSession(CreateSessionRequest(session=Session(model="lstm-text"))))
    assert told.reason == "QUOTA_EXCEEDED"


@pytest.mark.asyncio(loop_scope="function")
async def test_sessions_expire_in_both_places(models: Path, tmp_path: Path, start_server: object) -> None:
    clock = FakeClock()
    app = await start_server(clock, sessions=SessionSettings(max_sessions=2))  # type: ignore[operator]
    from tests.integration.stubs import Stubs

    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.port}") as channel:
        server = Served(app, Stubs(channel), models)
        for number in range(4):
            await server.create("lstm-text", f"e{number}", ttl=Duration(seconds=10))
            await step(server, f"e{number}")
        clock.turn(11)
        await app.sessions.manager.expire_stored()
        app.sessions.manager.expire_due()
        for number in range(4):
            told = await refusal(server.stubs.sessions.GetSession(GetSessionRequest(name=f"e{number}")))
            assert (told.reason, told.metadata["position"]) == ("SESSION_EXPIRED", "1")
        assert (await server.stubs.sessions.ListSessions(ListSessionsRequest())).sessions == []
