"""Servers that share a Redis serve any session: it goes where it is called, at one place at a time, and whoever lost it lets go of it."""

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from cellstate.v1.inference_pb2 import OneToOneRequest
from cellstate.v1.session_pb2 import (
    CreateSessionRequest,
    DeleteSessionRequest,
    ListSessionsRequest,
    Session,
)
from cellstate.v1.types_pb2 import OUTPUT_FORM_TOKENS
from tests.integration.serving import Served, ending, eventually, generating_without_end, is_free, serving
from tests.integration.stubs import many_to_one, on_session, open_many, options, refusal, text, values
from tests.integration.surviving.replicas import DURABILITIES, LEASE_S, Replicas, generated, get, names, step
from tests.redis_server import RedisServer

# -- any server answers


async def test_a_session_is_called_here_and_there_with_the_same_bits(replicas: Replicas) -> None:
    one, other = await replicas.add(), await replicas.add()
    for number, durability in enumerate(DURABILITIES):
        kept, moved = f"kept-{number}", f"moved-{number}"
        for name in (kept, moved):
            await one.create("lstm-text", name, durability=durability, seed=number)
        for turn in range(6):
            server = other if turn % 2 == 0 else one
            assert await step(server, moved, position=11 * turn) == await step(one, kept)
            assert await generated(server, moved, 10) == await generated(one, kept, 10)
            await is_free(server, moved)
            await is_free(one, kept)
        there, here = await other.get(moved), await one.get(kept)
        assert (there.position, there.state_digest) == (66, here.state_digest)
    # For each durability: to and fro three times, and there once more to be read.
    assert await other.metric("cellstate_moves_total", direction="in") == 3 * 4
    assert await one.metric("cellstate_moves_total", direction="out") == 3 * 4
    assert await one.metric("cellstate_moves_total", direction="in") == 3 * 3


async def test_inputs_of_many_to_one_go_on_where_another_server_left_the_state(replicas: Replicas) -> None:
    servers = [await replicas.add(), await replicas.add(), await replicas.add()]
    for name in ("kept", "moved"):
        await servers[0].create("gru-series", name)
    inputs = [values([[0.1 * number], [0.5], [-0.2]]) for number in range(9)]

    async def fed(server: Served, name: str, sequence: Any) -> Any:
        return (await server.stubs.inference.ManyToOne(iter(many_to_one(on_session(name), sequence)))).output

    kept = [await fed(servers[0], "kept", sequence) for sequence in inputs]
    assert [await fed(servers[number % 3], "moved", sequence) for number, sequence in enumerate(inputs)] == kept


async def test_many_servers_call_one_session_at_once_and_each_step_is_taken_once(replicas: Replicas) -> None:
    servers = [await replicas.add(), await replicas.add(), await replicas.add()]
    await servers[0].create("lstm-text", "wanted", seed=1)
    await servers[0].create("lstm-text", "alone", seed=1)
    taken: list[Any] = []

    async def caller(server: Served) -> None:
        for _ in range(10):
            while True:
                try:
                    taken.append(await step(server, "wanted"))
                    break
                except grpc.aio.AioRpcError as error:
                    if error.code() not in {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED}:
                        raise

    await asyncio.gather(*map(caller, servers))
    alone = [await step(servers[0], "alone") for _ in range(30)]
    assert sorted(taken, key=lambda output: output.position) == alone


# -- one call at a time


async def test_a_busy_session_is_refused_elsewhere(replicas: Replicas) -> None:
    one, other = await replicas.add(), await replicas.add()
    await one.create("lstm-text", "busy")
    stream = await generating_without_end(one, "busy")
    told = await refusal(other.stubs.inference.OneToOne(OneToOneRequest(target=on_session("busy"), input=text("a"))))
    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SESSION_BUSY")
    told = await refusal(other.stubs.inference.OneToOne(OneToOneRequest(target=on_session("busy", stream_token="another"), input=text("a"))))
    assert told.reason == "SESSION_BUSY"
    assert (await other.get("busy")).busy
    before = (await one.get("busy")).position
    assert (await stream.read()).output.position > 0
    await eventually_beyond(one, stream, before)
    stream.cancel()


async def eventually_beyond(server: Served, stream: Any, position: int) -> None:
    """Read a stream until it has gone beyond a position: it was not disturbed."""
    while (await stream.read()).output.position <= position:
        pass


