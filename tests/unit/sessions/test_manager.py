"""What the manager keeps stays in proportion to the sessions there are."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from cellstate_service.engine.engine import Engine, EngineConfig
from cellstate_service.engine.processors import Processors
from cellstate_service.errors import Aborted, AlreadyExists, Exhausted, InvalidInput, NotFound, Reason, Unavailable
from cellstate_service.models.loading import LoadedModel, load_model
from cellstate_service.observability.metrics import Metrics
from cellstate_service.session_parts import SWEEPS, Sessions
from cellstate_service.sessions.book import SessionConfig
from cellstate_service.sessions.call import Call
from cellstate_service.sessions.calling import CallTarget
from cellstate_service.sessions.engines import Engines
from cellstate_service.sessions.manager import SessionChange, SessionManager
from cellstate_service.sessions.session import Durability, Expiration, SessionSpec
from cellstate_service.sessions.stores.memory import MemoryStore
from cellstate_service.sessions.stores.store import Claim, Key, StoreError, Write
from cellstate_service.settings import StoreSettings
from tests.fake_clock import FakeClock
from tests.models_on_disk import write_recurrent

WEEK_S = 7 * 86400.0
MANY = 3000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(write_recurrent(tmp_path_factory.mktemp("models") / "tiny", hidden_size=8))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def sessions(model: LoadedModel, clock: FakeClock) -> AsyncIterator[Sessions]:
    metrics = Metrics()
    engine = Engine(model, EngineConfig(slots=16), Processors(1, clock), metrics, clock)
    engine.start(asyncio.get_running_loop())
    store = MemoryStore("one", clock)
    await store.open(10.0)
    made = Sessions({"tiny": engine}, store, SessionConfig(max_sessions=8, idle_ttl_s=60), StoreSettings(kind="memory"), metrics, clock)
    yield made
    await made.close()
    await engine.stop()


@pytest.fixture
def manager(sessions: Sessions) -> SessionManager:
    return sessions.manager


def spec(name: str = "", ttl_s: float | None = None) -> SessionSpec:
    return SessionSpec(name=name, model="tiny", expiration=Expiration(ttl_s=ttl_s))


async def reason(manager: SessionManager, name: str, owner: str = "ada") -> Reason:
    with pytest.raises(NotFound) as caught:
        await manager.read(owner, name)
    return caught.value.reason


async def call_on(sessions: Sessions, name: str) -> Call:
    target = CallTarget(name=name)
    call = await sessions.calling.open("ada", target)
    sessions.calling.begin(call, target)
    return call


def entries(manager: SessionManager) -> int:
    return len(manager._book._expiries)


async def test_renewals_make_no_entries(sessions: Sessions, manager: SessionManager, clock: FakeClock) -> None:
    await manager.create("ada", spec("a"))
    for _ in range(MANY):
        clock.turn(1)
        sessions.calling.close(await call_on(sessions, "a"))
        manager.expire_due()

    assert entries(manager) == 1
    clock.turn(59)
    assert manager.expire_due() == 0
    clock.turn(2)
    assert manager.expire_due() == 1
    assert entries(manager) == 0
    assert await reason(manager, "a") is Reason.SESSION_EXPIRED


async def test_sessions_that_were_deleted_leave_nothing_behind(manager: SessionManager, clock: FakeClock) -> None:
    await manager.create("ada", spec("stays", WEEK_S))
    for _ in range(MANY):
        session = await manager.create("ada", spec("comes", WEEK_S))
        await manager.delete("ada", session.name, session.uid)

    assert entries(manager) <= 1100
    clock.turn(WEEK_S + 1)
    assert manager.expire_due() == 1
    assert entries(manager) == 0
    assert await reason(manager, "stays") is Reason.SESSION_EXPIRED
    assert await reason(manager, "comes") is Reason.SESSION_CLOSED


async def test_ever_shorter_expiries_leave_nothing_behind(manager: SessionManager, clock: FakeClock) -> None:
    await manager.create("ada", spec("a", WEEK_S))
    for step in range(MANY):
        await manager.update("ada", "a", SessionChange(expiration=Expiration(ttl_s=WEEK_S - 10 * step)))

    assert entries(manager) <= 1100
    clock.turn(WEEK_S - 10 * MANY)
    assert manager.expire_due() == 0
    clock.turn(11)
    assert manager.expire_due() == 1


async def test_a_shorter_expiry_is_seen(manager: SessionManager, clock: FakeClock) -> None:
    await manager.create("ada", spec("a", 1000))
    await manager.update("ada", "a", SessionChange(expiration=Expiration(ttl_s=10)))
    await manager.update("ada", "a", SessionChange(expiration=Expiration(ttl_s=20)))
    clock.turn(11)
    assert manager.expire_due() == 0
    clock.turn(10)
    assert manager.expire_due() == 1


async def test_a_session_that_expired_while_a_call_was_on_it_idles_anew(sessions: Sessions, manager: SessionManager, clock: FakeClock) -> None:
    await manager.create("ada", spec("a", 10))
    call = await call_on(sessions, "a")
    clock.turn(100)
    assert manager.expire_due() == 0

    sessions.calling.close(call)

    clock.turn(9)
    assert manager.expire_due() == 0
    clock.turn(2)
    assert manager.expire_due() == 1


async def test_a_session_made_as_the_owners_last_one_expires_lives(manager: SessionManager, clock: FakeClock) -> None:
    await manager.create("ada", spec("old", 10))
    clock.turn(11)

    made = await manager.create("ada", spec("new"))

    assert (await manager.read("ada", "new"))[0].uid == made.uid


async def test_a_create_that_failed_leaves_no_trace(manager: SessionManager) -> None:
    for number in range(8):
        await manager.create("ada", spec(str(number)))
    for _ in range(3):
        with pytest.raises(Exhausted):
            await manager.create("bob", spec("another"))
    assert await reason(manager, "another", "bob") is Reason.SESSION_NOT_FOUND
    await manager.delete("ada", "0", "")

    assert (await manager.create("bob", spec("another"))).owner == "bob"


class SlowStore(MemoryStore):
    """Claims and saves when it is let, and fails to save when it is told so."""

    def __init__(self, holder: str, clock: FakeClock, shared: MemoryStore | None = None) -> None:
        super().__init__(holder, clock, shared)
        self.claims, self.claiming, self.saves, self.saving = (asyncio.Event() for _ in range(4))
        self.fails = False
        self.claims.set()

    async def claim(self, key: Key) -> Claim:
        self.claiming.set()
        await self.claims.wait()
        return await super().claim(key)

    async def save(self, writes: Sequence[Write], *, durable: bool) -> set[Key]:
        self.saving.set()
        await self.saves.wait()
        if self.fails:
            raise StoreError("no")
        return await super().save(writes, durable=durable)

    async def expire(self) -> int:
        if self.fails:
            raise StoreError("no")
        return await super().expire()


@pytest.fixture
async def pair(model: LoadedModel, clock: FakeClock) -> AsyncIterator[tuple[Sessions, Sessions, SlowStore]]:
    """Two servers that share a store; the first one saves when it is let."""
    metrics = Metrics()
    engine = Engine(model, EngineConfig(slots=16), Processors(1, clock), metrics, clock)
    engine.start(asyncio.get_running_loop())
    engines = Engines()
    engines.add(engine, clock.monotonic())
    first = SlowStore("one", clock)
    second = MemoryStore("two", clock, first)
    made = []
    for store in (first, second):
        await store.open(10.0)
        config = SessionConfig(max_sessions=8, idle_ttl_s=60, durability=Durability.SYNC)
        made.append(Sessions(engines, store, config, StoreSettings(kind="memory"), metrics, clock))
    yield made[0], made[1], first
    first.saves.set()
    for sessions in made:
        await sessions.close()
    await engine.stop()


async def test_a_name_that_was_claimed_in_vain_is_free(pair: tuple[Sessions, Sessions, SlowStore]) -> None:
    one, two, store = pair
    store.fails = True
    making = asyncio.ensure_future(one.manager.create("ada", spec("a")))
    await store.saving.wait()
    again = asyncio.ensure_future(two.manager.create("ada", spec("a")))
    for _ in range(100):
        await asyncio.sleep(0)
    store.saves.set()
    with pytest.raises(Unavailable):
        await making
    assert (await again).name == "a"


async def test_a_session_whose_caller_stops_waiting_while_it_is_claimed_is_not_left_behind(pair: tuple[Sessions, Sessions, SlowStore]) -> None:
    one, two, store = pair
    store.saves.set()
    made = await two.manager.create("ada", spec("a"))
    await two._residency.leave(made)
    store.claims.clear()
    reading = asyncio.ensure_future(one.manager.read("ada", "a"))
    await store.claiming.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    store.claims.set()
    assert (await two.manager.read("ada", "a"))[0].uid == made.uid


async def test_expiry_goes_on_after_the_store_has_failed(pair: tuple[Sessions, Sessions, SlowStore], clock: FakeClock) -> None:
    one, two, store = pair
    store.saves.set()
    await two._residency.leave(await two.manager.create("ada", spec("a", 10)))
    clock.turn(11)
    store.fails = True
    for _ in range(2 * SWEEPS):
        await one.expire_due()
    assert await store.find(Key("ada", "a")) is not None
    store.fails = False
    for _ in range(SWEEPS):
        await one.expire_due()
    assert await store.find(Key("ada", "a")) is None


async def test_a_name_that_another_server_has_is_taken_and_stays_there(pair: tuple[Sessions, Sessions, SlowStore]) -> None:
    one, two, store = pair
    store.saves.set()
    session = await one.manager.create("ada", spec("a"))
    with pytest.raises(AlreadyExists):
        await two.manager.create("ada", spec("a"))
    assert (await one.manager.read("ada", "a"))[0].uid == session.uid


async def test_a_session_that_is_being_made_is_not_taken_for_one_that_others_have(pair: tuple[Sessions, Sessions, SlowStore]) -> None:
    one, _, store = pair
    store.claims.clear()
    making = asyncio.ensure_future(one.manager.create("ada", spec("a")))
    await store.claiming.wait()
    epochs = one.manager._book.epochs()
    store.claims.set()
    await store.saving.wait()
    one._residency.drop_lost({key: epochs[key] for key in await store.lost(epochs)})
    store.saves.set()
    await making
    assert (await one.manager.read("ada", "a"))[0].name == "a"


async def test_who_makes_a_session_that_others_take_meanwhile_is_told(pair: tuple[Sessions, Sessions, SlowStore]) -> None:
    one, _, store = pair
    making = asyncio.ensure_future(one.manager.create("ada", spec("a")))
    await store.saving.wait()
    one._residency.drop_lost(one.manager._book.epochs())
    store.saves.set()
    with pytest.raises(Aborted):
        await making


async def test_expired_sessions_make_room(manager: SessionManager, clock: FakeClock) -> None:
    for number in range(8):
        await manager.create("ada", spec(str(number), 10))
    clock.turn(11)

    assert len({(await manager.create("bob", spec())).name for _ in range(8)}) == 8


async def test_a_refused_update_changes_nothing(manager: SessionManager, clock: FakeClock) -> None:
    session = await manager.create("ada", spec("a", 100))
    before = (session.expires_s, session.used_s, dict(session.labels))
    clock.turn(10)
    with pytest.raises(InvalidInput):
        await manager.update("ada", "a", SessionChange(expiration=Expiration(ttl_s=-1), labels={"new": "label"}))
    assert (session.expires_s, session.used_s, session.labels) == before


async def test_a_session_that_ends_with_its_models_version_is_told_so_where_there_is_no_store(sessions: Sessions, manager: SessionManager) -> None:
    session = await manager.create("ada", spec("a"))
    await sessions.leave_engine(session.engine)
    assert await reason(manager, "a") is Reason.SESSION_EVICTED
    assert (await manager.create("ada", spec("a"))).name == "a"
