"""The engine's core over a tiny real model, without threads: what is asked ends exactly once, in order, whatever happens in between."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellstate_service.engine.core import EngineCore
from cellstate_service.engine.outbox import Outbox
from cellstate_service.engine.request import Emit, Event, Failed, Finish, Finished, Form, Generation, Request, Sampling, StepOutput, StopTaken
from cellstate_service.engine.resident import Resident
from cellstate_service.errors import Aborted, DeadlinePassed, Exhausted, InvalidInput, NotFound, Precondition, StepFailed, Unavailable
from cellstate_service.models.loading import LoadedModel
from tests.unit.engine.conftest import FakeClock, new_core

WIDE_OPEN = 1 << 30


def resident_of(model: LoadedModel, seed: int = 0) -> Resident:
    return Resident(seed, None if model.tokenizer is None else model.tokenizer.decoder())


def outbox(window: int = WIDE_OPEN) -> Outbox:
    return Outbox(window, 64)


def consume(box: Outbox, *tokens: int, emit: Emit = Emit.ALL, **parts: Any) -> Request:
    return Request(box, inputs=np.array(tokens, dtype=np.int64), emit=emit, form=Form.LOGITS, **parts)


def generating(box: Outbox, steps: int, **parts: Any) -> Request:
    return Request(box, generation=Generation(steps), form=Form.TOKENS, **parts)


def taken(core: EngineCore, box: Outbox | None = None) -> list[Event]:
    """Take the events of one call (or all) that the core holds."""
    mine = [event for owner, event in core.events if box is None or owner is box]
    core.events = [(owner, event) for owner, event in core.events if box is not None and owner is not box]
    return mine


def run(core: EngineCore, most: int = 10_000) -> None:
    while core.has_work:
        core.step()
        most -= 1
        assert most, "the core does not come to an end"


def positions(events: list[Event]) -> list[int]:
    return [event.position for event in events if isinstance(event, StepOutput)]


def failure(events: list[Event]) -> Any:
    """The error that the events end with."""
    assert [isinstance(event, Failed) for event in events] == [False] * (len(events) - 1) + [True]
    last = events[-1]
    assert isinstance(last, Failed)
    return last.error


@pytest.fixture
def core(tokens_model: LoadedModel, clock: FakeClock) -> EngineCore:
    return new_core(tokens_model, clock)


@pytest.fixture
def broken(tokens_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the network's next step raise."""
    step, faults = tokens_model.network.step, [0]

    def sometimes(*given: Any) -> Any:
        if faults[0]:
            faults[0] -= 1
            raise RuntimeError("injected")
        return step(*given)

    monkeypatch.setattr(tokens_model.network, "step", sometimes)
    return lambda: faults.__setitem__(0, 1)


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
    before, _ = taken(core)
    core.accept(resident, Request(box, emit=Emit.LAST, form=Form.LOGITS))
    again, ended = taken(core)
    assert isinstance(before, StepOutput)
    assert isinstance(again, StepOutput)
    assert before.position == again.position == 2
    assert np.array_equal(before.value, again.value)
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
    events = [event for event in taken(core) if not isinstance(event, StepOutput)]
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
    assert [type(event) for event in events] == [StepOutput] * 3 + [Finished, StopTaken]
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


def test_a_failed_batch_leaves_states_unchanged_and_the_next_one_runs(core: EngineCore, tokens_model: LoadedModel, broken: Callable[[], None]) -> None:
    residents, boxes = [resident_of(tokens_model, seed) for seed in range(3)], [outbox() for _ in range(3)]
    for resident, box in zip(residents, boxes, strict=True):
        core.accept(resident, consume(box, 1, 2, 3))
        core.accept(resident, generating(box, 5))
    for _ in range(4):
        core.step()
    before = [core.read(resident) for resident in residents]
    taken(core)
    broken()
    core.step()
    for resident, box, state in zip(residents, boxes, before, strict=True):
        error = failure(taken(core, box))
        assert isinstance(error, StepFailed)
        assert error.metadata["position"] == "4"
        after = core.read(resident)
        assert (after.position, after.tail_tokens, after.tail_text) == (state.position, state.tail_tokens, state.tail_text)
        assert all(np.array_equal(after.tensors[name], state.tensors[name]) for name in state.tensors)
    assert not core.has_work
    for resident in residents:
        core.accept(resident, generating(outbox(), 2))
    run(core)
    assert [resident.position for resident in residents] == [6, 6, 6]


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
    values = []
    for _ in range(2):
        resident = resident_of(tokens_model)
        core.accept(resident, consume(outbox(), 1, 2, 3))
        run(core)
        values.append([event.value for event in taken(core) if isinstance(event, StepOutput)])
        core.release(resident)
    assert np.array_equal(*values)


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
        core.read(resident)


def test_stopping_fails_what_runs(core: EngineCore, tokens_model: LoadedModel) -> None:
    boxes = [outbox() for _ in range(12)]
    for box in boxes:
        core.accept(resident_of(tokens_model), generating(box, 500))
    core.step()
    core.fail_all()
    assert not core.has_work
    assert all(isinstance(failure(taken(core, box)), Unavailable) for box in boxes)


# -- states


def test_a_fork_goes_on_as_its_source_would(core: EngineCore, tokens_model: LoadedModel) -> None:
    source, fork, box, other = resident_of(tokens_model, 5), resident_of(tokens_model, 5), outbox(), outbox()
    core.accept(source, generating(box, 20))
    for _ in range(8):
        core.step()
    assert core.fork(source, fork) == 8
    taken(core)
    core.accept(fork, generating(other, 13))
    run(core)
    own, forked = taken(core, box)[:-1], taken(core, other)[:-1]
    assert own == forked


