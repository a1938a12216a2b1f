"""Who has which slot of the state pool, and copies of sessions' states in and out of it. Engine thread only."""

from collections.abc import Sequence
from dataclasses import replace

from cellstate_service.engine.journal import Journal
from cellstate_service.engine.resident import TAIL_TOKENS, Resident, ResidentState
from cellstate_service.engine.state_pool import StatePool
from cellstate_service.errors import NotFound, Precondition, Reason
from cellstate_service.observability.metrics import ModelMetrics


class Slots:
    """Gives residents their slots; reads and writes what is in them, with all that belongs to a session's future."""

    def __init__(self, pool: StatePool, metrics: ModelMetrics) -> None:
        self._pool = pool
        self._metrics = metrics

    def acquire(self, resident: Resident, state: ResidentState | None) -> None:
        """Give a session a slot, with a state to begin from where one is given; raises Exhausted."""
        resident.slot = self._pool.acquire()
        self._metrics.slots_in_use.set(self._pool.in_use)
        if state is not None:
            self.write(resident, state)

    def release(self, resident: Resident) -> None:
        """Give a session's slot back, where it has one; it takes no more requests."""
        resident.closed = True
        if resident.slot is not None:
            self._pool.release(resident.slot)
            resident.slot = None
        self._metrics.slots_in_use.set(self._pool.in_use)

    def read(self, resident: Resident) -> ResidentState:
        """Return a copy of a session's state.

        Raises:
            NotFound: It has none.
        """
        (state,) = self.read_many([resident])
        if state is None:
            raise NotFound("the session was deleted", Reason.SESSION_CLOSED)
        return state

    def read_many(self, residents: Sequence[Resident]) -> list[ResidentState | None]:
        """Return copies of sessions' states, gathered at once; None for those that have no slot."""
        found = [resident for resident in residents if resident.slot is not None]
        rows = iter(self._pool.read_many([resident.taken_slot for resident in found]))
        states: list[ResidentState | None] = []
        for resident in residents:
            if resident.slot is None:
                states.append(None)
                continue
            tensors, output = next(rows)
            context, pending = ([], []) if resident.decoder is None else resident.decoder.snapshot()
            states.append(
                ResidentState(
                    position=resident.position,
                    seed=resident.seed,
                    tensors=tensors,
                    last_output=output if resident.has_output else None,
                    tail_tokens=tuple(resident.tail_tokens or ())[-TAIL_TOKENS:],
                    tail_text=resident.tail_text,
                    text_context=tuple(context),
                    text_pending=tuple(pending),
                    journal=None if resident.journal is None else resident.journal.kept(resident.position),
                    rolled_back=resident.behind,
                )
            )
        return states

    def fork(self, resident: Resident, other: Resident) -> int:
        """Give another session a slot with a copy of this one's state, which nobody has asked anything, and return the position."""
        self.acquire(other, replace(self.read(resident), seed=other.seed, journal=None, rolled_back=False))
        return other.position

    def reset(self, resident: Resident, seed: int) -> None:
        """Put a session back to the initial state.

        Raises:
            Precondition: SESSION_BUSY: something is asked of it.
        """
        if resident.requests:
            raise Precondition("a call is on the session: end it first", Reason.SESSION_BUSY, field="name")
        if resident.slot is not None:
            self._pool.clear(resident.slot)
        resident.position, resident.seed, resident.has_output, resident.rolled_back = 0, seed, False, False
        resident.tail_tokens, resident.tail_text, resident.journal = None, "", None
        if resident.decoder is not None:
            resident.decoder.reset()

    def write(self, resident: Resident, state: ResidentState) -> None:
        """Put a session that has a slot into a state."""
        self._pool.write(resident.taken_slot, state.tensors, state.last_output)
        resident.position, resident.seed, resident.has_output = state.position, state.seed, state.last_output is not None
        resident.tail_tokens = list(state.tail_tokens) or None
        resident.tail_text = state.tail_text
        resident.journal = None if state.journal is None else Journal.restored(state.journal)
        resident.rolled_back = state.rolled_back
        if resident.decoder is not None:
            resident.decoder.restore(list(state.text_context), list(state.text_pending))
