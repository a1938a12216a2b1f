"""More than the server can do: new calls are refused early with a time to try again, what runs goes on, and a long input holds nobody up."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import pytest_asyncio

from cellstate.v1.inference_pb2 import OneToOneRequest
from cellstate.v1.session_pb2 import CreateSessionRequest, Session
from cellstate.v1.session_pb2_grpc import SessionServiceStub
from cellstate.v1.types_pb2 import EMIT_LAST
from tests.integration.serving import Served, link_models, moves, serving
from tests.integration.stubs import chunk, generate, generation, on_model, on_session, open_many, refusal, values

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONG = 60_000
FLOOD = 3000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(
        link_models(models, tmp_path_factory.mktemp("overload"), "gru-series"), sessions={"max_sessions": 2000}, store={"kind": "memory"}
    ) as served:
        yield served


async def test_new_calls_are_refused_while_steps_wait_and_taken_afterwards(server: Served) -> None:
    """What an engine measures is put in by hand, so that the test does not hang on the machine's speed."""
    load = server.app.fleet.engines["gru-series"].load
    await server.create("gru-series", "running")
    call = server.stubs.inference.ManyToMany()
    await call.write(open_many(on_session("running")))
    await call.read()
    one = OneToOneRequest(target=on_model("gru-series"), input=values([1.0]))
    load.interval_s = 100.0
    told = await refusal(server.stubs.inference.OneToOne(one))
    assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert told.retry_s == 200.0
    assert "a step waits 100.00 s at present" in told.message
    for position in range(1, 4):
        await call.write(chunk(values([1.0])))
        assert (await call.read()).output.position == position, "what runs goes on"
    call.cancel()
    load.interval_s = 0.0
    assert (await server.stubs.inference.OneToOne(one)).completion.position == 1


async def test_a_long_input_holds_nobody_up(server: Served) -> None:
    """While one session consumes a long input, another generates to its end."""
    await server.create("gru-series", "long")
    await server.create("gru-series", "short")
    long, short = server.stubs.inference.ManyToMany(), server.stubs.inference.ManyToMany()
    await long.write(open_many(on_session("long"), emit=EMIT_LAST))
    await long.write(chunk(values(np.ones(LONG, dtype=np.float32))))
    await moves(server, "long")
    await short.write(open_many(on_session("short")))
    for message in (chunk(values([1.0])), generate(generation(30))):
        await short.write(message)
    await short.done_writing()
    while await short.read() is not grpc.aio.EOF:
        pass
    assert (await server.get("short")).position == 31
    assert 0 < (await server.get("long")).position < LONG, "it was done before the short one"
    long.cancel()


async def test_a_flood_of_calls_is_answered_or_refused_and_never_dropped(server: Served) -> None:
    """From several connections, each within its limit of calls at once; beyond it gRPC itself refuses (UNAVAILABLE), before anything was applied."""

    async def create(sessions: SessionServiceStub, name: str) -> str:
        try:
            await sessions.CreateSession(CreateSessionRequest(session=Session(name=name, model="gru-series")))
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    options = (("grpc.use_local_subchannel_pool", 1),)
    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{server.app.port}", options=options)) for _ in range(3)]
        calls = (create(SessionServiceStub(channel), f"flood-{index}-{number}") for index, channel in enumerate(channels) for number in range(FLOOD // 3))
        outcomes = Counter(await asyncio.gather(*calls))
    assert set(outcomes) <= {"OK", "RESOURCE_EXHAUSTED"}, outcomes
    assert 1900 < outcomes["OK"] <= 2000
