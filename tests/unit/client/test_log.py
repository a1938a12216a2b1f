"""What a handle keeps of what it asked, until it is answered in full and secured, and what of it is sent again."""

from dataclasses import dataclass, field
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellstate import _log
from cellstate._call_log import CallLog
from cellstate._log import Entry, Options, SessionLog
from cellstate.errors import CellstateError, ErrorDetails, SessionBusy
from cellstate.v1 import inference_pb2, types_pb2

Chunk, Generate = inference_pb2.InputChunk, inference_pb2.GenerateDirective
ALL = Options(types_pb2.OutputOptions(), emit=types_pb2.EMIT_ALL)
NONE = Options(types_pb2.OutputOptions(), emit=types_pb2.EMIT_NONE)
STOP = inference_pb2.StopDirective()


def tokens(*ids: int) -> Chunk:
    return Chunk(values=types_pb2.Sequence(tokens=types_pb2.TokenIds(ids=ids)))


def text(value: str = "x") -> Chunk:
    return Chunk(values=types_pb2.Sequence(text=value))


def output(position: int, *, silent: bool = False) -> types_pb2.Output:
    return types_pb2.Output(values=None if silent else types_pb2.Sequence(text="x"), position=position)


def completed(position: int, *, stopped: bool = False, steps: int = 1) -> types_pb2.Completion:
    reason = types_pb2.FINISH_REASON_STOP_DIRECTIVE if stopped else types_pb2.FINISH_REASON_MAX_STEPS
    return types_pb2.Completion(position=position, generated_steps=steps, reason=reason)


def call_of(*contents: object, log: SessionLog | None = None, first: int = 10, options: Options = ALL) -> CallLog:
    call = CallLog(SessionLog() if log is None else log, options, None)
    call.begins(first)
    for content in contents:
        call.sent(content)
    return call


def kept(call: CallLog) -> tuple[list[str], int | None]:
    plan = call.plan(None, 0)
    assert plan is not None
    return [entry.message().WhichOneof("message") or "" for entry in plan.entries], plan.first


def test_chunks_are_kept_until_their_last_output_came() -> None:
    call = call_of(tokens(1, 2, 3), tokens(4, 5), tokens(6))
    call.output(output(12))
    assert (len(call), kept(call)[1]) == (3, 10)
    call.output(output(15))
    assert kept(call) == (["input"], 15)
    call.output(output(16))
    assert kept(call) == ([], 16)


def test_a_generation_is_kept_until_its_completion_came() -> None:
    call = call_of(tokens(1), Generate(), tokens(2))
    call.output(output(11))
    call.output(output(400))
    assert kept(call) == (["generate", "input"], 11)
    assert call.completed(completed(500))
    assert kept(call) == (["input"], 500)


def test_chunks_of_unknown_length_are_kept_until_something_tells_where_they_end() -> None:
    call = call_of(text(), tokens(1), Generate(), text())
    call.output(output(30))
    assert len(call) == 4
    call.completed(completed(40))
    assert kept(call) == (["input"], 40)


def test_the_answer_to_a_chunk_that_emits_nothing_tells_its_end() -> None:
    call = call_of(text(), text(), options=NONE)
    call.output(output(17, silent=True))
    assert kept(call) == (["input"], 17)


def test_a_stop_is_kept_until_it_was_answered() -> None:
    call = call_of(Generate(), STOP)
    call.completed(completed(20, stopped=True))
    assert kept(call) == (["stop"], 20)
    call.stopped(20)
    assert kept(call) == ([], 20)


def test_a_call_that_is_opened_again_goes_on_where_it_stands() -> None:
    call = call_of(tokens(1), tokens(2))
    call.output(output(12))
    call.begins(12)
    call.sent(tokens(3))
    assert kept(call) == (["input"], 12)
    call.output(output(13))
    assert kept(call) == ([], 13)


def test_what_was_answered_before_tells_nothing_new() -> None:
    call = call_of(Generate(), Generate())
    assert call.completed(completed(20))
    assert not call.completed(completed(20))
    call.output(output(15))
    assert kept(call) == (["generate"], 20)
    assert call.completed(completed(20, stopped=True, steps=0)), "stopped before its first step"


def test_what_was_answered_is_kept_until_it_is_secured() -> None:
    log = SessionLog(safe=10)
    call = call_of(tokens(1, 2), tokens(3, 4), log=log)
    call.output(output(14))
    assert (len(call), len(log)) == (0, 2)
    log.secured(13)
    assert len(log) == 1
    log.secured(None)
    assert len(log) == 1
    log.opened(inference_pb2.Opened(position=14))
    assert len(log) == 0


