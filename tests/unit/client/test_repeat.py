"""Which calls that make, read or end sessions are made again, and when."""

import pytest

from cellstate._exchange import Call
from cellstate._repeat import Repetition
from cellstate._resume import GoingOn
from cellstate._status import error_from_status
from cellstate.errors import ErrorDetails, NotFound, Unavailable

LOST = error_from_status(14, "Socket closed")
STOPPING = Unavailable("the server is stopping", ErrorDetails("SHUTTING_DOWN", "UNAVAILABLE"))
GONE = NotFound("gone", ErrorDetails("SESSION_CLOSED", "NOT_FOUND"))


def repetition(method: str = "CreateSession", *, reached: bool = True, limit_s: float = 60.0) -> Repetition:
    call = Call("sessions", method, lambda response: response, repeats=True)
    return Repetition(call, GoingOn(limit_s, None, lambda: 0.0), reached=reached)


@pytest.mark.parametrize("error", [LOST, STOPPING])
def test_a_call_that_was_lost_is_made_again(error: Unavailable) -> None:
    assert repetition().wait_s(error) is not None


def test_an_answer_is_the_end() -> None:
    assert repetition().wait_s(GONE) is None


def test_turned_off_nothing_is_made_again() -> None:
    assert repetition(limit_s=0.0).wait_s(LOST) is None


def test_who_never_reached_the_server_is_told_at_once() -> None:
    assert repetition(reached=False).wait_s(LOST) is None
    stopping = repetition(reached=False)
    assert stopping.wait_s(STOPPING) is not None
    assert stopping.wait_s(LOST) is not None


def test_what_is_gone_when_it_is_deleted_again_was_deleted() -> None:
    deleting = repetition("DeleteSession")
    assert not deleting.is_done(GONE)
    deleting.wait_s(LOST)
    assert deleting.is_done(GONE)
    reading = repetition("GetSession")
    reading.wait_s(LOST)
    assert not reading.is_done(GONE)
