"""The event loop's side of a call: what the engine emitted and the caller has not taken yet. Only the loop touches it, but for the counters named below."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cellstate_service.engine.request import Event, Failed, Finished, StepOutput, StopTaken
from cellstate_service.errors import CellstateError


@dataclass(slots=True)
class Emitted:
    """Outputs of contiguous steps, coalesced.

    Attributes:
        first_position: Position of the first step.
        position: Position after the last step.
        values: Token ids, or rows float32 [width], one per step.
        text: Text of the steps.
        log_probabilities: One per step where asked for, else empty.
        generated: Whether the steps generated (otherwise they consumed inputs).
    """

    first_position: int
    position: int
    generated: bool
    values: "list[int | NDArray[np.float32]]" = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)

    def takes(self, step: StepOutput, limit: int) -> bool:
        """Whether a step joins these: it is the next one, of the same kind, and the limit is not reached."""
        return self.position == step.position and self.generated == step.generated and len(self.values) < limit

    def add(self, step: StepOutput) -> None:
        """Append the next step."""
        self.values.append(step.value)
        self.position = step.position + 1
        if step.text:
            self.text.append(step.text)
        if step.log_probability is not None:
            self.log_probabilities.append(step.log_probability)

    def extend(self, other: "Emitted") -> None:
        """Append the outputs that follow these."""
        self.values += other.values
        self.text += other.text
        self.log_probabilities += other.log_probabilities
        self.position = other.position


Item = Emitted | Finished | StopTaken


class Outbox:
    """Events of one call in their order, outputs coalesced while nobody takes them.

    Attributes:
        window: Steps that may wait here before the engine pauses the session.
        coalesced: Steps that are joined into one item at most.
        sent: Steps that the engine emitted. Written by the engine thread.
        taken: Steps that the caller took. Written by the loop.
        paused: The session waits for the caller to take outputs. Written by the engine thread.
        dropped: The call failed or ended, so that the engine takes no more requests of it. Written by the engine thread.
    """

    __slots__ = ("_error", "_items", "_waiter", "coalesced", "dropped", "paused", "sent", "taken", "window")

    def __init__(self, window: int, coalesced: int) -> None:
        self.window = window
        self.coalesced = coalesced
        self.sent = 0
        self.taken = 0
        self.paused = False
        self.dropped = False
        self._items: deque[Item] = deque()
        self._error: CellstateError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def full(self) -> bool:
        """Whether as many steps wait as may."""
        return self.sent - self.taken >= self.window

    @property
    def has_room_again(self) -> bool:
        """Whether a paused session should go on: half of the window is free."""
        return self.sent - self.taken <= self.window // 2

    def push(self, event: Event) -> None:
        """Take in one event from the engine. Called in the loop; does not wake the caller, see `wake`."""
        if self._error is not None:
            return
        if isinstance(event, StepOutput):
            last = self._items[-1] if self._items else None
            if not isinstance(last, Emitted) or not last.takes(event, self.coalesced):
                last = Emitted(event.position, event.position, event.generated)
                self._items.append(last)
            last.add(event)
        elif isinstance(event, Failed):
            self._error = event.error
        else:
            self._items.append(event)

    def wake(self) -> None:
        """Wake the caller that waits in `next`."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> Item:
        """Return the next item, waiting for it.

        Raises:
            CellstateError: The call failed; everything emitted before has been returned.
        """
        while not self._items:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._take()

    def next_ready(self) -> Item | None:
        """Return the next item if one is there."""
        return self._take() if self._items else None

    def _take(self) -> Item:
        item = self._items.popleft()
        if isinstance(item, Emitted):
            self.taken += len(item.values)
        return item
