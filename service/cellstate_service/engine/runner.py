"""The runner: gather -> forward -> scatter for the rows of one batch. Only the engine thread calls it."""

import torch
from torch import Tensor

from cellstate_service.engine.state_pool import StatePool
from cellstate_service.models.networks import Network


class Runner:
    """Takes one step of a batch of slots, atomically for each row."""

    def __init__(self, network: Network, pool: StatePool) -> None:
        self._network = network
        self._pool = pool

    def step(self, slots: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Advance the state at `slots` by `inputs` and return outputs and which rows succeeded.

        A row whose output or new state holds NaN or infinity is not written: its slot keeps the state before the step, and no other row is touched by it.

        Args:
            slots: int64 [rows], all different.
            inputs: Token ids int64 [rows], or values float32 [rows, features] in model units.

        Returns:
            Outputs float32 [rows, output], and a bool tensor [rows] that is False for failed rows.
        """
        outputs, state = self._network.step(inputs, self._pool.gather(slots))
        good = torch.isfinite(outputs).all(1)
        for tensor in state.values():
            good &= torch.isfinite(tensor).all(2).all(0)
        if bool(good.all()):
            self._pool.scatter(slots, state, outputs)
        elif bool(good.any()):
            self._pool.scatter(slots[good], {name: tensor[:, good] for name, tensor in state.items()}, outputs[good])
        return outputs, good
