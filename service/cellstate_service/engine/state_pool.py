"""The state pool: preallocated tensors that hold every resident session's state, one slot each. Only the engine thread touches it.

Batches do not work on the pool but on working sets: the rows of some slots, gathered once. While a batch's members stay the same its working set is passed from
step to step and nothing is copied; rows go back to the pool when another batch, or anybody else, needs one of their slots.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellstate_service.errors import Exhausted, Reason
from cellstate_service.models.networks import StateSpec

State = dict[str, NDArray[np.float32]]
WORKING_SETS = 2
"""An iteration has at most two batches: single steps and pieces of long inputs."""


def size_of_batch(rows: int) -> int:
    """Return the size at which a batch of so many rows is computed: at most 16 sizes to each doubling, so that few kernels serve all and each was used before.

    Every such size times a power of two is one again (of the steps of a chunk).
    """
    unit = 1 << max(0, rows.bit_length() - 4)
    return -(-rows // unit) * unit


class WorkingSet(NamedTuple):
    """The rows of a batch, or how to get them: `gather` does, within the compiled call that steps them, since each call takes the interpreter's lock anew.

    Attributes:
        rows: Each layer's state tensors [B, width] in the order of the specifications, then the last outputs [B, output]; empty where they are to be gathered.
        columns: The pool's: the same for all slots.
        back: Working sets to be written back before, each with its slots int64.
        slots: Slots to gather, int64 [B].
    """

    rows: list[Tensor]
    columns: list[Tensor]
    back: list[tuple[Tensor, list[Tensor]]]
    slots: Tensor


def gather(working: WorkingSet) -> list[Tensor]:
    """Return the rows of a working set. Writes others back to the pool's columns where that must be done before; doing it twice does no harm."""
    for slots, rows in working.back:
        for number, column in enumerate(working.columns):
            column.index_copy_(0, slots, rows[number][: slots.size(0)])
    if len(working.rows) > 0:
        return working.rows
    gathered: list[Tensor] = []
    for column in working.columns:
        gathered.append(column.index_select(0, working.slots))  # noqa: PERF401 (TorchScript)
    return gathered


