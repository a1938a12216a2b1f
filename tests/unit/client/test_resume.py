"""What a stream that was cut sends again: all that was not answered in full, with the position at which that began."""

import pytest

from cellstate._resume import FIRST_WAIT_S, LOG_MESSAGES, LONGEST_WAIT_S, Backoff, Received, Repeating, StreamLog, can_go_on
from cellstate.errors import CellstateError, ErrorDetails
from cellstate.v1 import inference_pb2, types_pb2

Request, Response = inference_pb2.ManyToManyRequest, inference_pb2.ManyToManyResponse


def tokens(*ids: int) -> Request:
    return Request(input=inference_pb2.InputChunk(values=types_pb2.Sequence(tokens=types_pb2.TokenIds(ids=ids))))


def text(value: str) -> Request:
    return Request(input=inference_pb2.InputChunk(values=types_pb2.Sequence(text=value)))


GENERATE, STOP = Request(generate=inference_pb2.GenerateDirective()), Request(stop=inference_pb2.StopDirective())
ACKNOWLEDGE = Request(acknowledge=inference_pb2.Acknowledgement(position=3))


def output(first: int, position: int) -> Response:
    return Response(output=types_pb2.Output(values=types_pb2.Sequence(text="x"), first_position=first, position=position))


def completed(position: int) -> Response:
    return Response(completion=types_pb2.Completion(position=position))


def kept(log: StreamLog) -> list[str]:
    return [message.WhichOneof("message") or "" for message in log.again()]


def log_of(*messages: Request, opened: int = 10) -> StreamLog:
    log = StreamLog()
    log.opened(opened)
    for message in messages:
        log.sent(message)
    return log


def test_chunks_are_kept_until_their_last_output_came() -> None:
    log = log_of(tokens(1, 2, 3), tokens(4, 5), tokens(6))
    log.answered(output(10, 12))
    assert (len(log), log.position) == (3, 10)
    log.answered(output(12, 15))
    assert (log.again(), log.position) == ([tokens(6)], 15)
    log.answered(output(15, 16))
    assert log.again() == []


def test_a_generation_is_kept_until_its_completion_came() -> None:
    log = log_of(tokens(1), GENERATE, tokens(2))
    log.answered(output(10, 11))
    log.answered(output(11, 400))
    assert (kept(log), log.position) == (["generate", "input"], 11)
    log.answered(completed(500))
    assert (kept(log), log.position) == (["input"], 500)


def test_chunks_of_unknown_length_are_kept_until_something_tells_where_they_end() -> None:
    log = log_of(text("long"), tokens(1), GENERATE, text("more"))
    log.answered(output(10, 30))
    assert len(log) == 4
    log.answered(completed(40))
    assert (kept(log), log.position) == (["input"], 40)


def test_a_stop_is_kept_until_it_was_answered() -> None:
    log = log_of(GENERATE, STOP)
    log.answered(Response(output=output(10, 20).output, completion=types_pb2.Completion(position=20)))
    assert kept(log) == ["stop"]
    log.answered(Response(stopped=inference_pb2.Stopped(position=20)))
    assert log.again() == []


def test_acknowledgements_are_not_sent_again() -> None:
    assert kept(log_of(tokens(1), ACKNOWLEDGE)) == ["input"]


def test_beyond_what_is_kept_a_stream_cannot_go_on() -> None:
    log = log_of(*[text("x")] * LOG_MESSAGES)
    assert log.whole
    log.sent(text("x"))
    assert not log.whole


def test_outputs_that_were_received_are_passed_over() -> None:
    received = Received()
    assert received.opened(inference_pb2.Opened(position=5, stream_token="a"))
    assert received.takes(output(5, 9).output)
    assert not received.opened(inference_pb2.Opened(position=20, stream_token="b"))
    assert (received.first, received.position, received.stream_token) == (5, 9, "b")
    assert not received.takes(output(5, 9).output)
    assert not received.takes(output(5, 7).output)
    assert received.takes(output(9, 10).output)


@pytest.mark.parametrize(
    ("code", "reason", "goes_on"),
    [
        ("UNAVAILABLE", "UNAVAILABLE", True),
        ("UNAVAILABLE", "SHUTTING_DOWN", True),
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
    wait_s = Repeating(3, 60.0, timeout_s).wait_s(error)
    assert (wait_s is not None) is goes_on
    assert wait_s is None or wait_s >= (retry_after_s or 0.0)


def test_a_call_without_a_position_is_not_repeated() -> None:
    assert Repeating(None, 60.0, None).wait_s(CellstateError("x", ErrorDetails(code="UNAVAILABLE", reason="UNAVAILABLE"))) is None
