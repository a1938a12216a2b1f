"""A histogram of the loop shows what one of prometheus_client would."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from cellstate_service.observability.loop_histogram import LoopHistogram

BUCKETS = (1e-5, 0.1, 1.0, 2.5, 10.0)


@given(st.lists(st.sampled_from([0.0, *BUCKETS]) | st.floats(0, 20), max_size=20), st.sampled_from(["Run", 'odd "value"\n']))
def test_it_reads_as_one_with_locks(values: list[float], label: str) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    loop = LoopHistogram("cellstate_x_seconds", "Time.", "method", BUCKETS, ours)
    locked = Histogram("cellstate_x_seconds", "Time.", ["method"], buckets=BUCKETS, registry=theirs)
    for value in values:
        loop.labels(label).observe(value)
        locked.labels(label).observe(value)

    shown = [line for line in generate_latest(theirs).splitlines() if b"_created" not in line]
    assert [line for line in generate_latest(ours).splitlines() if b"_created" not in line] == shown
