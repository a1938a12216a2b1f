"""What the manager keeps stays in proportion to the sessions there are."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from cellstate_service.engine.engine import Engine, EngineConfig
from cellstate_service.engine.processors import Processors
from cellstate_service.errors import Exhausted, InvalidInput, NotFound, Reason
from cellstate_service.models.loading import LoadedModel, load_model
from cellstate_service.observability.metrics import Metrics
from cellstate_service.sessions.book import SessionConfig
from cellstate_service.sessions.call import Call
from cellstate_service.sessions.manager import CallTarget, SessionChange, SessionManager
from cellstate_service.sessions.session import Expiration, SessionSpec
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
async def manager(model: LoadedModel, clock: FakeClock) -> AsyncIterator[SessionManager]:
    metrics = Metrics()
    engine = Engine(model, EngineConfig(slots=16), Processors(1, clock), metrics, clock)
    engine.start(asyncio.get_running_loop())
    yield SessionManager({"tiny": engine}, SessionConfig(max_sessions=8, idle_ttl_s=60), metrics, clock)
    await engine.stop()


def spec(name: str = "", ttl_s: float | None = None) -> SessionSpec:
    return SessionSpec(name=name, model="tiny", expiration=Expiration(ttl_s=ttl_s))


def reason(manager: SessionManager, name: str, owner: str = "ada") -> Reason:
    with pytest.raises(NotFound) as caught:
        manager.get(owner, name)
    return caught.value.reason


def call_on(manager: SessionManager, name: str) -> Call:
    target = CallTarget(name=name)
    call = manager.open_call("ada", target)
    manager.begin_call(call, target)
    return call


def entries(manager: SessionManager) -> int:
    return len(manager._book._expiries)


async def test_renewals_make_no_entries(manager: SessionManager, clock: FakeClock) -> None:
    await manager.create("ada", spec("a"))
    for _ in range(MANY):
        clock.turn(1)
        manager.close_call(call_on(manager, "a"))
        manager.expire_due()

    assert entries(manager) == 1
    clock.turn(59)
    assert manager.expire_due() == 0
    clock.turn(2)
    assert manager.expire_due() == 1
    assert entries(manager) == 0
    assert reason(manager, "a") is Reason.SESSION_EXPIRED


async def test_sessions_that_were_deleted_leave_nothing_behind(manager: SessionManager, clock: FakeClock) -> None:
    await manager.create("ada", spec("stays", WEEK_S))
    for _ in range(MANY):
        session = await manager.create("ada", spec("comes", WEEK_S))
        manager.delete("ada", session.name, session.uid)

    assert entries(manager) <= 1100
    clock.turn(WEEK_S + 1)
    assert manager.expire_due() == 1
    assert entries(manager) == 0
    assert reason(manager, "stays") is Reason.SESSION_EXPIRED
    assert reason(manager, "comes") is Reason.SESSION_CLOSED


async def test_ever_shorter_expiries_leave_nothing_behind(manager: SessionManager, clock: FakeClock) -> None:
    await manager.create("ada", spec("a", WEEK_S))
    for step in range(MANY):
        manager.update("ada", "a", SessionChange(expiration=Expiration(ttl_s=WEEK_S - 10 * step)))

    assert entries(manager) <= 1100
    clock.turn(WEEK_S - 10 * MANY)
    assert manager.expire_due() == 0
    clock.turn(11)
    assert manager.expire_due() == 1


async def test_a_shorter_expiry_is_seen(manager: SessionManager, clock: FakeClock) -> None:
    await manager.create("ada", spec("a", 1000))
    manager.update("ada", "a", SessionChange(expiration=Expiration(ttl_s=10)))
    manager.update("ada", "a", SessionChange(expiration=Expiration(ttl_s=20)))
    clock.turn(11)
    assert manager.expire_due() == 0
    clock.turn(10)
    assert manager.expire_due() == 1


async def test_a_session_that_expired_while_a_call_was_on_it_idles_anew(manager: SessionManager, clock: FakeClock) -> None:
    await manager.create("ada", spec("a", 10))
    call = call_on(manager, "a")
    clock.turn(100)
    assert manager.expire_due() == 0

    manager.close_call(call)

    clock.turn(9)
    assert manager.expire_due() == 0
    clock.turn(2)
    assert manager.expire_due() == 1


async def test_a_session_made_as_the_owners_last_one_expires_lives(manager: SessionManager, clock: FakeClock) -> None:
    await manager.create("ada", spec("old", 10))
    clock.turn(11)

    made = await manager.create("ada", spec("new"))

    assert manager.get("ada", "new") is made


async def test_a_create_that_failed_leaves_no_trace(manager: SessionManager) -> None:
    for number in range(8):
        await manager.create("ada", spec(str(number)))
    for _ in range(3):
        with pytest.raises(Exhausted):
            await manager.create("bob", spec("another"))
    assert reason(manager, "another", "bob") is Reason.SESSION_NOT_FOUND
    manager.delete("ada", "0", "")

    assert (await manager.create("bob", spec("another"))).owner == "bob"


async def test_expired_sessions_make_room(manager: SessionManager, clock: FakeClock) -> None:
    for number in range(8):
        await manager.create("ada", spec(str(number), 10))
    clock.turn(11)

    assert [(await manager.create("bob", spec())).number for _ in range(8)] == list(range(9, 17))


async def test_a_refused_update_changes_nothing(manager: SessionManager, clock: FakeClock) -> None:
    session = await manager.create("ada", spec("a", 100))
    before = (session.expires_s, session.used_s, dict(session.labels))
    clock.turn(10)
    with pytest.raises(InvalidInput):
        manager.update("ada", "a", SessionChange(expiration=Expiration(ttl_s=-1), labels={"new": "label"}))
    assert (session.expires_s, session.used_s, session.labels) == before
