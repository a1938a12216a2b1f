"""What a server does with its sessions while it cannot reach the Redis that it shares with others, and after: what was lost, it lets go of."""

import asyncio
import signal
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from pydantic import SecretStr
from structlog.testing import capture_logs

from cellstate.v1.inference_pb2 import OneToOneRequest
from cellstate.v1.session_pb2 import (
    DURABILITY_MEMORY,
    DURABILITY_SYNC,
    CreateSessionRequest,
    Session,
)
from cellstate_service.app import start
from cellstate_service.sessions.stores.store import Claim, Key
from cellstate_service.settings import Settings, StoreSettings
from tests.integration.serving import ending, eventually, generating_without_end
from tests.integration.stubs import Stubs, on_session, open_many, refusal, text
from tests.integration.surviving.replicas import DURABILITIES, LEASE_S, Replicas, get, lapsed, runs, step, steps_again
from tests.integration.surviving.wreck import checkpointed
from tests.integration.test_process import launch
from tests.proxy import Proxy
from tests.redis_server import RedisServer


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
        assert (await refusal(get(other, "m"))).reason == "SESSION_LOST"
        between.refuse(False)
        await runs(one)
        assert (await one.get("p")).position == 3
        assert (await refusal(get(one, "m"))).reason == "SESSION_LOST"
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


# -- when a server starts


def settings_of(models: Path, url: str) -> Settings:
    return Settings(port=0, metrics_port=None, models=models, store=StoreSettings(kind="redis", url=SecretStr(url), timeout_s=0.3))


async def test_a_server_whose_redis_is_away_says_so_and_serves_once_it_is_there(some: Path, redis: RedisServer) -> None:
    await asyncio.to_thread(redis.kill)
    with capture_logs() as logs:
        starting = asyncio.create_task(start(settings_of(some, redis.url)))

        async def told() -> bool:
            return any(f"127.0.0.1:{redis.port} cannot be reached: start it, or correct the URL" in entry.get("why", "") for entry in logs)

        await eventually(told)
        await asyncio.sleep(1.0)
    assert not starting.done()
    await asyncio.to_thread(redis.start)
    async with asyncio.timeout(10):
        app = await starting
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.port}") as channel:
        created = await Stubs(channel).sessions.CreateSession(CreateSessionRequest(session=Session(model="lstm-text", durability=DURABILITY_SYNC)))
        assert created.session.durability == DURABILITY_SYNC
    await app.stop()


async def test_a_server_that_waits_for_its_redis_stops_when_it_is_told_to(some: Path, redis: RedisServer) -> None:
    await asyncio.to_thread(redis.kill)
    serving = await launch("--models", str(some), "--set", "store.kind=redis", "--set", f"store.url={redis.url}")
    assert serving.stderr is not None
    async with asyncio.timeout(60):
        while b"cannot be reached" not in await serving.stderr.readline():
            pass
        serving.send_signal(signal.SIGTERM)
        output, _ = await serving.communicate()
    assert (serving.returncode, output) == (0, b"")


async def test_a_server_that_its_redis_refuses_does_not_start_and_says_why(some: Path, tmp_path: Path) -> None:
    closed = RedisServer(tmp_path / "closed", {"requirepass": "right"})
    await asyncio.to_thread(closed.start)
    try:
        with pytest.raises(ValueError, match="refuses this server: put into the URL a user and a password") as caught:
            await start(settings_of(some, f"redis://:wrong@127.0.0.1:{closed.port}/0"))
        assert "wrong" not in str(caught.value)
    finally:
        await asyncio.to_thread(closed.kill)


async def test_a_name_whose_session_expired_while_redis_was_away_is_free_again(replicas: Replicas, redis: RedisServer) -> None:
    async with Proxy(redis.port) as between:
        one, other = await replicas.add(between.port), await replicas.add()
        await one.stubs.sessions.CreateSession(CreateSessionRequest(session=Session(name="s", model="lstm-text", ttl=Duration(seconds=1))))
        await one.create("lstm-text", "kept")
        between.refuse()
        between.cut()
        await asyncio.sleep(1.5)  # it expires
        between.refuse(False)
        await runs(one)
        async with asyncio.timeout(10):
            while (await refusal(get(other, "s"))).reason != "SESSION_EXPIRED":  # noqa: ASYNC110 (nobody announces it)
                await asyncio.sleep(0.1)
        await other.create("lstm-text", "s")
        assert (await one.get("s")).position == 0
