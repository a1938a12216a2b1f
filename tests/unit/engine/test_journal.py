"""What is asked again is answered again, and applied once."""

from typing import Any

import numpy as np
import pytest

from cellstate_service.engine import journal
from cellstate_service.engine.core import EngineCore
from cellstate_service.engine.journal import content_digest
from cellstate_service.engine.outbox import Outbox
from cellstate_service.engine.request import Emit, Failed, Finish, Finished, Form, Generation, Outputs, Request, Sampling, StopTaken
from cellstate_service.engine.resident import Resident
from cellstate_service.errors import Aborted, Precondition, Reason
from cellstate_service.models.loading import LoadedModel
from tests.unit.engine.asking import outbox, resident_of, run, taken
from tests.unit.engine.conftest import FakeClock, new_core


@pytest.fixture
def core(tokens_model: LoadedModel) -> EngineCore:
    return new_core(tokens_model, FakeClock())


@pytest.fixture
def resident(tokens_model: LoadedModel) -> Resident:
    return resident_of(tokens_model, 5)


def consume(box: Outbox, *tokens: int, **parts: Any) -> Request:
    return Request(box, **{"inputs": np.array(tokens, dtype=np.int64), "emit": Emit.ALL, "form": Form.LOGITS} | parts)


def generate(box: Outbox, steps: int, position: int | None = None) -> Request:
    return Request(box, generation=Generation(steps), form=Form.TOKENS, sampling=Sampling(1.0), position=position)


def ask(core: EngineCore, resident: Resident, *requests: Request) -> list[object]:
    """Hand requests of one call over, run them, and return what was told: outputs step by step, and how each ended."""
    box = requests[0].outbox
    for request in requests:
        core.accept(resident, request)
    run(core)
    told: list[object] = []
    for event in taken(core, box):
        if isinstance(event, Outputs):
            told += [(event.first_position + index, np.asarray(value).tobytes()) for index, value in enumerate(event.values)]
        elif isinstance(event, Finished):
            told.append((event.reason, event.position, event.consumed_steps, event.generated_steps))
        elif isinstance(event, Failed):
            told.append(event.error)
    return told


def failure(core: EngineCore, resident: Resident, request: Request) -> Reason:
    [error] = ask(core, resident, request)
    assert isinstance(error, (Aborted, Precondition))
    assert error.metadata["position"] == str(resident.position)
    return error.reason


def test_a_call_that_is_repeated_is_answered_again_and_applied_once(core: EngineCore, resident: Resident) -> None:
    def call() -> list[Request]:
        box = outbox()
        return [consume(box, 1, 2, 3, position=0), generate(box, 5), consume(box, 4)]

    first = ask(core, resident, *call())
    state = core.slots.read(resident)
    assert ask(core, resident, *call()) == first
    assert core.slots.read(resident).position == state.position == 9
    assert all(np.array_equal(state.tensors[name], tensor) for name, tensor in core.slots.read(resident).tensors.items())


def test_other_content_at_a_position_that_was_taken_is_a_conflict(core: EngineCore, resident: Resident) -> None:
    ask(core, resident, consume(outbox(), 1, 2, 3, position=0))
    for other in ((1, 2, 4), (1, 2), (1, 2, 3, 4)):
        assert failure(core, resident, consume(outbox(), *other, position=0)) is Reason.POSITION_CONFLICT
    assert failure(core, resident, consume(outbox(), 1, 2, 3, emit=Emit.LAST, position=0)) is Reason.POSITION_CONFLICT
    assert failure(core, resident, consume(outbox(), 2, position=1)) is Reason.POSITION_CONFLICT
    assert failure(core, resident, generate(outbox(), 3, position=0)) is Reason.POSITION_CONFLICT
    assert resident.position == 3


def test_a_position_that_was_not_reached_is_a_mismatch(core: EngineCore, resident: Resident) -> None:
    ask(core, resident, consume(outbox(), 1, position=0))
    assert failure(core, resident, consume(outbox(), 1, position=2)) is Reason.POSITION_MISMATCH


