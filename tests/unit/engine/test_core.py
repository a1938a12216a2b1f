"""The engine's core over a tiny real model, without threads: what is asked ends exactly once, in order, whatever happens in between."""

import numpy as np
import pytest

from cellstate_service.engine.core import EngineCore
from cellstate_service.engine.outbox import Outbox
from cellstate_service.engine.request import Emit, Finish, Finished, Form, Generation, Outputs, Request, Sampling, StopTaken
from cellstate_service.errors import Aborted, DeadlinePassed, Exhausted, InvalidInput, NotFound, Precondition, Reason, StepFailed, Unavailable
from cellstate_service.models.loading import LoadedModel
from tests.unit.engine.asking import consume, failure, generating, outbox, positions, resident_of, run, taken, values
from tests.unit.engine.conftest import FakeClock, breakable, new_core


@pytest.fixture
def core(tokens_model: LoadedModel, clock: FakeClock) -> EngineCore:
    return new_core(tokens_model, clock)


# -- fairness


def test_sessions_beyond_the_batch_step_equally_often(tokens_model: LoadedModel, clock: FakeClock) -> None:
    core = new_core(tokens_model, clock, max_batch_rows=4)
    residents = [resident_of(tokens_model) for _ in range(14)]
    for number, resident in enumerate(residents):
        core.accept(resident, generating(outbox(), 1000 if number else 3))
    for steps in range(1, 200):
        core.step()
        counts = [resident.position for resident in residents[1:]]
        assert max(counts) - min(counts) <= 1, f"after {steps} steps"


# -- order and ends


def test_requests_of_a_session_run_in_the_order_they_came(core: EngineCore, tokens_model: LoadedModel) -> None:
    resident, box = resident_of(tokens_model), outbox()
    for request in (consume(box, 1, 2), generating(box, 3), consume(box, 4, emit=Emit.LAST), generating(box, 1), consume(box, 5, 6, emit=Emit.NONE)):
        core.accept(resident, request)
    run(core)
    events = taken(core)
    assert positions(events) == list(range(7))
    ended = [event for event in events if isinstance(event, Finished)]
    assert [(event.position, event.consumed_steps, event.generated_steps) for event in ended] == [(2, 2, 0), (5, 0, 3), (6, 1, 0), (7, 0, 1), (9, 2, 0)]


def test_a_session_without_output_starts_from_the_start_value(core: EngineCore, tokens_model: LoadedModel) -> None:
    resident, box = resident_of(tokens_model), outbox()
    core.accept(resident, generating(box, 3))
    run(core)
    events = taken(core)
    assert positions(events) == [1, 2, 3]
    assert resident.position == 4


def test_generation_from_nothing_without_start_value_is_refused(numeric_model: LoadedModel, clock: FakeClock) -> None:
    core, box = new_core(numeric_model, clock), outbox()
    core.accept(resident_of(numeric_model), Request(box, generation=Generation(3)))
    assert isinstance(failure(taken(core)), Precondition)
    assert not core.has_work


def test_the_last_output_is_answered_without_a_step(core: EngineCore, tokens_model: LoadedModel) -> None:
    resident, box = resident_of(tokens_model), outbox()
    core.accept(resident, consume(box, 1, 2, 3, emit=Emit.LAST))
    run(core)
    before, *_ = taken(core)
    core.accept(resident, Request(box, emit=Emit.LAST, form=Form.LOGITS))
    again, ended = taken(core)
    assert isinstance(before, Outputs)
    assert isinstance(again, Outputs)
    assert before.first_position == again.first_position == 2
    assert np.array_equal(before.values, again.values)
    assert isinstance(ended, Finished)
    assert (ended.position, ended.consumed_steps) == (3, 0)


@pytest.mark.parametrize("position", [1, 3, 99])
def test_another_position_is_refused_and_nothing_behind_it_runs(core: EngineCore, tokens_model: LoadedModel, position: int) -> None:
    resident, box = resident_of(tokens_model), outbox()
    for request in (consume(box, 1, 2), consume(box, 3, position=position), consume(box, 4)):
        core.accept(resident, request)
    run(core)
    core.accept(resident, consume(box, 5))
    run(core)
    events = taken(core)
    assert positions(events) == [0, 1]
    assert failure(events).metadata["position"] == "2"
    assert resident.position == 2


