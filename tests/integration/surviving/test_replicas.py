"""Servers that share a Redis serve any session: it goes where it is called, at one place at a time, and whoever lost it lets go of it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from cellstate.v1.inference_pb2 import OneToManyRequest, OneToOneRequest
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
from cellstate.v1.types_pb2 import OUTPUT_FORM_TOKENS
from cellstate_service.app import start
from cellstate_service.sessions.stores.store import Claim, Key
from cellstate_service.settings import Settings, StoreSettings
from tests.integration.serving import Served, ending, eventually, generating_without_end, is_free, link_models, serving
from tests.integration.stubs import generation, many_to_one, on_session, open_many, options, refusal, text, values
from tests.integration.surviving.wreck import checkpointed
from tests.proxy import Proxy
from tests.redis_server import RedisServer

LEASE_S = 1.0
DURABILITIES = (DURABILITY_MEMORY, DURABILITY_PERIODIC, DURABILITY_SYNC)


@pytest.fixture(scope="module")
def some(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link_models(models, tmp_path_factory.mktemp("some"), "lstm-text", "gru-series")


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    await asyncio.to_thread(server.start)
    yield server
    await asyncio.to_thread(server.kill)


class Replicas:
    """Servers on one Redis."""

    def __init__(self, models: Path, redis: RedisServer, stack: AsyncExitStack) -> None:
        self._models = models
        self._redis = redis
        self._stack = stack

    async def add(self, port: int | None = None, **store: Any) -> Served:
        """Start one, that reaches Redis by a port of its own where one is given."""
        url = self._redis.url if port is None else f"redis://127.0.0.1:{port}/0"
        values = {"kind": "redis", "url": url, "lease_s": LEASE_S, "timeout_s": 1.0, **store}
        return await self._stack.enter_async_context(serving(self._models, store=values))


@pytest.fixture
async def replicas(some: Path, redis: RedisServer) -> AsyncIterator[Replicas]:
    async with AsyncExitStack() as stack:
        yield Replicas(some, redis, stack)


async def step(server: Served, name: str, **reference: Any) -> Any:
    """Take a step and return what it gives."""
    return (await server.stubs.inference.OneToOne(OneToOneRequest(target=on_session(name, **reference), input=text("a")))).output


async def generated(server: Served, name: str, steps: int) -> list[int]:
    request = OneToManyRequest(target=on_session(name), output=options(OUTPUT_FORM_TOKENS), generation=generation(steps))
    return [token async for answer in server.stubs.inference.OneToMany(request) for token in answer.output.values.tokens.ids]


async def names(server: Served) -> list[str]:
    return [session.name for session in (await server.stubs.sessions.ListSessions(ListSessionsRequest())).sessions]


def get(server: Served, name: str) -> Any:
    return server.stubs.sessions.GetSession(GetSessionRequest(name=name))


async def lapsed(server: Served) -> None:
    """Wait until a server's lease has lapsed."""
    lease = server.app.sessions._lease

    async def lapses() -> bool:
        return not lease.runs

    await eventually(lapses)


async def runs(server: Served) -> None:
    """Wait until a server has its lease again."""
    lease = server.app.sessions._lease

    async def has() -> bool:
        return bool(lease.runs)

    await eventually(has)


async def steps_again(server: Served, name: str) -> Any:
    """Take a step as soon as the store can be used again."""
    taken: list[Any] = []

    async def steps() -> bool:
        with contextlib.suppress(grpc.aio.AioRpcError):
            taken.append(await step(server, name))
        return bool(taken)

    await eventually(steps)
    return taken[0]


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


# -- leases


async def test_without_its_lease_a_server_answers_for_no_session_and_goes_on_by_itself(replicas: Replicas, redis: RedisServer) -> None:
    one = await replicas.add()
    for name in ("kept", "p", "streamed"):
        await one.create("lstm-text", name, seed=3)
    assert await step(one, "p") == await step(one, "kept")
    stream = await generating_without_end(one, "streamed")
    redis.pause()
    _, told = await ending(stream)
    assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    await lapsed(one)
    for call in (
        one.stubs.inference.OneToOne(OneToOneRequest(target=on_session("p"), input=text("a"))),
        get(one, "p"),
        one.stubs.sessions.CreateSession(CreateSessionRequest(session=Session(model="lstm-text"))),
    ):
        told = await refusal(call)
        assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        assert told.retry_s is not None
    redis.resume()
    await runs(one)
    assert await step(one, "p", position=1) == await step(one, "kept")
    assert (await one.get("streamed")).position > 0


