"""How a call goes on that makes, reads or ends a session: made again where its connection was lost. Pure, as `_resume.py`.

Whoever makes or resets a session says by its request id that it is the same call again, and the server knows that: also another one, for sessions that have a
name. A client that never reached its server fails at once: the address may be wrong.
"""

from typing import Any

from cellstate._exchange import Call
from cellstate._resume import GoingOn, Replay, can_go_on
from cellstate._tracking import GOES_ON_REASONS
from cellstate.errors import CellstateError, NotFound

ENDING = "DeleteSession"


class Repetition:
    """Makes one call again.

    Args:
        call: The call.
        going_on: Decides when.
        reached: Whether the client has reached its server before.
    """

    def __init__(self, call: Call[Any], going_on: GoingOn, *, reached: bool) -> None:
        self._call = call
        self._going_on = going_on
        self._reached = reached

    def wait_s(self, error: CellstateError) -> float | None:
        """Return how long to wait before it is made again; None where an error is its end."""
        self._reached = self._reached or error.reason in GOES_ON_REASONS
        return self._going_on.wait_s(error, 0) if self._reached and self._going_on.possible and can_go_on(error) else None

    def replays(self) -> list[Replay]:
        """Return nothing: the call is on no session's steps."""
        return []

    def is_done(self, error: CellstateError) -> bool:
        """Tell whether an error says that an earlier attempt, whose answer was lost, did what was asked."""
        return self._going_on.again and self._call.method == ENDING and isinstance(error, NotFound)

    @property
    def timeout_s(self) -> float | None:
        """What is left of the call's deadline."""
        return self._going_on.timeout_s
