"""How many steps are taken at once: of long inputs beside others, of generation beside its messages. And what an engine knows of its own load."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellstate_service.engine.load import EngineLoad
from cellstate_service.engine.scheduler import CHUNK_ROW_STEPS, CHUNK_STEPS, FEW_ROWS, MAX_AHEAD, PART_ROWS, PART_S, Pace, plan_steps
from cellstate_service.engine.state_pool import size_of_batch


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=300), st.integers(1, MAX_AHEAD))
def test_every_session_steps_and_a_piece_costs_no_more_than_what_those_who_wait_take(left: list[int], ahead: int) -> None:
    plan = plan_steps(left, ahead)
    assert sorted([*plan.single, *plan.chunked]) == list(range(len(left)))
    assert all(left[index] >= plan.steps > 1 for index in plan.chunked)
    assert plan.steps <= CHUNK_STEPS
    assert plan.steps & (plan.steps - 1) == 0, "no power of two"
    if plan.chunked and plan.single:
        assert plan.steps * (len(plan.chunked) + FEW_ROWS) <= ahead * (len(plan.single) + FEW_ROWS)
    elif plan.chunked:
        assert plan.steps * len(plan.chunked) <= CHUNK_ROW_STEPS


def test_a_lone_long_input_is_taken_in_the_longest_pieces() -> None:
    assert plan_steps([100_000]).steps == CHUNK_STEPS


def test_a_long_input_beside_64_others_takes_more_than_a_step_and_one_beside_few_steps_with_them() -> None:
    beside_many = plan_steps([0] * 64 + [100_000])
    assert (len(beside_many.single), beside_many.chunked, beside_many.steps) == (64, [64], 8)
    assert plan_steps([0, 0, 100_000]).chunked == []


@given(st.floats(1e-6, 1.0), st.integers(1, 8192), st.floats(0, 0.1))
def test_steps_ahead_are_bounded_in_number_and_time(step_s: float, rows: int, max_ahead_s: float) -> None:
    pace = Pace(max_ahead_s)
    assert pace.steps(rows) == 1, "nothing is known yet"
    pace.took(5 * step_s, rows, 5)
    steps = pace.steps(rows)
    assert 1 <= steps <= MAX_AHEAD
    assert steps == 1 or steps * step_s <= max_ahead_s * (1 + 1e-9)


@pytest.mark.parametrize(("step_s", "rows", "steps"), [(1e-3, 1, 1), (1.1e-3, 8, 10), (8e-3, 64, 5), (0.03, 256, 1), (50e-6, 64, 16)])
def test_steps_ahead_keep_messages_at_a_tenth_of_what_steps_cost(step_s: float, rows: int, steps: int) -> None:
    pace = Pace(0.04)
    pace.took(step_s, rows, 1)
    assert pace.steps(rows) == steps


@given(st.floats(1e-6, 1.0), st.integers(1, 8192), st.integers(1, MAX_AHEAD), st.integers(1, 32))
def test_parts_are_large_enough_and_no_more_than_threads(step_s: float, rows: int, steps: int, threads: int) -> None:
    pace = Pace(0.04)
    assert pace.parts(rows, steps, threads) == 1, "nothing is known yet"
    pace.took(step_s, rows, 1)
    parts = pace.parts(rows, steps, threads)
    assert parts <= threads
    assert parts.bit_count() == 1
    assert parts == 1 or (rows / parts >= PART_ROWS and step_s * steps / parts >= PART_S * (1 - 1e-9))
    more = 2 * parts
    assert more > threads or rows < more * PART_ROWS or step_s * steps / more < PART_S * (1 + 1e-9), "more threads would have had enough to do"


def test_what_parts_took_counts_for_all_of_them() -> None:
    pace = Pace(1.0)
    pace.took(5.5e-3, 64, 1)
    assert pace.parts(64, 1, 2) == 1
    pace.took(5.5e-3, 64, 1, parts=2)
    assert pace.parts(64, 1, 2) == 2, "both parts together are what the rows cost"
    assert pace.steps(64) == 16, "for how long outputs are held back is what one of them takes"


@given(st.integers(1, 10_000))
def test_batches_have_few_sizes_and_little_to_fill(rows: int) -> None:
    size = size_of_batch(rows)
    assert rows <= size <= rows * 1.125
    assert all(size_of_batch(size << doubled) == size << doubled for doubled in range(7)), "the steps of a chunk make another size"
    assert len({size_of_batch(count) for count in range(size, 2 * size)}) <= 17


def test_load_is_the_interval_between_two_steps_of_one_session() -> None:
    load = EngineLoad()
    for _ in range(50):
        load.ran(0.01, ready=10, max_rows=4)
    assert load.interval_s == pytest.approx(0.03, rel=0.01)
    assert load.least_s == 0.01
    load.ran(0.004, ready=1, max_rows=4)
    assert load.least_s == 0.004
    load.idle()
    assert (load.interval_s, load.least_s) == (0.0, 0.0)
