"""Admission: by number, and by how long steps wait."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from cellstate_service.engine.load import EngineLoad
from cellstate_service.errors import Exhausted, Reason
from cellstate_service.sessions.admission import Admission


@dataclass
class Working:
    """What admission sees of an engine."""

    load: EngineLoad = field(default_factory=EngineLoad)


def refusal(admission: Admission, engine: Any) -> Exhausted:
    with pytest.raises(Exhausted) as caught:
        admission.enter(engine)
    assert caught.value.reason is Reason.OVERLOADED
    return caught.value


def test_calls_are_bounded_and_a_call_that_ends_makes_room() -> None:
    admission, engine = Admission(2, 1.0), Working()
    admission.enter(engine)  # type: ignore[arg-type]
    admission.enter(engine)  # type: ignore[arg-type]
    assert refusal(admission, engine).retry_after_s == 1.0
    admission.leave()
    admission.enter(engine)  # type: ignore[arg-type]


def test_a_slow_engine_takes_no_new_calls_until_it_is_quick_again_and_others_do() -> None:
    admission, slow, quick = Admission(100, 0.5), Working(), Working()
    for _ in range(50):
        slow.load.ran(0.3, ready=10, max_rows=4)
    error = refusal(admission, slow)
    assert "a step waits 0.60 s" in error.message, "three turns, of which one is its own"
    assert error.retry_after_s == pytest.approx(1.2, rel=0.01)
    admission.enter(quick)  # type: ignore[arg-type]
    slow.load.idle()
    admission.enter(slow)  # type: ignore[arg-type]


def test_a_late_event_loop_takes_no_new_calls() -> None:
    admission, engine = Admission(100, 0.5), Working()
    for _ in range(5):
        admission.lagged(5.0)
    refusal(admission, engine)
    for _ in range(50):
        admission.lagged(0.0)
    admission.enter(engine)  # type: ignore[arg-type]
