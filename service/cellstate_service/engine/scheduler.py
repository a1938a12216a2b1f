"""Chooses which sessions take the next step. Pure bookkeeping: no tensors, no I/O, no clock (`now` is passed in)."""

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