@pytest.mark.parametrize("bound", ["LOG_ENTRIES", "LOG_BYTES"])
def test_beyond_what_is_kept_a_call_cannot_go_on(bound: str) -> None:
    with mock.patch.object(_log, bound, 4 if bound == "LOG_ENTRIES" else 4 * (_log.ENTRY_BYTES + tokens(1).values.ByteSize())):
        call = call_of(*[tokens(1)] * 4)
        assert call.whole
        call.sent(tokens(1))
        assert not call.whole


def test_a_refused_call_leaves_nothing_behind() -> None:
    log = SessionLog(safe=0)
    living = call_of(tokens(1, 2), log=log, first=0)
    refused = CallLog(log, ALL, 0)
    refused.sent(tokens(9))
    refused.failed(SessionBusy("x", ErrorDetails(metadata={"position": "1"})))
    living.output(output(2))
    assert [entry.call for entry in log.since(0) or ()] == [living]


def test_steps_that_somebody_else_took_cannot_be_given_again() -> None:
    log = SessionLog(safe=0)
    call_of(tokens(1, 2), log=log, first=0).output(output(2))
    call = call_of(tokens(3), log=log, first=7)
    assert log.since(0) is None
    call.output(output(8))
    assert [entry.first for entry in log.since(7) or ()] == [7]


def test_a_call_that_was_cut_ends_where_the_next_one_begins() -> None:
    log = SessionLog(safe=0)
    call_of(tokens(1, 2), Generate(), log=log, first=0)
    call_of(tokens(3), log=log, first=9)
    chunk, generation, following = log.since(1) or ()
    assert (chunk.end, generation.first, generation.limit, following.first) == (2, 2, 9, 9)
    assert generation.message().generate.end_position == 9


def test_a_call_that_failed_ends_where_its_error_says() -> None:
    log = SessionLog(safe=0)
    call = call_of(tokens(1, 2, 3, 4), tokens(5), log=log, first=0)
    call.failed(CellstateError("x", ErrorDetails(metadata={"position": "3"})))
    (chunk,) = log.since(2) or ()
    assert chunk.message(first=True).input == Chunk(values=tokens(1, 2, 3, 4).values, position=0, end_position=3)


def test_consecutive_entries_of_equal_options_share_a_stream() -> None:
    log = SessionLog(safe=0)
    for number, options in enumerate((ALL, ALL, NONE, ALL)):
        call_of(tokens(1), log=log, first=number, options=options).answered(number + 1)
    plan = call_of(log=log, first=4).plan(0, 4)
    assert plan is not None
    assert [[entry.first for entry in group] for group in plan.groups] == [[0, 1], [2], [3]]
    assert (plan.entries, plan.first) == ([], 4)


# -- the law: whatever was asked, and wherever the session is found, what is sent again gives each step that is missing once, in order


@dataclass
class Asked:
    """A request as the server took it: its steps are numbered from `first` to `end`; left alone it would have gone to `natural`."""

    content: object
    first: int
    end: int
    natural: int


@dataclass
class Told:
    """What the caller's log heard in one call, and what the server made of it."""

    call: CallLog
    asked: list[Asked] = field(default_factory=list)


@st.composite
def histories(draw: st.DrawFn) -> tuple[SessionLog, list[Told], int]:
    """Calls on one handle, each of chunks of known and unknown length, generations and stops, ended in all the ways in which calls end."""
    log, position, calls = SessionLog(safe=0), 0, []
    for _ in range(draw(st.integers(1, 4))):
        options = draw(st.sampled_from([ALL, NONE]))
        call = CallLog(log, options, position if draw(st.booleans()) else None)
        call.begins(position)
        told = Told(call)
        calls.append(told)
        kinds = draw(st.lists(st.sampled_from(["tokens", "text", "generate", "stopped"]), min_size=1, max_size=4))
        for kind in kinds:
            steps = draw(st.integers(1, 4))
            content = {"tokens": tokens(*range(steps)), "text": text(f"{position}")}.get(kind, Generate())
            cut = kind == "stopped"
            told.asked.append(Asked(content, position, position + steps, position + steps + (3 if cut else 0)))
            call.sent(content)
            if cut:
                call.sent(STOP)
            position += steps
        ending = draw(st.sampled_from(["answered", "failed", "cut"]))
        lost = 0 if ending == "answered" else draw(st.integers(0, min(3, position - told.asked[0].first)))
        position -= lost
        for asked in told.asked:
            asked.end = max(min(asked.end, position), min(asked.first, position))
        _answer(told, position, options)
        if ending == "answered":
            call.answered(position)
        elif ending == "failed":
            call.failed(CellstateError("x", ErrorDetails(metadata={"position": str(position)})))
    return log, calls, position


