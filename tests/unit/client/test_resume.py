"""Whether, when and with what a call on a session is made again."""

import pytest

import cellstate
from cellstate._call_log import CallLog
from cellstate._log import Options
from cellstate._resume import FIRST_WAIT_S, LONGEST_WAIT_S, Backoff, GoingOn, Resumption, can_go_on
from cellstate._tracking import Tracked
from cellstate.errors import CellstateError, ErrorDetails, SessionBusy, SessionRolledBack
from cellstate.v1 import inference_pb2, types_pb2

LOST = CellstateError("x", ErrorDetails(code="UNAVAILABLE", reason="UNAVAILABLE"))


def at(kind: type[CellstateError], position: int) -> CellstateError:
    return kind("x", ErrorDetails(metadata={"position": str(position)}))


def tokens(*ids: int) -> types_pb2.Sequence:
    return types_pb2.Sequence(tokens=types_pb2.TokenIds(ids=ids))


def tracked_at(position: int) -> Tracked:
    return Tracked(cellstate.SessionInfo(name="s", uid="u", model="m", position=position))


def resumption_at(tracked: Tracked, *, named: bool = True, limit_s: float = 60.0) -> Resumption:
    log = CallLog(tracked.log, Options(types_pb2.OutputOptions()), tracked.position if named else None)
    return Resumption(tracked, log, GoingOn(limit_s, None))


@pytest.mark.parametrize(
    ("code", "reason", "goes_on"),
    [
        ("UNAVAILABLE", "UNAVAILABLE", True),
        ("UNAVAILABLE", "SHUTTING_DOWN", True),
        ("UNAVAILABLE", "STORE_UNAVAILABLE", True),
        ("ABORTED", "SESSION_MOVED", True),
        ("INTERNAL", "INTERNAL", True),
        ("INTERNAL", "STEP_FAILED", False),
        ("ABORTED", "SUPERSEDED", False),
        ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", False),
        ("INVALID_ARGUMENT", "NOT_FINITE", False),
        ("NOT_FOUND", "SESSION_LOST", False),
    ],
)
def test_only_what_was_lost_on_the_way_goes_on(code: str, reason: str, goes_on: bool) -> None:
    assert can_go_on(CellstateError("x", ErrorDetails(code=code, reason=reason))) is goes_on


def test_waits_grow_to_a_bound_and_end_at_the_limit() -> None:
    now = [0.0]
    backoff = Backoff(10.0, lambda: now[0])
    waits = []
    while (wait_s := backoff.next_wait_s()) is not None:
        waits.append(wait_s)
        now[0] += wait_s
    assert FIRST_WAIT_S / 2 <= waits[0] <= FIRST_WAIT_S
    assert max(waits) <= LONGEST_WAIT_S
    assert 10.0 <= sum(waits) < 10.0 + LONGEST_WAIT_S
    backoff.progressed()
    again_s = backoff.next_wait_s()
    assert again_s is not None
    assert again_s <= FIRST_WAIT_S


@pytest.mark.parametrize(("retry_after_s", "timeout_s", "goes_on"), [(None, 5.0, True), (3.0, 5.0, True), (6.0, 5.0, False), (6.0, None, True)])
def test_nobody_waits_beyond_a_deadline(retry_after_s: float | None, timeout_s: float | None, goes_on: bool) -> None:
    error = CellstateError("x", ErrorDetails(code="UNAVAILABLE", reason="SHUTTING_DOWN", retry_after_s=retry_after_s))
    wait_s = GoingOn(60.0, timeout_s).wait_s(error, 0)
    assert (wait_s is not None) is goes_on
    assert wait_s is None or wait_s >= (retry_after_s or 0.0)


def test_a_call_that_names_its_position_is_made_again_there() -> None:
    resumption = resumption_at(tracked_at(3))
    resumption.log.sent(tokens(1))
    assert resumption.wait_s(LOST) is not None
    assert (resumption.plan().first, resumption.reference(3).acknowledged_position) == (3, 3)


def test_a_call_that_names_none_is_made_again_only_where_nothing_of_it_can_have_been_applied() -> None:
    resumption = resumption_at(tracked_at(3), named=False)
    assert resumption.wait_s(LOST) is not None
    resumption.log.sent(tokens(1))
    assert resumption.wait_s(LOST) is None


def test_turned_off_nothing_is_made_again() -> None:
    assert resumption_at(tracked_at(3), limit_s=0).wait_s(LOST) is None


def test_busy_is_waited_for_only_after_ones_own_cut() -> None:
    resumption = resumption_at(tracked_at(3))
    busy = SessionBusy("x", ErrorDetails(reason="SESSION_BUSY", metadata={"position": "9"}))
    assert resumption.wait_s(busy) is None
    assert resumption.wait_s(LOST) is not None
    assert resumption.wait_s(busy) is not None


