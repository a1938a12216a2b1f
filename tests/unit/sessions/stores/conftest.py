"""A Redis server for the tests in this folder, and stores of each kind."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from cellstate_service.sessions.stores.memory import MemoryStore
from cellstate_service.sessions.stores.redis import RedisStore
from cellstate_service.sessions.stores.sqlite import SqliteStore
from cellstate_service.sessions.stores.store import Store
from tests.fake_clock import FakeClock
from tests.redis_server import RedisServer

LEASE_S = 30.0
prefixes = (f"t{number}" for number in itertools.count())


class Rig:
    """Stores of one kind that share what they keep, where that kind can."""

    def __init__(self, kind: str, make: Callable[[str], Store], clock: FakeClock | None) -> None:
        self.kind = kind
        self.now_s = 0.0 if clock is None else clock.now_s
        self._make = make
        self._clock = clock
        self._made: list[Store] = []

    async def open(self, holder: str) -> Store:
        store = self._make(holder)
        self._made.append(store)
        assert await store.open(LEASE_S)
        return store

    async def lapse(self, store: Store) -> None:
        """Let a store's lease end."""
        await store.renew(0.05)
        await self.wait(0.1)

    async def wait(self, seconds: float) -> None:
        if self._clock is None:
            await asyncio.sleep(seconds)
        else:
            self._clock.turn(seconds)

    async def close(self) -> None:
        for store in self._made:
            await store.close()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that tests leave as it is; each takes a prefix of its own."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    """Stores of the kind that the test's parameter says."""
    clock = FakeClock()
    memory = MemoryStore("", clock, graves=3)
    prefix = next(prefixes)
    kinds: dict[str, Callable[[str], Store]] = {
        "memory": lambda holder: MemoryStore(holder, clock, shared=memory, graves=3),
        "sqlite": lambda holder: SqliteStore(holder, tmp_path / "sessions.db", clock, graves=3),
        "redis": lambda holder: RedisStore(holder, request.getfixturevalue("redis_server").url, prefix, slack_s=0.0),
    }
    made = Rig(request.param, kinds[request.param], None if request.param == "redis" else clock)
    yield made
    await made.close()