def test_a_refusal_comes_after_what_was_sent_before_it(core: EngineCore, tokens_model: LoadedModel) -> None:
    resident, box = resident_of(tokens_model), outbox()
    core.accept(resident, consume(box, 1, 2))
    core.accept(resident, Request(box, refusal=InvalidInput("wrong message")))
    run(core)
    events = taken(core)
    assert positions(events) == [0, 1]
    assert isinstance(failure(events), InvalidInput)


# -- stops


def test_a_stop_ends_running_and_waiting_generations_at_one_position(core: EngineCore, tokens_model: LoadedModel) -> None:
    resident, box = resident_of(tokens_model), outbox()
    core.accept(resident, consume(box, 1))
    core.accept(resident, generating(box, 500))
    core.accept(resident, generating(box, 500))
    for _ in range(6):
        core.step()
    core.stop_generation(resident, box)
    core.accept(resident, consume(box, 2))
    run(core)
    events = [event for event in taken(core) if not isinstance(event, Outputs)]
    assert [(type(event).__name__, getattr(event, "position", None)) for event in events] == [
        ("Finished", 1),
        ("Finished", 6),
        ("Finished", 6),
        ("StopTaken", 6),
        ("Finished", 7),
    ]
    assert [event.reason for event in events[1:3] if isinstance(event, Finished)] == [Finish.STOP_DIRECTIVE] * 2


def test_a_stop_reaches_a_generation_that_its_reader_paused(core: EngineCore, tokens_model: LoadedModel) -> None:
    resident, box = resident_of(tokens_model), outbox(window=3)
    core.accept(resident, generating(box, 500))
    run(core)
    assert box.paused
    core.stop_generation(resident, box)
    events = taken(core)
    assert [type(event) for event in events] == [Outputs] * 3 + [Finished, StopTaken]
    assert not core.has_work


def test_a_stop_waits_for_inputs_before_it(core: EngineCore, tokens_model: LoadedModel) -> None:
    resident, box = resident_of(tokens_model), outbox()
    core.accept(resident, consume(box, *range(5)))
    core.accept(resident, generating(box, 9))
    core.stop_generation(resident, box)
    run(core)
    events = taken(core)
    assert positions(events) == [0, 1, 2, 3, 4]
    assert events[-1] == StopTaken(5)


# -- pauses


def test_a_paused_session_waits_for_its_reader_and_nobody_else_does(core: EngineCore, tokens_model: LoadedModel) -> None:
    slow, quick, box, other = resident_of(tokens_model), resident_of(tokens_model), outbox(window=4), outbox()
    core.accept(slow, generating(box, 10))
    core.accept(quick, generating(other, 100))
    run(core)
    assert (slow.position, quick.position) == (5, 101)
    assert box.paused
    box.taken += 1
    assert not box.has_room_again
    box.taken += 1
    core.make_ready(slow)
    run(core)
    assert slow.position == 7
    box.taken += 100
    core.make_ready(slow)
    run(core)
    assert positions(taken(core, box)) == list(range(1, 11))


def test_a_full_outbox_holds_back_the_next_request_too(core: EngineCore, tokens_model: LoadedModel) -> None:
    resident, box = resident_of(tokens_model), outbox(window=2)
    for token in range(6):
        core.accept(resident, consume(box, token))
    run(core)
    assert resident.position == 2


# -- failures


def test_a_failed_batch_leaves_states_unchanged_and_the_next_one_runs(tokens_model: LoadedModel, clock: FakeClock) -> None:
    tokens_model, program = breakable(tokens_model)
    core = new_core(tokens_model, clock)
    residents, boxes = [resident_of(tokens_model, seed) for seed in range(3)], [outbox() for _ in range(3)]
    for resident, box in zip(residents, boxes, strict=True):
        core.accept(resident, consume(box, 1, 2, 3))
        core.accept(resident, generating(box, 5))
    for _ in range(3):  # the chunk, as two steps and one, then one token
        core.step()
    before = [core.slots.read(resident) for resident in residents]
    taken(core)
    program.breaks.add("advance")
    core.step()
    for resident, box, state in zip(residents, boxes, before, strict=True):
        error = failure(taken(core, box))
        assert isinstance(error, StepFailed)
        assert error.metadata["position"] == "4"
        after = core.slots.read(resident)
        assert (after.position, after.tail_tokens, after.tail_text) == (state.position, state.tail_tokens, state.tail_text)
        assert all(np.array_equal(after.tensors[name], state.tensors[name]) for name in state.tensors)
    assert not core.has_work
    for resident in residents:
        core.accept(resident, generating(outbox(), 2))
    run(core)
    assert [resident.position for resident in residents] == [6, 6, 6]


