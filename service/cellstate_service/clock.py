"""Time, passed in by constructor so that tests can turn it."""

import time
from typing import Protocol


class Clock(Protocol):
    """Wall time for what callers see, monotonic time for durations, processor time for costs."""

    def now(self) -> float:
        """Return seconds since the Unix epoch."""
        ...

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back."""
        ...

    def thread_time(self) -> float:
        """Return the processor time that the calling thread has used, in seconds."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        """Return seconds since the Unix epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back."""
        return time.monotonic()

    def thread_time(self) -> float:
        """Return the processor time that the calling thread has used, in seconds."""
        return time.thread_time()
