"""What only the Redis store does: it bears a Redis that is away, slow, new or older than before, and is not confused by calls that come late or twice."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import redis.asyncio
from structlog.testing import capture_logs

from cellstate_service.errors import Reason
from cellstate_service.sessions.stores import redis_scripts as scripts
from cellstate_service.sessions.stores.redis import LEFT_MS, RedisStore
from cellstate_service.sessions.stores.redis_link import Call
from cellstate_service.sessions.stores.store import Grave, HeldError, Key, Record, Store, StoreAwayError, StoreError, Write
from tests.redis_server import RedisServer
from tests.unit.sessions.stores.conftest import LEASE_S

KEY, OTHER = Key("ada", "talk"), Key("bob", "talk")
RECORD = Record("u", 1, 4e9, b"state")
TIMEOUT_S = 0.5
BOUND_S = 4.0
"""Whatever is asked of a Redis that is away is to fail within this, on a machine that is busy with other things."""


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A server of the test's own, with the options that its parameter names."""
    made = RedisServer(tmp_path / "redis", getattr(request, "param", None))
    made.start()
    yield made
    made.kill()


Opener = Callable[..., Awaitable[RedisStore]]


@pytest.fixture
async def open_store() -> AsyncIterator[Opener]:
    made: list[RedisStore] = []

    async def open_one(server: RedisServer, holder: str = "one", **given: object) -> RedisStore:
        store = RedisStore(holder, **{"url": server.url, "timeout_s": TIMEOUT_S, **given})  # type: ignore[arg-type]
        made.append(store)
        await store.open(LEASE_S)
        return store

    yield open_one
    for store in made:
        await store.close()


@pytest.fixture
async def raw(redis_server: RedisServer) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis.from_url(redis_server.url) as client:
        yield client


@pytest.fixture
async def store(redis_server: RedisServer, open_store: Opener, request: pytest.FixtureRequest) -> RedisStore:
    """A store with keys of its own on the server that tests share."""
    return await open_store(redis_server, prefix=request.node.name, timeout_s=2.0)


async def saved(store: Store, key: Key = KEY, record: Record = RECORD) -> int:
    claim = await store.claim(key)
    assert await store.save([Write(key, claim.epoch, record)], durable=True) == set()
    return claim.epoch