def test_what_was_cut_goes_on_where_it_stands(core: EngineCore, resident: Resident, tokens_model: LoadedModel) -> None:
    """Generated to 7 of 20 when its stream broke; asked again, it emits the first 7 again and the others for the first time."""
    ask(core, resident, consume(outbox(), 1, position=0))
    box = outbox()
    core.accept(resident, generate(box, 20, position=1))
    for _ in range(7):
        core.step()
    core.drop(resident, box)
    cut_at = resident.position
    assert 1 < cut_at < 21
    again = ask(core, resident, generate(outbox(), 20, position=1))
    other, other_core = resident_of(tokens_model, 5), new_core(tokens_model, FakeClock())
    ask(other_core, other, consume(outbox(), 1, position=0))
    assert again == ask(other_core, other, generate(outbox(), 20, position=1))
    assert resident.position == 21


def test_nobody_goes_on_in_the_middle_of_what_another_left(core: EngineCore, resident: Resident) -> None:
    box = outbox()
    ask(core, resident, consume(outbox(), 1, position=0))
    core.accept(resident, generate(box, 20, position=1))
    core.step()
    core.drop(resident, box)
    between = outbox()
    ask(core, resident, consume(between, 2, position=resident.position))
    assert failure(core, resident, generate(outbox(), 20, position=1)) in {Reason.POSITION_CONFLICT, Reason.POSITION_MISMATCH}


def test_the_next_call_says_that_the_one_before_was_received(core: EngineCore, resident: Resident) -> None:
    ask(core, resident, consume(outbox(), 1, 2, position=0))
    ask(core, resident, consume(outbox(), 3, position=2))
    assert failure(core, resident, consume(outbox(), 1, 2, position=0)) is Reason.POSITION_MISMATCH
    assert len(ask(core, resident, consume(outbox(), 3, position=2))) == 2


def test_without_a_position_nothing_is_kept(core: EngineCore, resident: Resident) -> None:
    ask(core, resident, consume(outbox(), 1, 2))
    assert resident.journal is None
    ask(core, resident, consume(outbox(), 1, 2))
    assert resident.position == 4


def test_an_old_repeat_cannot_hit_a_session_that_was_reset(core: EngineCore, resident: Resident) -> None:
    request = consume(outbox(), 1, 2, position=0)
    ask(core, resident, request)
    core.slots.reset(resident, 5)
    assert resident.journal is None
    assert resident.position == 0