def test_a_session_that_went_back_is_given_what_followed_then_the_call_is_made() -> None:
    tracked = tracked_at(0)
    tracked.log.safe = 0
    for number in range(3):
        log = CallLog(tracked.log, Options(types_pb2.OutputOptions(), emit=types_pb2.EMIT_LAST), number)
        log.sent(tokens(number))
        log.answered(number + 1, 1)
    tracked.reached(3)
    resumption = resumption_at(tracked)
    resumption.log.sent(tokens(9))
    assert resumption.wait_s(at(SessionRolledBack, 1)) is not None
    (replay,) = resumption.replays()
    opening, *chunks = replay.messages
    assert (opening.open.emit, opening.open.target.session.acknowledged_position) == (types_pb2.EMIT_LAST, 3)
    assert not opening.open.target.session.HasField("position")
    assert [list(chunk.input.values.tokens.ids) for chunk in chunks] == [[1], [2]]
    assert (chunks[0].input.position, chunks[1].input.HasField("position")) == (1, False)
    assert resumption.plan().first == 3
    with pytest.raises(SessionRolledBack):
        replay.feed(inference_pb2.ManyToManyResponse(opened=inference_pb2.Opened(position=0)))
    assert resumption.wait_s(at(SessionRolledBack, 0)) is not None
    assert len(resumption.replays()[0].messages) == 4


def test_where_the_log_does_not_reach_back_the_error_is_the_end_and_its_position_is_taken_over() -> None:
    tracked = tracked_at(5)
    resumption = resumption_at(tracked)
    error = at(SessionRolledBack, 2)
    assert resumption.wait_s(error) is None
    tracked.failed(error)
    assert tracked.reference().position == 2


def test_a_session_further_on_than_what_was_received_needs_nothing_again() -> None:
    """The journal in its snapshot answers."""
    resumption = resumption_at(tracked_at(5), named=False)
    resumption.log.sent(tokens(1))
    assert resumption.wait_s(at(SessionRolledBack, 8)) is not None
    assert (resumption.replays(), resumption.plan().first) == ([], 8)


def test_a_server_that_forgot_the_oldest_chunks_is_sent_the_rest() -> None:
    resumption = resumption_at(tracked_at(0))
    for _ in range(4):
        resumption.log.sent(tokens(1, 2, 3))
    mismatch = cellstate.PositionError("x", ErrorDetails(reason="POSITION_MISMATCH", metadata={"position": "7"}))
    assert not resumption.passes(mismatch)
    assert resumption.wait_s(LOST) is not None
    assert resumption.passes(mismatch)
    assert (resumption.plan().first, len(resumption.plan().entries)) == (6, 2)
    assert not resumption.passes(mismatch)


def test_a_connection_that_lasted_is_progress_whether_anything_came_of_it_or_not() -> None:
    now = [0.0]
    going_on = GoingOn(10.0, None, lambda: now[0])
    for hours in range(3):
        now[0] = 3600.0 * hours
        assert going_on.wait_s(LOST, 0) is not None
    began_s = now[0]
    while (wait_s := going_on.wait_s(LOST, 0)) is not None:
        now[0] += wait_s
    assert 10.0 <= now[0] - began_s < 10.0 + LONGEST_WAIT_S, "attempts that are lost at once are none"


def test_what_is_given_again_keeps_to_the_deadline_of_the_call_that_waits_for_it() -> None:
    tracked = tracked_at(0)
    tracked.log.safe = 0
    before = CallLog(tracked.log, Options(types_pb2.OutputOptions()), 0)
    before.sent(tokens(1))
    before.answered(1, 1)
    log = CallLog(tracked.log, Options(types_pb2.OutputOptions()), 1)
    log.sent(tokens(2))
    resumption = Resumption(tracked, log, GoingOn(60.0, 5.0))
    assert resumption.wait_s(at(SessionRolledBack, 0)) is not None
    (replay,) = resumption.replays()
    assert replay.timeout_s is not None
    assert 4.0 < replay.timeout_s <= 5.0


def test_of_a_session_that_was_reset_nothing_is_secured_but_what_is_told() -> None:
    tracked = Tracked(cellstate.SessionInfo(name="s", uid="u", model="m", position=50, safe_position=50))
    tracked.replaced(cellstate.SessionInfo(name="s", uid="v", model="m", position=0, safe_position=0))
    log = CallLog(tracked.log, Options(types_pb2.OutputOptions()), 0)
    log.sent(tokens(1))
    log.answered(1, 1)
    tracked.reached(1)
    following = CallLog(tracked.log, Options(types_pb2.OutputOptions()), 1)
    following.sent(tokens(2))
    assert Resumption(tracked, following, GoingOn(60.0, None)).wait_s(at(SessionRolledBack, 0)) is not None, "the first step is given again"
