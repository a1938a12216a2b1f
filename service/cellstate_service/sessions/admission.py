"""Admission: a new call is refused early, and told when to try again, where what runs already keeps the machine busy. Loop only."""

from cellstate_service.engine.engine import Engine
from cellstate_service.errors import Exhausted, Reason

WEIGHT = 0.1
"""Of the newest measurement in the smoothed lag."""


class Admission:
    """Bounds the calls at once by number, and by how long steps wait: for their turn in the engine, and for the event loop.

    Args:
        max_calls: Calls at once at most.
        max_wait_s: The longest wait at which new calls are still taken.
    """

    def __init__(self, max_calls: int, max_wait_s: float) -> None:
        self._max_calls = max_calls
        self._max_wait_s = max_wait_s
        self._calls = 0
        self._lag_s = 0.0

    def lagged(self, lag_s: float) -> None:
        """Take in by how much the event loop was late just now."""
        self._lag_s += WEIGHT * (lag_s - self._lag_s)

    def enter(self, engine: Engine) -> None:
        """Count a call in.

        Raises:
            Exhausted: OVERLOADED, with the time after which to try again.
        """
        if self._calls >= self._max_calls:
            raise Exhausted(f"{self._calls} calls are running, the server's limit: try again", Reason.OVERLOADED, retry_after_s=1.0)
        wait_s = max(engine.load.wait_s, self._lag_s)
        if wait_s > self._max_wait_s:
            text = f"a step waits {wait_s:.2f} s at present, above the {self._max_wait_s:g} s at which new calls are taken: try again later, or elsewhere"
            raise Exhausted(text, Reason.OVERLOADED, retry_after_s=max(1.0, 2 * wait_s))
        self._calls += 1

    def leave(self) -> None:
        """Count a call out."""
        self._calls -= 1
