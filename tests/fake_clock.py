"""A clock that tests turn."""

import time


class FakeClock:
    """Goes on by itself for durations, and stands still for what callers see, unless it is turned."""

    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self.now_s = now_s
        self._turned_s = 0.0

    def now(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return time.monotonic() + self._turned_s

    def thread_time(self) -> float:
        return time.thread_time()

    def turn(self, seconds: float) -> None:
        self.now_s += seconds
        self._turned_s += seconds
