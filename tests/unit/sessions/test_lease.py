"""A server that cannot renew its lease stops answering, and drops what others have taken once it can."""

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest

from cellstate_service.sessions.lease import Lease
from cellstate_service.sessions.stores.memory import MemoryStore
from cellstate_service.sessions.stores.store import Key, StoreError
from tests.fake_clock import FakeClock

LEASE_S = 0.3  # of the fake clock; the lease sleeps a third of it in earnest
MINE, TAKEN = Key("ada", "mine"), Key("ada", "taken")


class Away(MemoryStore):
    """A store that can be away."""

    away = False
    silent = False

    async def renew(self, lease_s: float) -> bool:
        if self.away:
            raise StoreError("away")
        if self.silent:
            await asyncio.Event().wait()
        return await super().renew(lease_s)

    async def lost(self, epochs: Mapping[Key, int]) -> set[Key]:
        if self.away:
            raise StoreError("away")
        return await super().lost(epochs)


class Server:
    def __init__(self, store: Away, clock: FakeClock) -> None:
        self.store = store
        self.epochs: dict[Key, int] = {}
        self.lapses = 0
        self.lost: set[Key] = set()
        self.lease = Lease(store, LEASE_S, clock, lambda: self.epochs, self._lapsed, self.lost.update)

    def _lapsed(self) -> None:
        self.lapses += 1


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def server(clock: FakeClock) -> AsyncIterator[Server]:
    first = MemoryStore("other", clock)
    store = Away("one", clock, shared=first)
    await store.open(LEASE_S)
    made = Server(store, clock)
    running = asyncio.ensure_future(made.lease.run())
    await asyncio.sleep(0)
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def eventually(holds: object) -> None:
    async with asyncio.timeout(10):
        while not holds():  # type: ignore[operator]  # noqa: ASYNC110 (nobody announces it)
            await asyncio.sleep(0.01)


async def test_a_lease_that_is_renewed_runs(server: Server, clock: FakeClock) -> None:
    for _ in range(5):
        before = server.lease._until_s
        clock.turn(LEASE_S / 2)
        await eventually(lambda before=before: server.lease._until_s > before)
        assert server.lease.runs
    assert (server.lapses, server.lost) == (0, set())


async def test_a_server_that_was_away_stops_answering_and_drops_what_others_took(server: Server, clock: FakeClock) -> None:
    for key in (MINE, TAKEN):
        server.epochs[key] = (await server.store.claim(key)).epoch
    server.store.away = True
    clock.turn(LEASE_S + 0.01)
    assert not server.lease.runs, "at once, not when a renewal fails"
    await eventually(lambda: server.lapses == 1)
    other = MemoryStore("two", clock, shared=server.store)
    await other.open(10.0)
    await other.claim(TAKEN)
    server.store.away = False
    await eventually(lambda: server.lease.runs)
    assert server.lost == {TAKEN}
    assert server.lapses == 1


async def test_a_store_of_ones_own_has_no_lease_to_lapse(clock: FakeClock) -> None:
    server = Server(Away("one", clock), clock)
    clock.turn(1e6)
    await server.lease.run()
    assert server.lease.runs


async def test_a_store_that_does_not_answer_is_not_waited_for_beyond_the_lease(server: Server, clock: FakeClock) -> None:
    server.store.silent = True
    await asyncio.sleep(LEASE_S / 2)  # it is being renewed
    clock.turn(LEASE_S + 0.01)
    await eventually(lambda: server.lapses == 1)
    server.store.silent = False
    await eventually(lambda: server.lease.runs)
