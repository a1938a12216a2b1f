"""Percentiles, spreads and the search for a knee."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.figures import Spread, find_knee, percentile


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 2), (0.75, 3), (0.76, 4), (0.99, 4), (1.0, 4)])
def test_percentile_is_a_value_that_the_share_does_not_exceed(share, expected):
    assert percentile([4, 1, 3, 2], share) == expected


def test_percentile_of_nothing_is_not_a_number():
    assert math.isnan(percentile([], 0.5))


def test_spread_holds_median_and_ends():
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


@given(knee=st.integers(0, 5000), start=st.integers(1, 64), limit=st.integers(64, 4096))
def test_knee_is_found_within_the_resolution(knee, start, limit):
    tried = []

    def holds(size: int) -> bool:
        tried.append(size)
        return size <= knee

    found = find_knee(holds, start, limit, resolution=0.1)
    assert found <= min(knee, limit)
    assert found == limit or not found or min(knee, limit) - found <= max(1, 0.1 * found)
    assert found or knee < start or knee <= 1
    assert all(1 <= size <= limit for size in tried)
    assert len(tried) < 32


def test_knee_below_the_start_is_found():
    assert find_knee(lambda size: size <= 5, 32, 64) == 5
