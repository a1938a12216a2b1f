"""The event loop's side of a call: what the engine emitted and the caller has not taken yet. Only the loop touches it, but for the counters named below."""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cellstate_service.engine.request import Event, Failed, Finished, Outputs, StopTaken
from cellstate_service.errors import CellstateError


@dataclass(slots=True)
class Emitted:
    """Outputs of contiguous steps, coalesced.

    Attributes:
        first_position: Position of the first step.
        position: Position after the last step.
        values: Token ids, one per step, or blocks of rows float32 [n, width].
        text: Text of the steps.
        log_probabilities: One per step where asked for, else empty.
        generated: Whether the steps generated (otherwise they consumed inputs).
    """

    first_position: int
    position: int
    generated: bool
    values: "list[int] | list[NDArray[np.float32]]" = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.position - self.first_position

    def takes(self, outputs: Outputs, limit: int) -> bool:
        """Whether outputs join these: they are the next ones, of the same kind, and the limit is not passed."""
        return self.position == outputs.first_position and self.generated == outputs.generated and self.steps + len(outputs.values) <= limit

    def add(self, outputs: Outputs) -> None:
        """Append the outputs that follow these."""
        if isinstance(outputs.values, list):
            self.values.extend(outputs.values)  # type: ignore[arg-type]
        else:
            self.values.append(outputs.values)  # type: ignore[arg-type]
        self.position = outputs.position
        if outputs.text:
            self.text.append(outputs.text)
        if outputs.log_probabilities:
            self.log_probabilities += outputs.log_probabilities

    def extend(self, other: "Emitted") -> None:
        """Append the outputs that follow these."""
        self.values += other.values  # type: ignore[operator]
        self.text += other.text
        self.log_probabilities += other.log_probabilities
        self.position = other.position


Item = Emitted | Finished | StopTaken
_numbers = itertools.count(1)


class Outbox:
    """Events of one call in their order, outputs coalesced while nobody takes them.

    Attributes:
        number: Rises with each made.
        window: Steps that may wait here before the engine pauses the session.
        coalesced: Steps that are joined into one item at most.
        sent: Steps that the engine emitted. Written by the engine thread.
        taken: Steps that the caller took. Written by the loop.
        paused: The session waits for the caller to take outputs. Written by the engine thread.
        dropped: The call failed or ended, so that the engine takes no more requests of it. Written by the engine thread.
        positioned: Its caller knows of positions: a request that names none begins where its session stands, and can be repeated.
        follows: Where the call's last request ended, in calls that name a position: there its next one begins. Written by the engine thread.
        listener: Called in the loop when events have arrived, beside whoever waits.
    """

    __slots__ = (
        "_error",
        "_held",
        "_items",
        "_on_held",
        "_waiter",
        "coalesced",
        "dropped",
        "follows",
        "listener",
        "number",
        "paused",
        "positioned",
        "sent",
        "taken",
        "window",
    )

    def __init__(self, window: int, coalesced: int) -> None:
        self.number = next(_numbers)
        self.window = window
        self.coalesced = coalesced
        self.sent = 0
        self.taken = 0
        self.paused = False
        self.dropped = False
        self.positioned = False
        self.follows: int | None = None
        self.listener: Callable[[], None] | None = None
        self._items: deque[Item] = deque()
        self._error: CellstateError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._held: deque[Event] | None = None
        self._on_held: Callable[[], None] | None = None

    @property
    def full(self) -> bool:
        """Whether as many steps wait as may."""
        return self.sent - self.taken >= self.window

    @property
    def room(self) -> int:
        """Steps that may be emitted before it is full."""
        return self.window - (self.sent - self.taken)

    @property
    def has_room_again(self) -> bool:
        """Whether a paused session should go on: half of the window is free."""
        return self.sent - self.taken <= self.window // 2

    def push(self, event: Event) -> None:
        """Take in one event from the engine. Called in the loop; does not wake the caller, see `wake`."""
        if self._held is None or (isinstance(event, Failed) and not self._held):
            self._take_in(event)
            return
        self._held.append(event)
        if self._on_held is not None:
            self._on_held()

    def hold(self, on_held: Callable[[], None]) -> None:
        """Hold what the engine emits from now on until it is secured. `on_held` is called with each event that waits for that."""
        self._held, self._on_held = deque(), on_held

    def secure(self, position: int) -> None:
        """Let go of what is held up to a position; errors behind it follow."""
        while self._held and (isinstance(self._held[0], Failed) or self._held[0].position <= position):
            self._take_in(self._held.popleft())
        self.wake()

    def abandon(self, error: CellstateError) -> None:
        """Drop what is held: it cannot be secured. The call fails, with the error that waited behind where there is one."""
        failed = next((event for event in self._held or () if isinstance(event, Failed)), Failed(error))
        self._held = deque()
        self._take_in(failed)
        self.wake()

    def _take_in(self, event: Event) -> None:
        if self._error is not None:
            return
        if isinstance(event, Outputs):
            last = self._items[-1] if self._items else None
            if not isinstance(last, Emitted) or not last.takes(event, self.coalesced):
                last = Emitted(event.first_position, event.first_position, event.generated)
                self._items.append(last)
            last.add(event)
        elif isinstance(event, Failed):
            self._error = event.error
        else:
            self._items.append(event)

    @property
    def failure(self) -> CellstateError | None:
        """Why the call failed; what was emitted before can still be taken."""
        return self._error

    def wake(self) -> None:
        """Tell who waits for an arrival, and the listener."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self.listener is not None:
            self.listener()

    async def arrival(self) -> None:
        """Wait until something arrives."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def next_ready(self) -> Item | None:
        """Return the next item if one is there."""
        return self._take() if self._items else None

    def _take(self) -> Item:
        item = self._items.popleft()
        if isinstance(item, Emitted):
            self.taken += item.steps
        return item
