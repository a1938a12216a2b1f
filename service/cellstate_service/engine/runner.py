"""The runner: gather -> forward -> scatter for the rows of one batch. Only the engine thread calls it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cellstate_service.engine.state_pool import StatePool
from cellstate_service.models.networks import Network


@dataclass(frozen=True, slots=True)
class Computed:
    """What a step gave, not written yet.

    Attributes:
        outputs: float32 [rows, output].
        state: New state by name, float32 [layers, rows, width].
        good: bool [rows]; False where output or new state holds NaN or infinity.
    """

    outputs: Tensor
    state: dict[str, Tensor]
    good: Tensor


class Runner:
    """Takes one step of a batch of slots in two halves, so that whatever may fail in between leaves every slot as it was."""

    def __init__(self, network: Network, pool: StatePool) -> None:
        self._network = network
        self._pool = pool

    def compute(self, slots: Tensor, inputs: Tensor) -> Computed:
        """Compute a step from the state at `slots`, and write nothing.

        Args:
            slots: int64 [rows], all different.
            inputs: Token ids int64 [rows], or values float32 [rows, features] in model units.
        """
        outputs, state = self._network.step(inputs, self._pool.gather(slots))
        good = torch.isfinite(outputs).all(1)
        for tensor in state.values():
            good &= torch.isfinite(tensor).all(2).all(0)
        return Computed(outputs, state, good)

    def commit(self, slots: Tensor, computed: Computed) -> None:
        """Write the good rows to their slots. The others keep the state before the step."""
        good = computed.good
        if bool(good.all()):
            self._pool.scatter(slots, computed.state, computed.outputs)
        elif bool(good.any()):
            self._pool.scatter(slots[good], {name: tensor[:, good] for name, tensor in computed.state.items()}, computed.outputs[good])
