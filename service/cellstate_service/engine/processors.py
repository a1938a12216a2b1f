"""The threads that the engines of all models divide their batches among. Shared by the engines' threads; one dictionary, no lock."""

from cellstate_service.clock import Clock

RECENT_S = 0.1
"""An engine that computed within this time counts as computing: one that steps in lockstep with its callers is idle between two steps."""


class Processors:
    """How many threads an engine may divide a batch among: all where it computes alone, its share where others compute too.

    Args:
        threads: For all engines together.
        clock: Tells when an engine became idle.
    """

    def __init__(self, threads: int, clock: Clock) -> None:
        self._threads = threads
        self._clock = clock
        self._busy_until_s: dict[str, float] = {}

    def begin(self, engine: str) -> None:
        """Take in that an engine has work."""
        self._busy_until_s[engine] = float("inf")

    def end(self, engine: str) -> None:
        """Take in that it has none."""
        self._busy_until_s[engine] = self._clock.monotonic()

    def share(self) -> int:
        """Return the threads for one of the engines that compute, at least one."""
        since_s = self._clock.monotonic() - RECENT_S
        return max(1, self._threads // max(1, sum(until_s > since_s for until_s in tuple(self._busy_until_s.values()))))
