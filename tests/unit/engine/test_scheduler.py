"""The scheduler with plain ints: who steps, in which order, and who is overdue."""

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellstate_service.engine.scheduler import Scheduler


def ready(max_rows: int, *keys: int) -> Scheduler[int]:
    scheduler: Scheduler[int] = Scheduler(max_rows)
    for key in keys:
        scheduler.add(key)
    return scheduler


def test_all_that_fit_step_each_time_in_the_same_order() -> None:
    scheduler = ready(4, 3, 1, 2)
    assert [scheduler.select(0.0) for _ in range(3)] == [([3, 1, 2], [])] * 3


def test_those_that_do_not_fit_take_turns() -> None:
    scheduler = ready(2, 1, 2, 3, 4, 5)
    assert [scheduler.select(0.0)[0] for _ in range(5)] == [[1, 2], [3, 4], [5, 1], [2, 3], [4, 5]]


@given(ready_count=st.integers(1, 40), max_rows=st.integers(1, 12), began=st.integers(0, 20))
def test_each_steps_at_least_once_in_the_bound(ready_count: int, max_rows: int, began: int) -> None:
    scheduler = ready(max_rows, *range(ready_count))
    for _ in range(began):
        scheduler.select(0.0)
    stepped = [key for _ in range(ceil(ready_count / max_rows)) for key in scheduler.select(0.0)[0]]
    assert set(stepped) == set(range(ready_count))


@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "select"]), st.integers(0, 9)), max_size=80), st.integers(1, 5))
def test_only_ready_sessions_step_and_never_twice_in_one_batch(commands: list[tuple[str, int]], max_rows: int) -> None:
    scheduler: Scheduler[int] = Scheduler(max_rows)
    expected: set[int] = set()
    waited: dict[int, int] = {}
    for command, key in commands:
        if command == "add":
            scheduler.add(key)
            expected.add(key)
        elif command == "remove":
            scheduler.remove(key)
            expected.discard(key)
            waited.pop(key, None)
        else:
            rows, overdue = scheduler.select(0.0)
            assert not overdue
            assert len(rows) == len(set(rows)) == min(max_rows, len(expected))
            assert set(rows) <= expected
            waited = {key: 0 if key in rows else waited.get(key, 0) + 1 for key in expected}
            assert max(waited.values(), default=0) <= ceil(10 / max_rows), "a session waited although others came and went"
        assert len(scheduler) == len(expected)
        assert all((key in scheduler) == (key in expected) for key in range(10))


def test_a_session_that_joins_waits_for_those_before_it_and_no_longer() -> None:
    scheduler = ready(2, 1, 2, 3)
    assert scheduler.select(0.0)[0] == [1, 2]
    scheduler.add(4)
    assert scheduler.select(0.0)[0] == [3, 1]
    assert scheduler.select(0.0)[0] == [2, 4]


def test_adding_again_keeps_the_turn() -> None:
    scheduler = ready(1, 1, 2)
    scheduler.add(1)
    assert scheduler.select(0.0)[0] == [1]


def test_a_passed_deadline_is_told_once_and_frees_its_row() -> None:
    scheduler: Scheduler[int] = Scheduler(1)
    scheduler.add(1, 5.0)
    scheduler.add(2, 9.0)
    assert scheduler.select(4.9) == ([1], [])
    assert scheduler.select(5.0) == ([2], [1])
    assert scheduler.select(8.9) == ([2], [])
    assert scheduler.select(9.0) == ([], [2])
    assert scheduler.select(99.0) == ([], [])


def test_nothing_ready_selects_nothing() -> None:
    assert ready(3).select(0.0) == ([], [])


def test_removing_what_is_not_there_does_nothing() -> None:
    scheduler = ready(3, 1)
    scheduler.remove(2)
    assert scheduler.select(0.0)[0] == [1]


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="max_rows"):
        Scheduler(0)
