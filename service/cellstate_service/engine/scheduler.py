"""Chooses which sessions step next, and how long a piece of its input each takes. Pure bookkeeping: no tensors, no I/O, no clock (`now` is passed in)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key")


class Scheduler(Generic[Key]):
    """A ring of sessions that are ready to step.

    Every selection takes one step of each ready session, up to `max_rows`. Where more are ready, those selected go to the end of the ring: of R ready sessions
    each steps at least once in any ceil(R / max_rows) selections. While the ready sessions stay the same and fit, their order stays the same.
    """

    def __init__(self, max_rows: int) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows: {max_rows} is below 1")
        self._max_rows = max_rows
        self._ready: dict[Key, float | None] = {}

    def __len__(self) -> int:
        """Return the number of ready sessions."""
        return len(self._ready)

    def __contains__(self, key: Key) -> bool:
        return key in self._ready

    def add(self, key: Key, deadline_s: float | None = None) -> None:
        """Make a session ready; past its deadline it is handed out as overdue instead of stepping."""
        self._ready[key] = deadline_s

    def remove(self, key: Key) -> None:
        """Make a session not ready. Nothing happens where it is not."""
        self._ready.pop(key, None)

    def select(self, now_s: float) -> tuple[list[Key], list[Key]]:
        """Return the sessions that step now, at most `max_rows`, and those whose deadline has passed, which are not ready any more."""
        overdue = [key for key, deadline_s in self._ready.items() if deadline_s is not None and deadline_s <= now_s]
        for key in overdue:
            del self._ready[key]
        if len(self._ready) <= self._max_rows:
            return list(self._ready), overdue
        rows = [key for key, _ in zip(self._ready, range(self._max_rows), strict=False)]
        for key in rows:
            self._ready[key] = self._ready.pop(key)
        return rows, overdue


CHUNK_ROW_STEPS = 256
"""Rows times steps of one piece of long inputs at most, where nobody else waits."""
CHUNK_STEPS = 64
"""Steps of one piece at most."""
FEW_ROWS = 6
"""A step of few rows costs as if it had this many more: its weights are read from memory once, however few they are for."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """How the sessions of one iteration step.

    Attributes:
        single: Indices of those that take one step, all in one batch.
        chunked: Indices of those that take `steps` steps of input, in a batch of their own.
        steps: For those.
    """

    single: list[int]
    chunked: list[int]
    steps: int


def plan_steps(left: Sequence[int], ahead: int = 1) -> StepPlan:
    """Divide the sessions of one iteration into those that take one step and those that take a piece of a long input.

    A piece costs those who wait for it no more than what they take at once, so that a long input at most doubles the time between two messages of others. Where
    a piece would come down to one step, all step together.

    Args:
        left: Steps of input that each session could take at once; below 2 where it has none or one, or generates.
        ahead: Steps that the others take at once.
    """
    chunked = [index for index, steps in enumerate(left) if steps > 1]
    single = [index for index, steps in enumerate(left) if steps <= 1]
    if not chunked:
        return StepPlan(single, [], 1)
    most = ahead * (len(single) + FEW_ROWS) // (len(chunked) + FEW_ROWS) if single else CHUNK_ROW_STEPS // len(chunked)
    steps = min(most, CHUNK_STEPS, *(left[index] for index in chunked))
    steps = 1 << steps.bit_length() - 1 if steps > 1 else 1  # a power of two: see `size_of_batch`
    return StepPlan(single, chunked, steps) if steps > 1 else StepPlan(list(range(len(left))), [], 1)


MESSAGE_S = 150e-6
"""Processor time that a message costs, caller and server together."""
MESSAGE_SHARE = 0.1
"""What messages may cost beside steps."""
MAX_AHEAD = 16
"""Steps of generation that are taken at once, at most."""
PART_ROWS = 4
"""Rows that a thread takes at least: fewer cost as much as these do, since the weights are read for them all the same."""
PART_S = 5e-3
"""What a thread is given to do at least. Single steps of shorter batches are better left whole: the event loop and callers need processors then, too."""


class Pace:
    """How many steps of generation are taken before their outputs are told, and by how many threads.

    With many streams a message for each token costs more than the token's step does, and takes the step's processor from it. So as many steps are taken at once
    as bring the messages down to a tenth of what the steps cost; a lone stream of a large model is told each.

    Args:
        max_ahead_s: For no longer than this.
    """

    def __init__(self, max_ahead_s: float) -> None:
        self._max_ahead_s = max_ahead_s
        self._step_s = 0.0
        self._row_s = 0.0

    def took(self, used_s: float, rows: int, steps: int, parts: int = 1) -> None:
        """Take in the processor time that one thread used for some steps: what they took on the clock says also who else was on the machine."""
        self._step_s = used_s / steps
        self._row_s = self._step_s * parts / rows

    def steps(self, rows: int) -> int:
        """Return how many steps to take at once for that many sessions."""
        if self._step_s <= 0:
            return 1
        wanted = rows * MESSAGE_S / (MESSAGE_SHARE * self._step_s)
        return max(1, min(MAX_AHEAD, int(wanted), int(self._max_ahead_s / self._step_s)))

    def parts(self, rows: int, steps: int, threads: int) -> int:
        """Return the number of parts, each for one of `threads`, in which to take steps of that many rows.

        A power of two, so that a part is of a size that batches have.
        """
        parts, each_s = 1, rows * steps * self._row_s / 2
        while 2 * parts <= threads and 2 * parts * PART_ROWS <= rows and each_s >= PART_S:
            parts, each_s = 2 * parts, each_s / 2
        return parts