def test_a_fault_after_the_computation_leaves_states_unchanged(tokens_model: LoadedModel, clock: FakeClock) -> None:
    """The head comes after the cells: where it fails, no state may have moved."""
    tokens_model, program = breakable(tokens_model)
    core = new_core(tokens_model, clock)
    residents, boxes = [resident_of(tokens_model, seed) for seed in range(2)], [outbox() for _ in range(2)]
    for tokens in (range(2), range(2, 4)):
        core.accept(residents[0], consume(boxes[0], *tokens))
        core.accept(residents[1], Request(boxes[1], inputs=np.array(tokens), emit=Emit.ALL, form=Form.TOKENS))
    core.step()
    before = [core.slots.read(resident) for resident in residents]
    program.breaks.add("head")
    core.step()
    for resident, box, state in zip(residents, boxes, before, strict=True):
        assert failure(taken(core, box)).metadata["position"] == "2"
        after = core.slots.read(resident)
        assert after.position == state.position == 2
        assert all(np.array_equal(after.tensors[name], state.tensors[name]) for name in state.tensors)


def test_a_deadline_ends_a_call_between_two_steps(core: EngineCore, tokens_model: LoadedModel, clock: FakeClock) -> None:
    resident, box, other = resident_of(tokens_model), outbox(), outbox()
    core.accept(resident, generating(box, 500, deadline_s=105.0))
    core.accept(resident, consume(other, 1, emit=Emit.LAST))
    for _ in range(3):
        core.step()
    clock.time_s = 105.0
    core.step()
    error = failure(taken(core, box))
    assert isinstance(error, DeadlinePassed)
    assert error.metadata["position"] == "3"
    run(core)
    assert positions(taken(core, other)) == [3]


def test_without_a_free_slot_a_request_fails_and_a_freed_slot_serves_the_next(tokens_model: LoadedModel, clock: FakeClock) -> None:
    core = new_core(tokens_model, clock, slots=2)
    residents = [resident_of(tokens_model) for _ in range(3)]
    boxes = [outbox() for _ in residents]
    for resident, box in zip(residents, boxes, strict=True):
        core.accept(resident, consume(box, 1))
    assert isinstance(failure(taken(core, boxes[2])), Exhausted)
    core.release(residents[0])
    again = outbox()
    core.accept(residents[2], consume(again, 1))
    run(core)
    assert positions(taken(core, again)) == [0]


def test_a_slot_starts_at_zero_whoever_had_it(tokens_model: LoadedModel, clock: FakeClock) -> None:
    core = new_core(tokens_model, clock, slots=1)
    found = []
    for _ in range(2):
        resident = resident_of(tokens_model)
        core.accept(resident, consume(outbox(), 1, 2, 3))
        run(core)
        found.append(np.stack(values(taken(core))))
        core.release(resident)
    first, second = found
    assert np.array_equal(first, second)


def test_a_dropped_call_takes_no_further_step_and_frees_the_session(core: EngineCore, tokens_model: LoadedModel) -> None:
    resident, old, new = resident_of(tokens_model), outbox(), outbox()
    core.accept(resident, generating(old, 500))
    for _ in range(4):
        core.step()
    core.drop(resident, old, Aborted("superseded"))
    core.accept(resident, generating(new, 2))
    core.accept(resident, generating(old, 2))
    core.stop_generation(resident, old)
    run(core)
    assert failure(taken(core, old)).metadata["position"] == "4"
    assert positions(taken(core, new)) == [4, 5]
    assert resident.position == 6