class StatePool:
    """Tensors `[layers, slots, width]` per state tensor, the last outputs `[slots, output]`, a free list, and the working sets taken from them.

    Memory is reserved at construction and touched when a slot is first used (float32, zero pages until then).
    """

    def __init__(self, specs: tuple[StateSpec, ...], output_size: int, slots: int) -> None:
        self.specs = specs
        self.slots = slots
        self._state = {spec.name: _zero_pages(spec.layers, slots, spec.width) for spec in specs}
        self._outputs = _zero_pages(slots, output_size)
        self._free = list(range(slots - 1, -1, -1))
        self._columns = [tensor[layer] for tensor in self._state.values() for layer in range(len(tensor))] + [self._outputs]
        self._sets: dict[tuple[int, ...], list[Tensor]] = {}
        self._at_work: set[int] = set()

    @property
    def in_use(self) -> int:
        """Number of slots acquired."""
        return self.slots - len(self._free)

    @property
    def bytes(self) -> int:
        """Bytes of all slots' state and last outputs, touched or not."""
        return sum(tensor.nbytes for tensor in self._columns)

    def acquire(self) -> int:
        """Take a slot, with its state at zero.

        Raises:
            Exhausted: No slot is free.
        """
        if not self._free:
            raise Exhausted(f"all {self.slots} state slots of the model are in use: close sessions, or try again", Reason.OVERLOADED, retry_after_s=1.0)
        slot = self._free.pop()
        self.clear(slot)
        return slot

    def release(self, slot: int) -> None:
        """Give a slot back."""
        self._settle(slot)
        self._free.append(slot)

    def working_set(self, slots: Sequence[int]) -> WorkingSet:
        """Return the working set of some slots.

        B is the size at which that many slots are computed; the rows beyond them repeat the first. Not to be changed. After a step `keep` takes what it gave.
        """
        key = tuple(slots)
        kept = self._sets.get(key)
        if kept is not None:
            return WorkingSet(kept, self._columns, [], _index(()))
        back = [] if self._at_work.isdisjoint(key) else [other for other in self._sets if not set(key).isdisjoint(other)]
        return WorkingSet([], self._columns, self._to_return(back), _index(key + key[:1] * (size_of_batch(len(key)) - len(key))))

    def empty_set(self, count: int) -> WorkingSet:
        """Return a working set of `count` rows at zero, which belongs to no slots."""
        return WorkingSet([column.new_zeros(count, column.shape[1]) for column in self._columns], self._columns, [], _index(()))

    def keep(self, slots: Sequence[int], rows: list[Tensor]) -> None:
        """Take what a step gave as the state of the slots whose working set it was computed from."""
        key = tuple(slots)
        if key not in self._sets:
            self._forget([other for other in self._sets if not set(key).isdisjoint(other)])
            if len(self._sets) >= WORKING_SETS:
                self._return(next(iter(self._sets)))
        self._sets[key] = rows
        self._at_work.update(key)

    def read(self, slot: int) -> tuple[State, NDArray[np.float32]]:
        """Return copies of a slot's state (`[layers, width]` by name) and last output `[output]`."""
        return self.read_many([slot])[0]

    def read_many(self, slots: Sequence[int]) -> list[tuple[State, NDArray[np.float32]]]:
        """Return copies of some slots' states (`[layers, width]` by name) and last outputs `[output]`, gathered at once; no batch is disturbed."""
        if not slots:
            return []
        rows = np.empty((len(slots), sum(column.shape[1] for column in self._columns)), dtype=np.float32)
        for source, found in self._sources(slots).items():
            columns = self._columns if source is None else self._sets[source]
            index = _index(tuple(row for _, row in found))
            rows[[at for at, _ in found]] = torch.cat([column.index_select(0, index) for column in columns], 1).numpy()
        return [self._split(row) for row in rows]

    def _sources(self, slots: Sequence[int]) -> dict[tuple[int, ...] | None, list[tuple[int, int]]]:
        """Return, for each working set that has some of the slots and under None for the pool itself, their places among `slots` and their rows."""
        at_work = {} if self._at_work.isdisjoint(slots) else {slot: (key, row) for key in self._sets for row, slot in enumerate(key)}
        sources: dict[tuple[int, ...] | None, list[tuple[int, int]]] = {}
        for at, slot in enumerate(slots):
            source, row = at_work.get(slot, (None, slot))
            sources.setdefault(source, []).append((at, row))
        return sources

    def _split(self, row: NDArray[np.float32]) -> tuple[State, NDArray[np.float32]]:
        state, at = {}, 0
        for spec in self.specs:
            state[spec.name] = row[at : at + spec.layers * spec.width].reshape(spec.layers, spec.width)
            at += spec.layers * spec.width
        return state, row[at:]

    def output(self, slot: int) -> Tensor:
        """Return a copy `[1, output]` of the last output of a slot."""
        self._settle(slot)
        return self._outputs[slot : slot + 1].clone()

    def write(self, slot: int, state: Mapping[str, NDArray[np.float32]], output: NDArray[np.float32] | None) -> None:
        """Set a slot's state (`[layers, width]` by name) and, where given, its last output."""
        self._settle(slot)
        for name, tensor in self._state.items():
            tensor[:, slot] = torch.from_numpy(np.array(state[name], dtype=np.float32))
        if output is not None:
            self._outputs[slot] = torch.from_numpy(np.array(output, dtype=np.float32))

    def clear(self, slot: int) -> None:
        """Set a slot's state to zero."""
        self._settle(slot)
        for tensor in self._state.values():
            tensor[:, slot].zero_()

    def _settle(self, slot: int) -> None:
        """Return the working set that has a slot, if one does, to the pool."""
        if slot in self._at_work:
            self._return(next(slots for slots in self._sets if slot in slots))

    def _to_return(self, sets: list[tuple[int, ...]]) -> list[tuple[Tensor, list[Tensor]]]:
        return [(_index(slots), self._sets[slots]) for slots in sets]

    def _return(self, slots: tuple[int, ...]) -> None:
        """Write a working set to its slots, and forget it."""
        gather(WorkingSet([], self._columns, self._to_return([slots]), _index(())))
        self._forget([slots])

    def _forget(self, sets: list[tuple[int, ...]]) -> None:
        for slots in sets:
            del self._sets[slots]
            self._at_work.difference_update(slots)


def _zero_pages(*shape: int) -> Tensor:
    """Return zeros float32 in pages that the system gives out when they are first touched; `torch.zeros` touches all of them at once."""
    return torch.from_numpy(np.zeros(shape, dtype=np.float32))


def _index(slots: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.array(slots, dtype=np.int64))
