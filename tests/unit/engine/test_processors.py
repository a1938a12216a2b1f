"""The threads that engines share."""

from cellstate_service.engine.processors import RECENT_S, Processors
from tests.unit.engine.conftest import FakeClock


def test_an_engine_that_computes_alone_has_all_threads() -> None:
    processors = Processors(4, FakeClock())
    assert processors.share() == 4
    processors.begin("one")
    assert processors.share() == 4


def test_engines_that_compute_at_once_share_them() -> None:
    processors = Processors(4, FakeClock())
    shares = []
    for name in ("one", "two", "three", "four", "five"):
        processors.begin(name)
        shares.append(processors.share())
    assert shares == [4, 2, 1, 1, 1]


def test_an_engine_that_was_idle_for_a_while_takes_no_share() -> None:
    clock = FakeClock()
    processors = Processors(2, clock)
    processors.begin("one")
    processors.begin("two")
    processors.end("two")
    assert processors.share() == 1, "it may be idle between two steps of callers that wait for each"
    clock.time_s += 1.01 * RECENT_S
    assert processors.share() == 2
    processors.begin("two")
    assert processors.share() == 1
