"""The state pool: slots, copies by name, and working sets that nobody can tell from the pool."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellstate_service.engine.state_pool import StatePool, gather
from cellstate_service.errors import Exhausted
from cellstate_service.models.networks import StateSpec

SPECS = (StateSpec("h", 2, 3), StateSpec("c", 2, 5))


def test_slots_are_handed_out_once_until_released() -> None:
    pool = StatePool(SPECS, 4, 3)
    slots = [pool.acquire() for _ in range(3)]
    assert sorted(slots) == [0, 1, 2]
    assert pool.in_use == 3
    with pytest.raises(Exhausted) as caught:
        pool.acquire()
    assert caught.value.retry_after_s
    pool.release(slots[1])
    assert pool.acquire() == slots[1]


def test_a_slot_is_read_as_it_was_written_and_paired_by_name() -> None:
    pool = StatePool(SPECS, 4, 3)
    state = {"c": np.arange(10, dtype=np.float32).reshape(2, 5), "h": -np.arange(6, dtype=np.float32).reshape(2, 3)}
    pool.write(1, state, np.arange(4, dtype=np.float32))
    read, output = pool.read(1)
    assert all(np.array_equal(read[name], state[name]) for name in state)
    assert list(output) == [0, 1, 2, 3]
    (h, _, c, _, last) = gather(pool.working_set([2, 1]))
    assert torch.equal(h[1], torch.from_numpy(state["h"][0]))
    assert torch.equal(last[1], torch.arange(4.0))
    assert not c[0].any()


def filled(pool: StatePool, slots: list[int], value: float) -> list[torch.Tensor]:
    return [torch.full_like(column, value) for column in gather(pool.working_set(slots))]


def value_of(pool: StatePool, slot: int) -> float:
    state, output = pool.read(slot)
    (value,) = {float(number) for array in (*state.values(), output) for number in array.flat}
    return value


def test_what_is_read_or_taken_is_a_copy() -> None:
    pool = StatePool(SPECS, 4, 2)
    read, output = pool.read(0)
    read["h"][:] = output[:] = 7
    for column in (*gather(pool.working_set([0])), pool.output(0)):
        column.fill_(7)
    assert value_of(pool, 0) == 0


def test_a_working_set_is_the_same_tensors_while_its_members_stay() -> None:
    pool = StatePool(SPECS, 4, 4)
    kept = filled(pool, [3, 1], 5.0)
    pool.keep([3, 1], kept)
    assert pool.working_set([3, 1]).rows is kept
    other = filled(pool, [0, 2], 6.0)
    pool.keep([0, 2], other)
    assert pool.working_set([3, 1]).rows is kept
    assert pool.working_set([0, 2]).rows is other


@pytest.mark.parametrize("members", [[1, 3], [3], [0, 1, 2, 3], [1, 2]], ids=str)
def test_other_members_see_what_the_last_step_gave(members: list[int]) -> None:
    pool = StatePool(SPECS, 4, 4)
    pool.keep([3, 1], filled(pool, [3, 1], 5.0))
    for column in gather(pool.working_set(members)):
        assert [float(row[0]) for row in column[: len(members)]] == [5.0 if slot in {1, 3} else 0.0 for slot in members]


@given(
    st.lists(st.tuples(st.sampled_from(["step", "step", "step", "read", "clear", "write", "renew"]), st.permutations(range(5)), st.integers(1, 5)), max_size=30)
)
def test_every_slot_holds_what_was_last_put_there(commands: list[tuple[str, list[int], int]]) -> None:
    pool = StatePool(SPECS, 4, 5)
    expected = {pool.acquire(): 0.0 for _ in range(5)}
    for number, (command, order, size) in enumerate(commands, 1):
        slots = order[:size]
        if command == "step":
            rows = gather(pool.working_set(slots))
            assert [float(value) for value in rows[0][: len(slots), 0]] == [expected[slot] for slot in slots]
            pool.keep(slots, [torch.full_like(column, number) for column in rows])
            expected |= dict.fromkeys(slots, float(number))
        elif command == "write":
            state = {spec.name: np.full((spec.layers, spec.width), number, dtype=np.float32) for spec in SPECS}
            pool.write(slots[0], state, np.full(4, number, dtype=np.float32))
            expected[slots[0]] = float(number)
        elif command == "read":
            assert float(pool.read(slots[0])[0]["h"][0, 0]) == expected[slots[0]]
        else:
            if command == "renew":
                pool.release(slots[0])
                assert pool.acquire() == slots[0]
            pool.clear(slots[0])
            expected[slots[0]] = 0.0
    for slot, value in expected.items():
        assert float(pool.read(slot)[0]["c"][1, 4]) == value
