"""Small statistics: percentiles, medians with their spread, and finding a knee. Plain numbers in, plain numbers out."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` (0 to 1) of all values do not exceed; NaN of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True)
class Spread:
    """A median over rounds with the least and the greatest value."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


def find_knee(holds: Callable[[int], bool], start: int, limit: int, resolution: float = 0.1) -> int:
    """Return the greatest number that holds, by doubling from `start` and then halving the interval.

    Args:
        holds: Tells whether a number holds; expected to be true up to some number and false beyond.
        start: First number to try, at least 1.
        limit: Nothing above is tried.
        resolution: The interval that is left, relative to its lower end.

    Returns:
        The greatest number seen to hold; 0 where none did.
    """
    good, trial = 0, min(start, limit)
    while holds(trial):
        good = trial
        if trial == limit:
            return good
        trial = min(2 * trial, limit)
    bad = trial
    while bad - good > max(1, resolution * good):
        trial = (good + bad) // 2
        if holds(trial):
            good = trial
        else:
            bad = trial
    return good