def test_what_is_kept_is_bounded_and_the_oldest_is_forgotten(core: EngineCore, resident: Resident, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = 4 * (7 * 4 + journal.OUTPUTS_BYTES)
    monkeypatch.setattr(journal, "KEPT_BYTES", kept)
    box = outbox()
    ask(core, resident, *[consume(box, token, form=Form.LOGITS, position=token) for token in range(6)])
    assert resident.journal is not None
    assert sum(journal._bytes(outputs) for entry in resident.journal.kept(6).entries for outputs in entry.outputs) <= kept
    assert failure(core, resident, consume(outbox(), 0, form=Form.LOGITS, position=0)) is Reason.POSITION_MISMATCH
    assert len(ask(core, resident, consume(outbox(), 5, form=Form.LOGITS, position=5))) == 2


def test_what_was_acknowledged_is_not_told_again(core: EngineCore, resident: Resident) -> None:
    ask(core, resident, consume(outbox(), 1, position=0))
    whole = ask(core, resident, generate(outbox(), 12, position=1))
    core.acknowledge(resident, 1, running=False)
    assert ask(core, resident, generate(outbox(), 12, position=1)) == whole
    core.acknowledge(resident, 13, running=False)
    assert ask(core, resident, generate(outbox(), 12, position=1)) == [(Finish.MAX_STEPS, 13, 0, 12)]


def test_who_acknowledges_is_waited_for_and_nothing_is_forgotten(core: EngineCore, resident: Resident, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "KEPT_BYTES", 80)
    box = outbox(window=1000)
    core.accept(resident, consume(box, 1, position=0))
    core.acknowledge(resident, 0, running=True)
    core.accept(resident, generate(box, 100))
    for _ in range(200):
        core.step()
    paused_at = resident.position
    assert paused_at < 101
    core.acknowledge(resident, paused_at, running=True)
    for _ in range(200):
        core.step()
    assert paused_at < resident.position < 101
    while resident.requests:
        core.acknowledge(resident, resident.position, running=True)
        core.step()
    assert resident.position == 101


def test_who_comes_back_without_acknowledging_is_not_waited_for(core: EngineCore, resident: Resident, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "KEPT_BYTES", 80)
    box = outbox(window=1000)
    core.accept(resident, consume(box, 1, position=0))
    core.acknowledge(resident, 1, running=True)
    core.accept(resident, generate(box, 100))
    for _ in range(200):
        core.step()
    core.drop(resident, box)
    assert resident.position < 101
    told = ask(core, resident, generate(outbox(window=1000), 100, position=1))
    assert told[-1] == (Finish.MAX_STEPS, 101, 0, 100)
    assert [position for position, _ in told[:-1]] == list(range(1, 101))


def test_a_digest_is_of_the_content_alone() -> None:
    def digest(**parts: Any) -> bytes:
        return content_digest(consume(outbox(), 1, 2, **parts))

    assert digest() == digest(position=7, deadline_s=3.0, accepted_s=1.0)
    others = [digest(emit=Emit.NONE), digest(form=Form.TOKENS), digest(sampling=Sampling(0.5)), digest(log_probabilities=True)]
    assert len({digest(), *others, content_digest(consume(outbox(), 2, 1)), content_digest(consume(outbox(), 1))}) == 7


def test_a_request_that_was_cut_before_its_first_step_is_known_once_it_was_made_again(core: EngineCore, resident: Resident) -> None:
    def both(box: Outbox) -> list[Request]:
        return [consume(box, 1, 2, position=0), consume(box, 3)]

    cut = outbox()
    ask(core, resident, both(cut)[0])
    core.accept(resident, both(cut)[1])
    core.drop(resident, cut)
    first = ask(core, resident, *both(outbox()))
    assert resident.position == 3
    assert ask(core, resident, *both(outbox())) == first


class TestWhatIsKnownOfARequest:
    def cut(self, position: int) -> tuple[journal.Journal, Request]:
        """A journal whose only request was cut at a position."""
        made, request = journal.Journal(), generate(outbox(), 100, 0)
        made.begin(request, b"d", 0)
        made.moved(request, position)
        return made, request

    def test_one_that_was_cut_goes_on_where_it_was_cut_only(self) -> None:
        made, request = self.cut(7)
        assert made.again(request, b"d", 0, 7).position == 7
        with pytest.raises(Aborted) as caught:  # another caller, that names no positions, moved the session meanwhile
            made.again(request, b"d", 0, 10)
        assert caught.value.reason is Reason.POSITION_CONFLICT

    def test_of_two_with_the_same_content_the_newest_is_meant_unless_the_end_says_otherwise(self) -> None:
        made, box = journal.Journal(), outbox()
        stopped, whole = generate(box, 10, 3), generate(box, 10, 3)
        for request, end in ((stopped, 3), (whole, 13)):
            made.begin(request, b"d", 3)
            made.moved(request, end)
            made.finish(Finished(Finish.STOP_DIRECTIVE if end == 3 else Finish.MAX_STEPS, end, 0, end - 3, None, 1, 0.0, 0.0, Emit.NONE, generates=True))
        assert made.again(generate(box, 10, 3), b"d", 3, 13).position == 13
        again = generate(box, 10, 3)
        again.end_position = 3
        assert made.again(again, b"d", 3, 13).position == 3


def test_what_something_is_asked_of_is_not_put_back(core: EngineCore, resident: Resident) -> None:
    core.accept(resident, generate(outbox(), 5))
    with pytest.raises(Precondition) as caught:
        core.slots.reset(resident, 1)
    assert caught.value.reason is Reason.SESSION_BUSY


def test_a_stop_behind_a_request_that_is_answered_again_tells_where_that_ended(core: EngineCore, resident: Resident) -> None:
    first, box = outbox(), outbox()
    ask(core, resident, consume(first, 1, 2, position=0), consume(first, 3))
    for request in (consume(box, 1, 2, position=0), Request(box, is_stop=True)):
        core.accept(resident, request)
    run(core)
    assert [event.position for event in taken(core, box) if isinstance(event, StopTaken)] == [2]
    assert resident.position == 3


def test_chunks_of_text_are_stored_beyond_what_was_acknowledged(core: EngineCore, resident: Resident) -> None:
    box = outbox()
    ask(core, resident, consume(box, 1, 2, position=0, of_text=True), consume(box, 3), consume(box, 4, of_text=True))
    core.acknowledge(resident, 4, running=True)
    assert resident.journal is not None
    resident.journal = journal.Journal.restored(resident.journal.kept(4))
    again = outbox()
    assert ask(core, resident, consume(again, 1, 2, position=0, of_text=True)) == [(Finish.INPUT_CONSUMED, 2, 2, 0)]
    assert failure(core, resident, consume(outbox(), 3, position=2)) is Reason.POSITION_MISMATCH
