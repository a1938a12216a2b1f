"""How busy an engine is, as measured: the engine thread writes it, the event loop reads it. Plain numbers, no clock."""

from collections import deque

REMEMBERED = 16
"""Iterations whose fastest counts."""
WEIGHT = 0.2
"""Of the newest iteration in the smoothed interval."""


class EngineLoad:
    """The interval between two steps of one session, and the least time that an iteration takes.

    Attributes:
        interval_s: How long a session that is ready waits from one of its steps to the next, smoothed; 0 where the engine is idle.
    """

    __slots__ = ("_recent", "interval_s")

    def __init__(self) -> None:
        self.interval_s = 0.0
        self._recent: deque[float] = deque(maxlen=REMEMBERED)

    @property
    def least_s(self) -> float:
        """The shortest of the last iterations: no step is answered sooner than that. 0 where nothing is known."""
        return min(self._recent, default=0.0)

    @property
    def wait_s(self) -> float:
        """What of the interval is waiting: for others' rows, and for turns."""
        return max(0.0, self.interval_s - self.least_s)

    def ran(self, iteration_s: float, ready: int, max_rows: int) -> None:
        """Take in one iteration: how long it took, how many sessions were ready, and how many of them it could take."""
        turns = -(-ready // max_rows)
        self.interval_s += WEIGHT * (iteration_s * turns - self.interval_s)
        self._recent.append(iteration_s)

    def idle(self) -> None:
        """Take in that nothing is ready."""
        self.interval_s = 0.0
        self._recent.clear()
