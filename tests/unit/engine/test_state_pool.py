"""The state pool and the runner: slots, copies by name, and rows that fail without moving."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cellstate_service.engine.runner import Runner
from cellstate_service.engine.state_pool import StatePool
from cellstate_service.errors import Exhausted
from cellstate_service.models.loading import LoadedModel, load_model
from cellstate_service.models.networks import StateSpec
from tests.models_on_disk import write_recurrent

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
    gathered = pool.gather(torch.tensor([2, 1]))
    assert torch.equal(gathered["h"][:, 1], torch.from_numpy(state["h"]))
    assert not gathered["c"][:, 0].any()


def test_what_is_read_or_gathered_is_a_copy() -> None:
    pool = StatePool(SPECS, 4, 2)
    read, output = pool.read(0)
    read["h"][:] = output[:] = 7
    pool.gather(torch.tensor([0]))["h"].fill_(7)
    pool.outputs(torch.tensor([0])).fill_(7)
    assert not pool.gather(torch.tensor([0]))["h"].any()
    assert not pool.outputs(torch.tensor([0])).any()


def test_scatter_writes_the_given_slots_only() -> None:
    pool = StatePool(SPECS, 4, 4)
    slots = torch.tensor([3, 1])
    state = {"h": torch.arange(12.0).reshape(2, 2, 3), "c": torch.arange(20.0).reshape(2, 2, 5)}
    pool.scatter(slots, state, torch.ones(2, 4))
    assert all(torch.equal(pool.gather(slots)[name], tensor) for name, tensor in state.items())
    assert not pool.gather(torch.tensor([0, 2]))["c"].any()


def test_copy_and_clear() -> None:
    pool = StatePool(SPECS, 4, 2)
    pool.scatter(torch.tensor([0]), {"h": torch.ones(2, 1, 3), "c": torch.ones(2, 1, 5)}, torch.ones(1, 4))
    pool.copy(0, 1)
    pool.clear(0)
    assert not pool.gather(torch.tensor([0]))["h"].any()
    assert pool.gather(torch.tensor([1]))["h"].all()
    assert pool.outputs(torch.tensor([1])).all()


@pytest.fixture(scope="module")
def steep(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A network that has no bound: a large enough input overflows."""
    path = write_recurrent(tmp_path_factory.mktemp("steep") / "model", cell="rnn_relu", input_kind="numeric", hidden_size=8, seed=2) / "weights.safetensors"
    weights = load_file(path)
    save_file(weights | {"rnn.weight_ih_l0": 1e4 * weights["rnn.weight_ih_l0"]}, path)
    return load_model(path.parent)


@pytest.mark.parametrize("bad", [{0}, {1, 3}, {0, 1, 2, 3}, set()], ids=str)
def test_rows_that_are_not_finite_do_not_move_and_the_others_do(steep: LoadedModel, bad: set[int]) -> None:
    pool = StatePool(steep.network.state, steep.network.output_size, 9)
    runner, slots = Runner(steep.network, pool), torch.tensor([5, 2, 8, 0])
    runner.commit(slots, runner.compute(slots, torch.ones(4, 1)))
    before, outputs = pool.gather(slots), pool.outputs(slots)
    expected, state = steep.network.step(torch.full((4, 1), 2.0), before)
    inputs = torch.tensor([[3e38 if row in bad else 2.0] for row in range(4)])
    computed = runner.compute(slots, inputs)
    runner.commit(slots, computed)
    after, last = pool.gather(slots)["h"], pool.outputs(slots)
    assert [not ok for ok in computed.good.tolist()] == [row in bad for row in range(4)]
    for row in range(4):
        assert torch.equal(after[:, row], (before if row in bad else state)["h"][:, row])
        assert torch.equal(last[row], (outputs if row in bad else expected)[row])
    assert not pool.gather(torch.tensor([1, 3, 4, 6, 7]))["h"].any()
