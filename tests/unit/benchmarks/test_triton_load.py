"""Reading what perf_analyzer reports of generation."""

import pytest

from benchmarks.processes import BenchmarkError
from benchmarks.triton_load import summarize

MS = 1_000_000


def test_rate_counts_only_while_all_streams_are_busy():
    steady = [(0, [at * MS for at in range(10, 110, 10)]) for _ in range(2)]
    last_alone = (100 * MS, [at * MS for at in range(110, 1010, 100)])
    figures = summarize([*steady, last_alone, (100 * MS, [at * MS for at in range(110, 210, 10)])], size=2)
    assert figures["rate"] == pytest.approx(1e3 * 29 / 190)
    assert figures["p50_ms"] == 10
    assert figures["first_p50_ms"] == 10


def test_requests_without_answers_do_not_count():
    with pytest.raises(BenchmarkError, match="no answers"):
        summarize([(0, [])], size=1)