def test_a_state_read_and_given_to_another_session_goes_on_the_same(core: EngineCore, tokens_model: LoadedModel) -> None:
    source, copy = resident_of(tokens_model, 5), resident_of(tokens_model, 6)
    core.accept(source, generating(outbox(), 7))
    run(core)
    core.acquire(copy, core.read(source))
    taken(core)
    for resident in (source, copy):
        core.accept(resident, generating(outbox(), 9))
    run(core)
    values = [event.value for event in taken(core) if isinstance(event, StepOutput)]
    assert values[::2] == values[1::2]


def test_a_reset_session_is_a_new_one(core: EngineCore, tokens_model: LoadedModel) -> None:
    resident, found = resident_of(tokens_model, 5), []
    for _ in range(2):
        core.accept(resident, generating(outbox(), 9))
        run(core)
        found.append([event for event in taken(core) if isinstance(event, StepOutput)])
        core.reset(resident, 5)
        assert resident.position == 0
    assert found[0] == found[1]


# -- the law


COMMANDS = st.lists(
    st.tuples(
        st.sampled_from(
            ["consume", "generate", "answer", "stop", "wrong", "open", "cancel", "fail", "release", "late", "step", "step", "step", "break", "take", "tick"]
        ),
        st.integers(0, 3),
        st.integers(1, 7),
    ),
    max_size=70,
)


class Driver:
    """Drives a core as engine and calls would, and knows what every call must be told."""

    def __init__(self, model: LoadedModel, clock: FakeClock, breaks: Callable[[], None]) -> None:
        self.core = new_core(model, clock, max_batch_rows=2, slots=3)
        self.model, self.clock, self.breaks = model, clock, breaks
        self.residents = [resident_of(model, seed) for seed in range(4)]
        self.boxes = [outbox(window=3) for _ in range(4)]
        self.owed: dict[Outbox, list[str]] = {box: [] for box in self.boxes}
        self.told: dict[Outbox, list[Event]] = {box: [] for box in self.boxes}
        self.dropped: set[Outbox] = set()

    def do(self, command: str, number: int, size: int) -> None:
        resident, box = self.residents[number], self.boxes[number]
        if command in {"consume", "generate", "answer", "late", "wrong"}:
            self.submit(command, number, size)
        elif command == "stop":
            self.owed[box].append("stop")
            self.core.stop_generation(resident, box)
        elif command in {"cancel", "fail"}:
            self.core.drop(resident, box, Aborted("test") if command == "fail" else None)
            self.dropped.add(box)
        elif command == "open":
            self.core.drop(resident, box)
            self.dropped.add(box)
            self.renew(number)
        elif command == "release":
            self.core.release(resident)
            self.dropped.add(box)
            self.residents[number] = resident_of(self.model, number)
            self.renew(number)
        elif command == "take":
            self.deliver(number)
        elif command == "tick":
            self.clock.time_s += size
        elif command == "break":
            self.breaks()
        else:
            self.core.step()

    def renew(self, number: int) -> None:
        self.boxes[number] = outbox(window=3)
        self.owed[self.boxes[number]] = []
        self.told[self.boxes[number]] = []

    def submit(self, command: str, number: int, size: int) -> None:
        box = self.boxes[number]
        request = {
            "consume": lambda: consume(box, *range(size)),
            "late": lambda: consume(box, *range(size), deadline_s=self.clock.time_s + size),
            "generate": lambda: generating(box, size, sampling=Sampling(temperature=0)),
            "answer": lambda: Request(box, emit=Emit.LAST, form=Form.LOGITS),
            "wrong": lambda: consume(box, 1, position=10_000),
        }[command]()
        self.owed[box].append("generate" if command == "generate" else "consume")
        self.core.accept(self.residents[number], request)

    def deliver(self, number: int) -> None:
        """Hand all events over, as the loop does, and let one reader take what it has."""
        for box, event in taken_pairs(self.core):
            self.told[box].append(event)
        box = self.boxes[number]
        box.taken = box.sent
        if box.paused:
            self.core.make_ready(self.residents[number])

    def finish(self) -> None:
        for _ in range(1000):
            for number in range(4):
                self.deliver(number)
            if not self.core.has_work:
                return
            self.core.step()
        raise AssertionError("work goes on without end")

    def check(self) -> None:
        for box, events in self.told.items():
            endings = [event for event in events if not isinstance(event, StepOutput)]
            failures = [event for event in endings if isinstance(event, Failed)]
            kinds = [
                "stop" if isinstance(event, StopTaken) else "generate" if event.generates else "consume" for event in endings if not isinstance(event, Failed)
            ]
            owed = self.owed[box]
            assert len(failures) <= 1
            assert not failures or events[-1] is failures[0], "something came after the error"
            assert kinds == owed[: len(kinds)], "ended out of order"
            if not failures and box not in self.dropped:
                assert len(kinds) == len(owed), "a request never ended"
            steps = positions(events)
            assert steps == sorted(set(steps)), "a step was repeated or out of order"
        for resident in self.residents:
            assert not resident.requests


def taken_pairs(core: EngineCore) -> list[tuple[Outbox, Event]]:
    events, core.events = core.events, []
    return events


@settings(deadline=None, max_examples=150)
@given(commands=COMMANDS)
def test_every_accepted_request_ends_exactly_once(tokens_model: LoadedModel, commands: list[tuple[str, int, int]]) -> None:
    network, faults = tokens_model.network, [0]
    step = type(network).step

    def sometimes(*given: Any) -> Any:
        if faults[0]:
            faults[0] = 0
            raise RuntimeError("injected")
        return step(network, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "step", sometimes)
        driver = Driver(tokens_model, FakeClock(), lambda: faults.__setitem__(0, 1))
        for command in commands:
            driver.do(*command)
        driver.finish()
        driver.check()