def _answer(told: Told, position: int, options: Options) -> None:
    """Tell the log what a server tells of requests that were finished before a position."""
    for asked in told.asked:
        if asked.end >= position and (asked.end < asked.natural or asked.end > position):
            return
        if isinstance(asked.content, Generate):
            told.call.output(output(asked.end))
            told.call.completed(completed(asked.end, stopped=asked.end < asked.natural, steps=asked.end - asked.first))
            if asked.end < asked.natural:
                told.call.stopped(asked.end)
        else:
            told.call.output(output(asked.end, silent=options is NONE))


def _apply(entries: list[Entry], asked: dict[int, Asked], stands: int) -> list[tuple[int, int]]:
    """The server: take the steps of requests in their order from where the session stands; return each as position and the request that took it."""
    taken, place = [], None
    for entry in entries:
        message = entry.message(first=place is None)
        if message.HasField("stop"):
            continue
        part = message.input if message.HasField("input") else message.generate
        if place is None:
            assert part.HasField("position")
            place = part.position
            assert place <= stands, "a request above the session's position is refused"
        original = asked[id(entry.content)]
        end = place + original.natural - original.first
        end = max(place, min(end, part.end_position)) if part.HasField("end_position") else end
        taken += [(step, original.first) for step in range(place, end) if step >= stands]
        place = end
    return taken


@given(histories(), st.data())
def test_what_is_sent_again_gives_each_missing_step_once_and_in_order(history: tuple[SessionLog, list[Told], int], data: st.DataObject) -> None:
    log, calls, position = history
    stands = data.draw(st.integers(0, position), label="stands")
    following = CallLog(log, ALL, position)
    following.sent(tokens(1))
    plan = following.plan(stands, position)
    assert plan is not None
    wanted = [(step, asked.first) for told in calls for asked in told.asked for step in range(asked.first, asked.end) if step >= stands]
    contents = {id(content): asked for told in calls for asked in told.asked for content in [asked.content]}
    entries = [entry for group in plan.groups for entry in group]
    assert _apply(entries, contents, stands) == wanted
    assert (len(plan.entries), plan.entries[0].first, plan.first) == (1, position, position)
    assert following.plan(stands, position) == plan, "looking changes nothing"


@given(histories(), st.data())
def test_what_is_secured_is_not_kept(history: tuple[SessionLog, list[Told], int], data: st.DataObject) -> None:
    log, _, position = history
    CallLog(log, ALL, None).begins(position)
    safe = data.draw(st.integers(0, position), label="safe")
    log.secured(safe)
    found = log.since(safe)
    assert (found is not None) is (safe < position)
    for entry in (log.since(safe) or [])[1:]:
        assert entry.first is None or entry.first > safe


def test_a_call_that_asks_more_than_is_kept_holds_no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_log, "LOG_BYTES", 4096)
    call = call_of(*[text("x" * 1000) for _ in range(50)])
    assert not call.whole
    assert len(call) == 50
    assert sum(entry.content.ByteSize() for entry in call._pending) <= 4096
    call.output(output(60))
    call.sent(STOP)
    call.stopped(60)
    assert len(call) == 0


def test_the_end_of_chunks_of_text_is_asked_for_where_nothing_generates() -> None:
    call = call_of(*[text() for _ in range(63)])
    assert not call.wants_mark
    call.sent(text())
    assert call.wants_mark
    call.sent(STOP)
    call.sent(text())
    assert not call.wants_mark
    call.stopped(80)
    assert kept(call) == (["input"], 80)
    generating = call_of(Generate(), *[text() for _ in range(64)])
    assert not generating.wants_mark
    generating.completed(completed(12))
    assert generating.wants_mark


def test_tokens_between_chunks_of_text_do_not_put_off_the_question_where_they_end() -> None:
    call = call_of(*[content for _ in range(32) for content in (text(), tokens(1))])
    assert call.wants_mark


def test_a_mark_that_was_not_answered_is_not_asked_again() -> None:
    call = call_of(*[text() for _ in range(64)])
    call.sent(STOP, mark=True)
    call.sent(text())
    call.sent(STOP)
    call.drop_marks()
    assert kept(call) == ([*["input"] * 65, "stop"], 10)
    assert call.wants_mark
    call.stopped(90)
    assert (len(call), kept(call)[1]) == (0, 90)