@pytest.mark.parametrize("how", ["stream_token", "take_over"])
async def test_who_may_takes_a_busy_session_over_from_elsewhere(replicas: Replicas, how: str) -> None:
    one, other = await replicas.add(), await replicas.add()
    await one.create("lstm-text", "busy", seed=5)
    await one.create("lstm-text", "kept", seed=5)
    old = await generating_without_end(one, "busy")
    right = {"stream_token": old.opened.stream_token} if how == "stream_token" else {"take_over": True}
    new = other.stubs.inference.ManyToMany()
    await new.write(open_many(on_session("busy", **right), output=options(OUTPUT_FORM_TOKENS)))
    position = (await new.read()).opened.position
    answers, told = await ending(old)
    assert (told.code, told.reason) == (grpc.StatusCode.ABORTED, "SUPERSEDED")
    got = [token for answer in answers for token in answer.output.values.tokens.ids]
    await new.done_writing()
    assert await new.read() is grpc.aio.EOF
    kept = await generated(one, "kept", position - 1)  # the start value is a step too
    assert got == kept[: len(got)]
    assert await step(other, "busy", position=position) == await step(one, "kept")


# -- names


async def test_sessions_are_listed_read_and_deleted_anywhere(replicas: Replicas) -> None:
    one, other = await replicas.add(), await replicas.add()
    for server, name in ((one, "a"), (other, "b"), (one, "c")):
        await server.create("lstm-text", name)
    await step(one, "a")
    assert await names(one) == await names(other) == ["a", "b", "c"]
    assert (await other.get("a")).position == 1
    await other.stubs.sessions.DeleteSession(DeleteSessionRequest(name="c"))
    assert await names(one) == await names(other) == ["a", "b"]
    for server in (one, other):
        told = await refusal(get(server, "c"))
        assert (told.code, told.reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_CLOSED")


async def test_a_session_with_a_call_on_it_is_deleted_from_elsewhere(replicas: Replicas) -> None:
    one, other = await replicas.add(), await replicas.add()
    await one.create("lstm-text", "busy")
    stream = await generating_without_end(one, "busy")
    await other.stubs.sessions.DeleteSession(DeleteSessionRequest(name="busy"))
    _, told = await ending(stream)
    assert told.code is grpc.StatusCode.ABORTED
    assert (await refusal(get(one, "busy"))).reason == "SESSION_CLOSED"


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_a_name_is_taken_everywhere(replicas: Replicas, durability: Any) -> None:
    one, other = await replicas.add(), await replicas.add()
    await one.create("lstm-text", "mine", durability=durability)
    request = CreateSessionRequest(session=Session(model="lstm-text", name="mine"))
    for server in (one, other):
        told = await refusal(server.stubs.sessions.CreateSession(request))
        assert told.code is grpc.StatusCode.ALREADY_EXISTS
    await one.stubs.sessions.DeleteSession(DeleteSessionRequest(name="mine"))
    await other.create("lstm-text", "mine")
    both = await asyncio.gather(*(server.create("lstm-text", "raced") for server in (one, other)), return_exceptions=True)
    assert sum(isinstance(result, grpc.aio.AioRpcError) and result.code() is grpc.StatusCode.ALREADY_EXISTS for result in both) == 1


async def test_sessions_of_a_server_that_stopped_are_where_they_were(replicas: Replicas, some: Path, redis: RedisServer) -> None:
    one = await replicas.add()
    async with serving(some, store={"kind": "redis", "url": redis.url, "lease_s": LEASE_S}) as other:
        for number, durability in enumerate(DURABILITIES):
            await other.create("lstm-text", f"s{number}", durability=durability, seed=number)
            await step(other, f"s{number}")
        before = [await other.get(f"s{number}") for number in range(3)]
    after = [await one.get(f"s{number}") for number in range(3)]
    assert [session.state_digest for session in after] == [session.state_digest for session in before]
    assert await one.metric("cellstate_returns_total", how="clean") == 3


# -- expiry


async def test_sessions_expire_wherever_they_are(replicas: Replicas, some: Path, redis: RedisServer) -> None:
    one, other = await replicas.add(), await replicas.add()
    async with serving(some, store={"kind": "redis", "url": redis.url, "lease_s": LEASE_S}) as third:
        await third.create("lstm-text", "left", ttl=Duration(seconds=1))
    await one.create("lstm-text", "resident", ttl=Duration(seconds=1))

    async def gone() -> bool:
        listed = await one.stubs.sessions.ListSessions(ListSessionsRequest())
        return all(session.expire_time.ToSeconds() < time.time() - 1 for session in listed.sessions)

    await eventually(gone)
    for server in (other, one):
        for name in ("left", "resident"):
            told = await refusal(get(server, name))
            assert (told.code, told.reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_EXPIRED")
    await other.create("lstm-text", "resident")
    await one.create("lstm-text", "left")