async def test_who_lost_a_session_while_it_was_cut_off_lets_go_of_it(replicas: Replicas, redis: RedisServer) -> None:
    async with Proxy(redis.port) as between:
        one, other = await replicas.add(between.port, checkpoint_s=3600), await replicas.add()
        for name in ("kept", "s"):
            await other.create("lstm-text", name, seed=4)
        await one.create("lstm-text", "p", seed=4)
        await one.create("lstm-text", "m", durability=DURABILITY_MEMORY)
        assert await step(one, "s", position=0) == await step(other, "kept")
        await step(one, "p")
        between.refuse()
        between.cut()
        await lapsed(one)
        # The other one takes them: "s" had been saved when it was given over, at 0; what "p" did since it was made is lost, and said to be.
        told = await refusal(other.stubs.inference.OneToOne(OneToOneRequest(target=on_session("p"), input=text("a"))))
        assert (told.reason, told.metadata["position"]) == ("SESSION_ROLLED_BACK", "0")
        for position in range(3):
            await step(other, "p", position=position)
        assert (await refusal(get(other, "m"))).code is grpc.StatusCode.NOT_FOUND
        between.refuse(False)
        await runs(one)
        assert (await one.get("p")).position == 3
        assert (await refusal(get(one, "m"))).code is grpc.StatusCode.NOT_FOUND
        assert await other.metric("cellstate_moves_total", direction="out") >= 1


async def test_a_call_that_lasts_while_its_session_is_taken_is_told(replicas: Replicas, redis: RedisServer) -> None:
    async with Proxy(redis.port) as between:
        one, other = await replicas.add(between.port), await replicas.add()
        await one.create("lstm-text", "s", durability=DURABILITY_SYNC, seed=4)
        stream = one.stubs.inference.ManyToMany()
        await stream.write(open_many(on_session("s")))
        await stream.read()
        between.refuse()
        between.cut()
        _, told = await ending(stream)
        assert (told.code, told.reason) in {(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"), (grpc.StatusCode.ABORTED, "SESSION_MOVED")}
        await step(other, "s", position=0)


async def test_a_session_that_is_being_made_is_not_taken_for_lost(replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    one = await replicas.add()
    sessions = one.app.sessions
    claim = sessions._store.claim

    async def late(key: Key) -> Claim:
        """The lease has lapsed, and is renewed while a session is made that has no claim yet."""
        held = sessions._book.epochs()
        sessions._residency.drop_lost({lost: held[lost] for lost in await sessions._store.lost(held)})
        return await claim(key)

    monkeypatch.setattr(sessions._store, "claim", late)
    await one.create("lstm-text", "new")
    monkeypatch.undo()
    assert [session.name for session in sessions._book.residents()] == ["new"]
    await step(one, "new", position=0)


async def test_an_answer_that_was_lost_between_servers_costs_time_and_no_error(replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = await replicas.add(), await replicas.add()
    await one.create("lstm-text", "p")
    ask = other.app.sessions._store.ask

    async def unheard(holder: str, question: bytes, timeout_s: float) -> bytes | None:
        await ask(holder, question, timeout_s)
        await asyncio.sleep(2 * LEASE_S)
        return None

    monkeypatch.setattr(other.app.sessions._store, "ask", unheard)
    await step(other, "p", position=0)


async def test_a_stale_writer_is_refused(replicas: Replicas, redis: RedisServer) -> None:
    async with Proxy(redis.port) as between:
        one, other = await replicas.add(between.port, checkpoint_s=3600), await replicas.add(checkpoint_s=3600)
        await one.create("lstm-text", "p", seed=4)
        await step(one, "p")
        await checkpointed(one)
        for _ in range(2):
            await step(one, "p")
        one.app.watchers.cancel()  # it hears nothing of its lease any more, as a process that was stopped for a while
        between.refuse()
        between.cut()
        await lapsed(one)
        await step(other, "p", position=1)
        await checkpointed(other)
        between.refuse(False)
        await one.app.sessions._keeper.save(one.app.sessions._book.residents())
        assert await one.metric("cellstate_refused_epochs_total") == 1
        assert one.app.sessions._book.residents() == []
        assert (await other.get("p")).position == 2


# -- Redis itself


async def test_redis_started_again_with_its_data_takes_nothing(replicas: Replicas, redis: RedisServer) -> None:
    one, other = await replicas.add(), await replicas.add()
    for number, durability in enumerate(DURABILITIES):
        await one.create("lstm-text", f"s{number}", durability=durability, seed=7)
    await one.create("lstm-text", "kept", seed=7, durability=DURABILITY_MEMORY)
    wanted = [await step(one, "kept") for _ in range(4)]
    for number in range(3):
        assert await step(one, f"s{number}") == wanted[0]
    await asyncio.to_thread(redis.restart)
    for number in range(3):
        assert await steps_again(one, f"s{number}") == wanted[1]
    for server, expected in ((other, wanted[2]), (one, wanted[3])):
        for number in range(3):
            assert await steps_again(server, f"s{number}") == expected


async def test_a_server_without_its_redis_does_not_start_and_says_why(some: Path, redis: RedisServer) -> None:
    redis.kill()
    settings = Settings(port=0, metrics_port=None, models=some, store=StoreSettings(kind="redis", url=redis.url, timeout_s=0.3))
    with pytest.raises(ValueError, match=f"127.0.0.1:{redis.port} cannot be reached: start it, or correct the URL"):
        await start(settings)


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
