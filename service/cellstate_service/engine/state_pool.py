"""The state pool: preallocated tensors that hold every resident session's state, one slot each. Only the engine thread touches it."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellstate_service.errors import Exhausted, Reason
from cellstate_service.models.networks import StateSpec

State = dict[str, NDArray[np.float32]]


class StatePool:
    """Tensors `[layers, slots, width]` per state tensor, the last outputs `[slots, output]`, and a free list.

    Memory is reserved at construction and touched when a slot is first used (float32, zero pages until then).
    """

    def __init__(self, specs: tuple[StateSpec, ...], output_size: int, slots: int) -> None:
        self.specs = specs
        self.slots = slots
        self._state = {spec.name: torch.zeros(spec.layers, slots, spec.width) for spec in specs}
        self._outputs = torch.zeros(slots, output_size)
        self._free = list(range(slots - 1, -1, -1))

    @property
    def in_use(self) -> int:
        """Number of slots acquired."""
        return self.slots - len(self._free)

    @property
    def bytes(self) -> int:
        """Bytes of all slots' state and last outputs, touched or not."""
        return sum(tensor.nbytes for tensor in (*self._state.values(), self._outputs))

    def acquire(self) -> int:
        """Take a slot, with its state at zero.

        Raises:
            Exhausted: No slot is free.
        """
        if not self._free:
            raise Exhausted(f"all {self.slots} state slots of the model are in use: close sessions, or try again", Reason.OVERLOADED, retry_after_s=1.0)
        slot = self._free.pop()
        for tensor in self._state.values():
            tensor[:, slot].zero_()
        return slot

    def release(self, slot: int) -> None:
        """Give a slot back."""
        self._free.append(slot)

    def gather(self, slots: Tensor) -> dict[str, Tensor]:
        """Return copies `[layers, rows, width]` of the state at `slots` (int64 [rows])."""
        return {name: tensor.index_select(1, slots) for name, tensor in self._state.items()}

    def scatter(self, slots: Tensor, state: Mapping[str, Tensor], outputs: Tensor) -> None:
        """Write state `[layers, rows, width]` and outputs `[rows, output]` to `slots`, by name."""
        for name, tensor in self._state.items():
            tensor.index_copy_(1, slots, state[name])
        self._outputs.index_copy_(0, slots, outputs)

    def outputs(self, slots: Tensor) -> Tensor:
        """Return a copy `[rows, output]` of the last outputs at `slots`."""
        return self._outputs.index_select(0, slots)

    def read(self, slot: int) -> tuple[State, NDArray[np.float32]]:
        """Return copies of a slot's state (`[layers, width]` by name) and last output `[output]`."""
        return {name: tensor[:, slot].numpy().copy() for name, tensor in self._state.items()}, self._outputs[slot].numpy().copy()

    def write(self, slot: int, state: Mapping[str, NDArray[np.float32]], output: NDArray[np.float32] | None) -> None:
        """Set a slot's state (`[layers, width]` by name) and, where given, its last output."""
        for name, tensor in self._state.items():
            tensor[:, slot] = torch.from_numpy(np.array(state[name], dtype=np.float32))
        if output is not None:
            self._outputs[slot] = torch.from_numpy(np.array(output, dtype=np.float32))

    def copy(self, source: int, target: int) -> None:
        """Copy one slot's state and last output to another."""
        for tensor in self._state.values():
            tensor[:, target] = tensor[:, source]
        self._outputs[target] = self._outputs[source]

    def clear(self, slot: int) -> None:
        """Set a slot's state to zero."""
        for tensor in self._state.values():
            tensor[:, slot].zero_()