def test_requests_to_a_session_that_is_gone_fail(core: EngineCore, tokens_model: LoadedModel) -> None:
    resident, box = resident_of(tokens_model), outbox()
    core.accept(resident, generating(outbox(), 9))
    core.release(resident)
    core.accept(resident, consume(box, 1))
    core.make_ready(resident)
    assert not core.has_work
    assert isinstance(failure(taken(core, box)), NotFound)
    with pytest.raises(NotFound):
        core.slots.read(resident)


def test_stopping_fails_what_runs(core: EngineCore, tokens_model: LoadedModel) -> None:
    boxes = [outbox() for _ in range(12)]
    for box in boxes:
        core.accept(resident_of(tokens_model), generating(box, 500))
    core.step()
    core.fail_all(lambda: Unavailable("stopping"))
    assert not core.has_work
    assert all(isinstance(failure(taken(core, box)), Unavailable) for box in boxes)


def test_failing_all_reaches_those_that_are_paused(core: EngineCore, tokens_model: LoadedModel) -> None:
    box = outbox(window=2)
    core.accept(resident_of(tokens_model), generating(box, 500))
    run(core)
    assert box.paused
    core.fail_all(lambda: Unavailable("stopping"))
    assert isinstance(failure(taken(core, box)), Unavailable)


def test_releasing_a_session_tells_the_call_that_is_on_it(core: EngineCore, tokens_model: LoadedModel) -> None:
    resident, box = resident_of(tokens_model), outbox()
    core.accept(resident, generating(box, 500))
    core.step()
    core.release(resident)
    assert failure(taken(core, box)).reason is Reason.SESSION_CLOSED


# -- states


def test_a_fork_goes_on_as_its_source_would(core: EngineCore, tokens_model: LoadedModel) -> None:
    source, fork, box, other = resident_of(tokens_model, 5), resident_of(tokens_model, 5), outbox(), outbox()
    core.accept(source, generating(box, 20))
    for _ in range(8):
        core.step()
    assert core.slots.fork(source, fork) == 8
    taken(core)
    core.accept(fork, generating(other, 13))
    run(core)
    own, forked = taken(core, box)[:-1], taken(core, other)[:-1]
    assert own == forked


def test_a_state_read_and_given_to_another_session_goes_on_the_same(core: EngineCore, tokens_model: LoadedModel) -> None:
    source, copy = resident_of(tokens_model, 5), resident_of(tokens_model, 6)
    core.accept(source, generating(outbox(), 7))
    run(core)
    core.slots.acquire(copy, core.slots.read(source))
    taken(core)
    for resident in (source, copy):
        core.accept(resident, generating(outbox(), 9))
    run(core)
    made = values(taken(core))
    assert made[::2] == made[1::2]


def test_a_reset_session_is_a_new_one(core: EngineCore, tokens_model: LoadedModel) -> None:
    resident, found = resident_of(tokens_model, 5), []
    for _ in range(2):
        core.accept(resident, generating(outbox(), 9))
        run(core)
        found.append([event for event in taken(core) if isinstance(event, Outputs)])
        core.slots.reset(resident, 5)
        assert resident.position == 0
    assert found[0] == found[1]


def test_what_a_session_draws_does_not_depend_on_steps_taken_without_its_batch(tokens_model: LoadedModel, clock: FakeClock) -> None:
    """The same two requests step together, then one alone takes a long piece of its input while the other's reader is behind, then both together again."""
    sampling = Sampling(1.5)
    tokens = [number % 7 for number in range(40)]

    def asked(box: Outbox) -> Request:
        return Request(box, inputs=np.array(tokens), form=Form.TOKENS, generation=Generation(12), sampling=sampling)

    lone, own = new_core(tokens_model, clock), outbox()
    lone.accept(resident_of(tokens_model, 5), asked(own))
    run(lone)
    core, box, other = new_core(tokens_model, clock), outbox(), outbox(window=2)
    long, slow = resident_of(tokens_model, 5), resident_of(tokens_model, 6)
    core.accept(long, asked(box))
    core.accept(slow, generating(other, 60, sampling=sampling))
    for _ in range(100):
        core.step()
        if other.paused and long.position > 30:
            other.taken = other.sent
            core.make_ready(slow)
    assert values(taken(core, box)) == values(taken(lone, own))