async def eventually(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(15.0):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def works(store: Store) -> bool:
    try:
        await store.renew(LEASE_S)
    except StoreError:
        return False
    return True


def every_call(store: RedisStore) -> list[Callable[[], Awaitable[object]]]:
    return [
        lambda: store.open(LEASE_S),
        lambda: store.renew(LEASE_S),
        lambda: store.lost({KEY: 1}),
        lambda: store.claim(OTHER),
        lambda: store.release(KEY, 1),
        lambda: store.save([Write(Key("ada", str(number)), 1, RECORD) for number in range(1000)], durable=True),
        lambda: store.remove(KEY, 1, None),
        lambda: store.find(KEY),
        lambda: store.names("ada"),
        lambda: store.grave(KEY),
        store.expire,
        lambda: store.ask("two", b"?", 10.0),
        store.secures,
    ]


async def fails(call: Callable[[], Awaitable[object]], match: str) -> None:
    began_s = time.monotonic()
    with pytest.raises(StoreError, match=match):
        await call()
    assert time.monotonic() - began_s < BOUND_S


class TestARedisThatIsAway:
    async def test_at_start_it_is_told_and_opening_works_when_it_is_there(self, server: RedisServer) -> None:
        server.stop()
        store = RedisStore("one", server.url, timeout_s=TIMEOUT_S)
        await fails(lambda: store.open(LEASE_S), f"127.0.0.1:{server.port} cannot be reached: start it, or correct the URL")
        server.start()
        assert await store.open(LEASE_S)
        await saved(store)
        await store.close()

    async def test_every_call_fails_soon_and_works_again_by_itself(self, server: RedisServer, open_store: Opener) -> None:
        store = await open_store(server)
        epoch = await saved(store)
        server.kill()
        for call in every_call(store):
            await fails(call, "cannot be reached")
        server.start()
        assert await store.find(KEY) == RECORD
        assert await store.save([Write(KEY, epoch, RECORD)], durable=True) == set()

    async def test_a_frozen_one_is_told_in_bounded_time_and_works_again(self, server: RedisServer, open_store: Opener) -> None:
        store = await open_store(server)
        epoch = await saved(store)
        server.pause()
        await asyncio.gather(*(fails(call, "did not answer in time") for call in every_call(store)))
        server.resume()
        await eventually(lambda: works(store))
        assert await store.lost({KEY: epoch}) == set()
        assert await store.save([Write(KEY, epoch, RECORD)], durable=True) == set()

    async def test_many_calls_at_once_fail_as_soon_as_one(self, server: RedisServer, open_store: Opener) -> None:
        store = await open_store(server)
        server.pause()
        began_s = time.monotonic()
        failed = await asyncio.gather(*(store.find(KEY) for _ in range(100)), return_exceptions=True)
        assert {type(error) for error in failed} == {StoreAwayError}
        assert time.monotonic() - began_s < BOUND_S
        server.resume()
        await eventually(lambda: works(store))

    async def test_closing_raises_nothing(self, server: RedisServer, open_store: Opener) -> None:
        store = await open_store(server)
        server.kill()
        await store.close()


class TestARedisThatCameBack:
    async def test_with_its_data_nothing_is_lost_and_the_server_is_to_look(self, server: RedisServer, open_store: Opener) -> None:
        store = await open_store(server)
        incarnation = await store.open(LEASE_S)
        epoch = await saved(store)
        assert await store.renew(LEASE_S)
        server.restart()
        assert not await store.renew(LEASE_S), "what was written last may be missing"
        assert await store.lost({KEY: epoch}) == set()
        assert await store.renew(LEASE_S)
        assert await store.find(KEY) == RECORD
        assert await store.open(LEASE_S) == incarnation

    async def test_without_its_data_everything_is_lost_and_epochs_go_on(self, server: RedisServer, open_store: Opener) -> None:
        store = await open_store(server)
        incarnation = await store.open(LEASE_S)
        for number in range(20):
            epoch = await saved(store, Key("ada", str(number)))
        server.kill()
        server.wipe()
        server.start()
        assert not await store.renew(LEASE_S)
        assert await store.lost({Key("ada", "19"): epoch}) == {Key("ada", "19")}
        assert await store.save([Write(Key("ada", "19"), epoch, RECORD)], durable=True) == {Key("ada", "19")}
        assert (await store.claim(KEY)).epoch > epoch
        assert await store.open(LEASE_S) != incarnation

    async def test_emptied_while_it_runs_is_noticed(self, server: RedisServer, open_store: Opener) -> None:
        store = await open_store(server)
        epoch = await saved(store)
        await store._link.client.flushall()
        assert not await store.renew(LEASE_S)
        assert await store.lost({KEY: epoch}) == {KEY}

    async def test_older_data_is_noticed_where_the_lease_seems_to_run(self, store: RedisStore, raw: redis.asyncio.Redis) -> None:
        lease = store._lease("one")
        older = await raw.get(lease)
        assert await store.renew(LEASE_S)
        await raw.set(lease, older, px=60_000)
        assert not await store.renew(LEASE_S)
        assert await store.renew(LEASE_S)

    async def test_a_lapse_is_told_even_where_the_renewal_that_found_it_was_not_answered(self, store: RedisStore, raw: redis.asyncio.Redis) -> None:
        await raw.delete(store._lease("one"))
        keys = [store._lease("one"), store._key("holders"), store._key("incarnation")]
        await store._link.call(Call(scripts.RENEW, keys, ["one", next(store._numbers), str(store._renewed), 60_000, "x"]))
        assert not await store.renew(LEASE_S)


class TestCallsThatComeLateOrTwice:
    async def test_an_older_save_that_arrives_after_a_newer_one_changes_nothing(self, store: RedisStore) -> None:
        epoch = await saved(store)
        keys = [store._session(KEY), store._names("ada"), store._grave(KEY)]
        number = next(store._numbers)
        newer = Record("u", 2, 4e9, b"newer")
        await store.save([Write(KEY, epoch, newer)], durable=True)
        late = Call(scripts.SAVE, keys, [store._me, store._by, number, 1000, epoch, KEY.name, "u", 1, "4e9", b"older"])
        assert await store._link.call(late) == [0]
        assert await store.find(KEY) == newer

    async def test_a_removal_that_is_sent_again_has_removed(self, store: RedisStore) -> None:
        epoch = await saved(store)
        keys = [store._session(KEY), store._held("one"), store._names("ada"), store._grave(KEY)]
        call = Call(scripts.REMOVE, keys, [*store._as(epoch), KEY.name, "SESSION_CLOSED 1", 60_000])
        assert await store._link.call(call) == 1
        assert await store._link.call(call) == 1
        assert await store.grave(KEY) == Grave(Reason.SESSION_CLOSED, 1)
        assert not await store.remove(KEY, epoch, None)

    async def test_a_claim_that_arrives_after_its_session_was_given_back_or_removed_takes_nothing(self, store: RedisStore) -> None:
        numbers = [next(store._numbers) for _ in range(2)]
        epoch = await saved(store)
        await store.release(KEY, epoch)
        await store.remove(OTHER, await saved(store, OTHER), None)
        for key, number in zip((KEY, OTHER), numbers, strict=True):
            keys = [store._session(key), store._key("epoch"), store._held("one")]
            assert await store._link.call(Call(scripts.CLAIM, keys, ["one", store._by, number, number, 0, store._lease("")])) == [b"late"]
        assert (await store.claim(KEY)).clean

    async def test_a_claim_that_was_not_answered_is_clean_as_if_it_had_not_been(self, store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
        await store.release(KEY, await saved(store))
        with pytest.raises(StoreError):
            await self.unanswered(store, monkeypatch)
        claim = await store.claim(KEY)
        assert (claim.record, claim.clean) == (RECORD, True)
        assert not (await store.claim(KEY)).clean

    @pytest.mark.parametrize("stored", [True, False])
    async def test_a_claim_that_was_not_answered_is_given_back(
        self, redis_server: RedisServer, open_store: Opener, store: RedisStore, monkeypatch: pytest.MonkeyPatch, stored: bool
    ) -> None:
        second = await open_store(redis_server, "two", prefix=store._prefix)
        if stored:
            await store.release(KEY, await saved(store))
        with pytest.raises(StoreError):
            await self.unanswered(store, monkeypatch)
        with pytest.raises(HeldError):
            await second.claim(KEY)
        assert await store.renew(LEASE_S)
        claim = await second.claim(KEY)
        assert (claim.record, claim.clean) == (RECORD if stored else None, True)

    async def test_a_claim_that_was_not_answered_and_is_made_again_stays(self, store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(StoreError):
            await self.unanswered(store, monkeypatch)
        epoch = await saved(store)
        assert await store.renew(LEASE_S)
        assert await store.lost({KEY: epoch}) == set()

    async def unanswered(self, store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """Claim, and lose the answer."""
        call = store._link.call

        async def lose(asked: Call) -> None:
            await call(asked)
            raise StoreError("the connection broke")

        with monkeypatch.context() as patched:
            patched.setattr(store._link, "call", lose)
            await store.claim(KEY)

    async def test_a_claim_that_is_cancelled_is_given_back(self, redis_server: RedisServer, open_store: Opener, store: RedisStore) -> None:
        second = await open_store(redis_server, "two", prefix=store._prefix)
        claiming = [asyncio.ensure_future(store.claim(Key("ada", str(number)))) for number in range(20)]
        await asyncio.sleep(0.001)
        for task in claiming:
            task.cancel()
        done = await asyncio.gather(*claiming, return_exceptions=True)
        await store.renew(LEASE_S)
        for number, claim in enumerate(done):
            if isinstance(claim, BaseException):
                await second.claim(Key("ada", str(number)))


class TestEnds:
    async def test_what_is_held_has_no_end_and_what_is_given_back_ends_after_its_time(self, store: RedisStore, raw: redis.asyncio.Redis) -> None:
        soon = Record("u", 3, time.time() + 100, b"")
        epoch = await saved(store, KEY, soon)
        assert await raw.pttl(store._session(KEY)) == -1
        await store.release(KEY, epoch)
        assert await raw.pttl(store._session(KEY)) == pytest.approx(160_000, abs=5_000)
        assert await raw.pttl(store._grave(KEY)) > await raw.pttl(store._session(KEY))
        assert await raw.pttl(store._names("ada")) > await raw.pttl(store._session(KEY))
        await store.claim(KEY)
        assert await raw.pttl(store._session(KEY)) == -1

    async def test_what_a_dead_server_held_is_given_an_end_and_keeps_it_unless_that_server_comes_back(
        self, redis_server: RedisServer, open_store: Opener, store: RedisStore, raw: redis.asyncio.Redis
    ) -> None:
        second = await open_store(redis_server, "two", prefix=store._prefix)
        past, ahead, unsaved = (Key("ada", name) for name in ("past", "ahead", "unsaved"))
        epochs = {
            past: await saved(store, past, Record("u", 1, time.time() - 1, b"")),
            ahead: await saved(store, ahead, Record("u", 1, time.time() + 5000, b"")),
            unsaved: (await store.claim(unsaved)).epoch,
        }
        await second.expire()
        assert [await raw.pttl(store._session(key)) for key in epochs] == [-1, -1, -1]
        await raw.delete(store._lease("one"))
        await second.expire()
        assert [await raw.pttl(store._session(key)) for key in epochs] == [pytest.approx(ms, abs=5000) for ms in (LEFT_MS, 5_060_000, LEFT_MS)]
        assert await raw.smembers(store._key("holders")) == {b"two"}
        assert not await store.renew(LEASE_S)
        assert await store.lost(epochs) == set()
        assert [await raw.pttl(store._session(key)) for key in epochs] == [-1, -1, -1]
        assert await raw.smembers(store._key("holders")) == {b"one", b"two"}

    async def test_a_removed_session_and_an_unsaved_claim_leave_no_key_for_ever(self, store: RedisStore, raw: redis.asyncio.Redis) -> None:
        await store.remove(KEY, await saved(store), Grave(Reason.SESSION_CLOSED, 1))
        await store.release(OTHER, (await store.claim(OTHER)).epoch)
        lasting = {name async for name in raw.scan_iter(f"{store._prefix}:*") if await raw.pttl(name) == -1}
        assert lasting == {store._key(name).encode() for name in ("epoch", "holders", "incarnation")}


class TestAsking:
    async def test_servers_with_odd_names_hear_each_other_and_a_failing_handler_is_logged(self, redis_server: RedisServer, open_store: Opener) -> None:
        first = await open_store(redis_server, "a:b c\nd", prefix="odd")
        second = await open_store(redis_server, "ü", prefix="odd")

        async def fail(question: bytes) -> bytes:
            if question == b"fail":
                raise ValueError("cannot")
            return question

        first.answer(fail)
        assert await second.ask("a:b c\nd", b"\n\x00", 5.0) == b"\n\x00"
        with capture_logs() as logs:
            assert await second.ask("a:b c\nd", b"fail", 0.3) is None
        assert [entry["event"] for entry in logs] == ["a question of another server could not be answered"]

    async def test_it_works_again_after_redis_was_away(self, server: RedisServer, open_store: Opener) -> None:
        first, second = await open_store(server), await open_store(server, "two")

        async def echo(question: bytes) -> bytes:
            return question

        first.answer(echo)
        assert await second.ask("one", b"before", 5.0) == b"before"
        server.kill()
        await fails(lambda: second.ask("one", b"?", 5.0), "cannot be reached")
        server.start()

        async def answered() -> bool:
            return await second.ask("one", b"after", 0.5) == b"after"

        await eventually(answered)


class TestSettingUp:
    async def test_it_tells_whether_answers_survive_the_loss_of_power(self, server: RedisServer, open_store: Opener) -> None:
        store = await open_store(server)
        assert await store.secures()
        await store._link.client.config_set("appendfsync", "everysec")
        assert not await store.secures()
        await store._link.client.acl_setuser("default", enabled=True, commands=["+@all", "-config"])
        assert not await store.secures(), "it does not say"

    @pytest.mark.parametrize("server", [{"requirepass": "open sesame"}], indirect=True)
    async def test_a_password_is_used_and_never_told(self, server: RedisServer, open_store: Opener) -> None:
        place = f"127.0.0.1:{server.port}"
        await saved(await open_store(server, url=f"redis://:open%20sesame@{place}/0"))
        for url in (f"redis://:not-it@{place}/0", f"redis://someone:not-it@{place}/0", server.url):
            with pytest.raises(StoreError, match="put into the URL a user and a password") as caught:
                await open_store(server, url=url)
            assert "not-it" not in str(caught.value)

    @pytest.mark.parametrize("url", ["redis://:se/cret@host:1/0", "http://:secret@host", "redis://:secret@host:port/0", "secret"])
    def test_an_url_that_cannot_be_read_is_told_without_its_password(self, url: str) -> None:
        with pytest.raises(StoreError, match="it is to be redis://") as caught:
            RedisStore("one", url)
        assert "secret" not in str(caught.value)
        assert "cret" not in str(caught.value)
        assert caught.value.__suppress_context__

    @pytest.mark.parametrize("server", [{"cluster-enabled": "yes"}], indirect=True)
    async def test_a_cluster_is_refused(self, server: RedisServer, open_store: Opener) -> None:
        with pytest.raises(StoreError, match="is a cluster"):
            await open_store(server)

    async def test_a_full_memory_is_told_and_saving_goes_on_when_there_is_room(self, server: RedisServer, open_store: Opener) -> None:
        store = await open_store(server)
        epoch = await saved(store)
        await store._link.client.config_set("maxmemory", "1")
        with pytest.raises(StoreError, match="raise its maxmemory"):
            await store.save([Write(KEY, epoch, RECORD)], durable=True)
        await store._link.client.config_set("maxmemory", "0")
        assert await store.save([Write(KEY, epoch, RECORD)], durable=True) == set()

    async def test_a_replica_is_told(self, server: RedisServer, open_store: Opener) -> None:
        store = await open_store(server)
        epoch = await saved(store)
        await store._link.client.config_set("replica-serve-stale-data", "yes")
        await store._link.client.replicaof("127.0.0.1", "1")
        with pytest.raises(StoreError, match="name the primary"):
            await store.save([Write(KEY, epoch, RECORD)], durable=True)
        await store._link.client.replicaof("NO", "ONE")
        assert await store.save([Write(KEY, epoch, RECORD)], durable=True) == set()


async def test_a_call_that_is_cancelled_ends_whenever_that_comes(redis_server: RedisServer, open_store: Opener) -> None:
    store = await open_store(redis_server, "cancelled")

    async def renew() -> None:
        while True:
            await store.renew(LEASE_S)

    for number in range(200):
        renewing = asyncio.ensure_future(renew())
        await asyncio.sleep(0.002 * number / 200)
        renewing.cancel()
        await asyncio.wait([renewing], timeout=BOUND_S)
        assert renewing.cancelled(), f"the cancellation after {number / 100} ms was lost"
