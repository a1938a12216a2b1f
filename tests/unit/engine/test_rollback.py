"""A session that goes on from a snapshot: whatever was lost behind it is computed again, and its caller sees each output once."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellstate_service.engine.core import EngineCore
from cellstate_service.engine.outbox import Outbox
from cellstate_service.engine.request import Emit, Finish, Finished, Form, Generation, Outputs, Request
from cellstate_service.engine.resident import ResidentState
from cellstate_service.errors import Precondition, Reason
from cellstate_service.models.loading import LoadedModel
from tests.fake_clock import FakeClock
from tests.unit.engine.asking import consume, failure, generating, outbox, positions, resident_of, run, taken, values
from tests.unit.engine.conftest import new_core

CHUNKS = st.tuples(st.just("chunk"), st.integers(1, 6), st.sampled_from(Emit))
GENERATIONS = st.tuples(st.just("generate"), st.integers(1, 12), st.none())
FORMS = st.sampled_from([Form.TEXT, Form.TOKENS, Form.LOGITS])


def asked(box: Outbox, kind: str, steps: int, emit: Emit | None, form: Form) -> Request:
    if kind == "generate":
        return Request(box, generation=Generation(steps), form=Form.TEXT)
    return Request(box, inputs=np.arange(steps, dtype=np.int64) % 5, emit=emit or Emit.NONE, form=form)


def by_position(events: list[Any], above: int = 0) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for event in events:
        if isinstance(event, Outputs):
            for index, value in enumerate(event.values):
                position = event.first_position + index + 1
                assert position not in found, "an output came twice"
                if position > above:
                    found[position] = value if isinstance(value, int) else value.tobytes()
    return found


def text_above(events: list[Any], position: int) -> str:
    parts = [event for event in events if isinstance(event, Outputs) and event.position > position]
    assert all(event.first_position >= position for event in parts), "a block straddles what the caller has"
    return "".join(event.text for event in parts)


@given(st.lists(st.one_of(CHUNKS, GENERATIONS), min_size=1, max_size=5), FORMS, st.integers(0, 30), st.data())
def test_what_came_after_a_snapshot_comes_again_from_where_the_caller_stands(
    tokens_model: LoadedModel, plan: list[Any], form: Form, steps: int, data: st.DataObject
) -> None:
    core, resident, box = new_core(tokens_model, FakeClock()), resident_of(tokens_model, 7), outbox()
    position = 0
    for index, (kind, count, emit) in enumerate(plan):
        core.accept(resident, replace(asked(box, kind, count, emit, form), position=0 if index == 0 else None))
    for _ in range(steps):
        core.step()
    if resident.slot is None:
        return
    kept = core.slots.read(resident)
    run(core)
    events = taken(core, box)
    ends = sorted({0, *(event.position for event in events)})  # how many steps come at once depends on how long they take: that is not to change what is drawn
    received = ends[data.draw(st.integers(0, 999), "received") * len(ends) // 1000]

    other, again, second = new_core(tokens_model, FakeClock()), resident_of(tokens_model), outbox()
    other.slots.acquire(again, replace(kept, rolled_back=True))
    other.acknowledge(again, received, running=False)
    first = 0
    for kind, count, emit in plan:
        if first + count + (kind == "generate" and first == 0) > min(kept.position, received):
            other.accept(again, replace(asked(second, kind, count, emit, form), position=first))
        first += count + (kind == "generate" and first == 0)
        position += count
    run(other)
    repeated = taken(other, second)
    assert by_position(repeated) == by_position(events, received)
    assert text_above(repeated, received) == "".join(event.text for event in events if isinstance(event, Outputs) and event.position > received)
    assert again.position == resident.position
    assert core.slots.read(resident).last_output.tobytes() == other.slots.read(again).last_output.tobytes()


def rolled_back_to(model: LoadedModel, position: int) -> tuple[EngineCore, Any, ResidentState]:
    core, resident, box = new_core(model, FakeClock()), resident_of(model, 7), outbox()
    core.accept(resident, consume(box, *range(3), position=0))
    core.accept(resident, generating(box, position - 3))
    run(core)
    kept = replace(core.slots.read(resident), rolled_back=True)
    other, again = new_core(model, FakeClock()), resident_of(model)
    other.slots.acquire(again, kept)
    return other, again, kept


@pytest.mark.parametrize("position", [None, 11, 100])
def test_nobody_is_silently_given_an_older_state(tokens_model: LoadedModel, position: int | None) -> None:
    core, resident, _ = rolled_back_to(tokens_model, 10)
    box = outbox()
    core.accept(resident, consume(box, 1, position=position))
    run(core)
    error = failure(taken(core, box))
    assert (type(error), error.reason, error.metadata["position"]) == (Precondition, Reason.SESSION_ROLLED_BACK, "10")


def test_who_says_the_position_goes_on(tokens_model: LoadedModel) -> None:
    core, resident, _ = rolled_back_to(tokens_model, 10)
    box, following = outbox(), outbox()
    core.accept(resident, consume(box, 1, position=10))
    core.accept(resident, consume(following, 1))
    run(core)
    assert len(values(taken(core))) == 2


def test_who_catches_up_is_answered_from_where_it_stands_also_where_the_session_moves_meanwhile(tokens_model: LoadedModel) -> None:
    core, resident, _ = rolled_back_to(tokens_model, 10)
    core.acknowledge(resident, 14, running=False)
    core.accept(resident, consume(outbox(), 1, 2, position=10))
    run(core)
    assert values(taken(core)) == []
    other, moved = new_core(tokens_model, FakeClock()), resident_of(tokens_model)
    other.slots.acquire(moved, core.slots.read(resident))
    box = outbox()
    other.acknowledge(moved, 14, running=False)
    other.accept(moved, consume(box, 3, 4, 5, 6, position=12))
    run(other)
    assert positions(taken(other, box)) == [14, 15]


def test_a_stop_takes_effect_where_its_caller_stands_at_the_earliest(tokens_model: LoadedModel) -> None:
    core, resident, _ = rolled_back_to(tokens_model, 10)
    core.acknowledge(resident, 20, running=False)
    box = outbox()
    core.accept(resident, consume(box, 1, position=10))
    core.accept(resident, generating(box, 100))
    core.stop_generation(resident, box)
    run(core)
    ends = [event.position for event in taken(core, box) if not isinstance(event, Outputs)]
    assert ends[0] == 11
    assert len(set(ends[1:])) == 1
    assert 20 <= ends[1] < 110


def test_who_has_all_outputs_and_not_the_end_is_told_that_also_from_a_snapshot(tokens_model: LoadedModel) -> None:
    core, resident, box = new_core(tokens_model, FakeClock()), resident_of(tokens_model, 7), outbox()
    core.accept(resident, consume(box, *range(3), position=0))
    core.accept(resident, generating(box, 5))
    run(core)
    core.acknowledge(resident, 8, running=False)
    other, again = new_core(tokens_model, FakeClock()), resident_of(tokens_model)
    other.slots.acquire(again, core.slots.read(resident))
    box = outbox()
    other.acknowledge(again, 8, running=False)
    other.accept(again, generating(box, 5, position=3))
    run(other)
    (ended,) = taken(other, box)
    assert isinstance(ended, Finished)
    assert (ended.reason, ended.position, ended.generated_steps) == (Finish.MAX_STEPS, 8, 5)


def test_who_has_less_than_the_caller_before_gets_all_outputs(tokens_model: LoadedModel) -> None:
    core, resident, _ = rolled_back_to(tokens_model, 10)
    core.acknowledge(resident, 14, running=False)
    core.accept(resident, consume(outbox(), 1, position=14))
    assert failure(taken(core)).reason is Reason.SESSION_ROLLED_BACK
    box = outbox()
    core.acknowledge(resident, 10, running=False)
    core.accept(resident, consume(box, 5, 6, position=10))
    run(core)
    assert positions(taken(core, box)) == [10, 11]


def test_who_comes_while_a_session_catches_up_is_told(tokens_model: LoadedModel) -> None:
    core, resident, _ = rolled_back_to(tokens_model, 10)
    core.acknowledge(resident, 14, running=False)
    core.accept(resident, consume(outbox(), 1, position=10))
    run(core)
    core.accept(resident, consume(outbox(), 1))
    assert failure(taken(core)).reason is Reason.SESSION_ROLLED_BACK


def test_an_acknowledgement_beyond_the_position_is_believed_after_a_rollback_only(tokens_model: LoadedModel) -> None:
    core, resident = new_core(tokens_model, FakeClock()), resident_of(tokens_model)
    box = outbox()
    core.acknowledge(resident, 1000, running=False)
    core.accept(resident, consume(box, 1, 2, position=0))
    run(core)
    assert len(values(taken(core))) == 2


@pytest.mark.parametrize(("end", "steps"), [(5, 5), (8, 8), (20, 10)])
def test_a_request_ends_at_its_end_position(tokens_model: LoadedModel, end: int, steps: int) -> None:
    core, resident, box = new_core(tokens_model, FakeClock()), resident_of(tokens_model), outbox()
    core.accept(resident, consume(box, *([1] * 6), position=0, end_position=end))
    run(core)
    consumed = min(end, 6)
    core.accept(resident, generating(box, 4, position=consumed, end_position=end))
    run(core)
    finished = [event for event in taken(core) if isinstance(event, Finished)]
    assert (finished[-1].position, resident.position) == (steps, steps)
    assert finished[-1].reason is (Finish.MAX_STEPS if end > 10 else Finish.STOP_DIRECTIVE)


def test_a_generation_that_was_stopped_ends_there_again(tokens_model: LoadedModel) -> None:
    core, resident, kept = rolled_back_to(tokens_model, 10)
    box = outbox()
    core.acknowledge(resident, 12, running=False)
    core.accept(resident, generating(box, kept.position - 3, position=3, end_position=7))
    run(core)
    assert resident.position == 10, "it had gone further before the snapshot"
