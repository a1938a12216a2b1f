"""A call: one RPC's hold on a session, or on a state of its own that ends with it."""

import asyncio
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cellstate_service.engine.engine import Engine
from cellstate_service.engine.outbox import Emitted, Item, Outbox
from cellstate_service.engine.request import Request
from cellstate_service.engine.resident import Resident
from cellstate_service.errors import CellstateError
from cellstate_service.models.loading import LoadedModel

if TYPE_CHECKING:
    from cellstate_service.sessions.session import Session

MAX_QUEUED_REQUESTS = 1024
QUEUED_BYTES = 8 << 20
WINDOW_BYTES = 8 << 20
MESSAGE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class CallBounds:
    """How much of one call may wait.

    Attributes:
        window_steps: Steps generated ahead of a reader that is slow; fewer where they would fill more than 8 MiB.
        queued_steps: Steps of input that wait for the engine; fewer where they would fill more than 8 MiB.
    """

    window_steps: int = 256
    queued_steps: int = 65_536


class Call:
    """Hands requests to the engine and returns what comes back, in order.

    Attributes:
        engine: What it runs on.
        model: The model of that.
        session: Its session, or None where the state ends with the call.
    """

    def __init__(self, engine: Engine, resident: Resident, session: "Session | None", bounds: CallBounds) -> None:
        self.model: LoadedModel = engine.model
        self.session = session
        row_bytes = 4 * engine.model.network.output_size
        self.outbox = Outbox(max(1, min(bounds.window_steps, WINDOW_BYTES // row_bytes)), max(1, MESSAGE_BYTES // row_bytes))
        self.engine = engine
        self._resident = resident
        self._max_queued_steps = bounds.queued_steps
        self._queued: deque[tuple[int, int]] = deque()  # steps and bytes of input of each request or stop that has not been answered
        self._queued_steps = 0
        self._queued_bytes = 0
        self._room: asyncio.Event | None = None  # made where somebody waits for it
        self._half_closed = False
        self._failing = False
        self._acknowledges = False
        self._stream_token = ""
        self._told_safe: int | None = None

    @property
    def stream_token(self) -> str:
        """Whoever presents it supersedes this call. Drawn when it is first asked for: most calls end without anybody having learned of it."""
        if not self._stream_token:
            self._stream_token = secrets.token_urlsafe(12)
        return self._stream_token

    def is_presented(self, stream_token: str) -> bool:
        """Whether somebody presents this call's token."""
        return bool(self._stream_token) and secrets.compare_digest(stream_token.encode(), self._stream_token.encode())

    def secured_news(self) -> int | None:
        """Return the newest position that is in the store, where that is to be told and was not yet."""
        safe = None if self.session is None else self.session.safe_position
        if safe == self._told_safe:
            return None
        self._told_safe = safe
        return safe

    @property
    def seed(self) -> int:
        """Seed of draws that name none."""
        return self._resident.seed

    async def position(self) -> int:
        """Return the position after everything that was handed over before."""
        return await self.engine.position(self._resident)

    def submit(self, request: Request) -> None:
        """Hand over a request whose outbox is this call's."""
        self._hand_over(request.input_steps, 0 if request.inputs is None else request.inputs.nbytes)
        self.engine.submit(self._resident, request)

    def stop_generation(self) -> None:
        """End the generations that are running or waiting to run; `next` returns StopTaken in its turn."""
        self._hand_over(0, 0)
        self.engine.stop_generation(self._resident, self.outbox)

    def acknowledge(self, position: int, *, running: bool = True) -> None:
        """Take in up to where the caller has all outputs: what lies before need not be kept to be answered again."""
        if self.session is not None and not self._failing:  # what the session keeps may be another call's by now
            self._acknowledges = self._acknowledges or running
            self.engine.acknowledge(self._resident, position, running=running)

    def ask_position(self) -> None:
        """Have the position told in its turn, behind all that was handed over: `next` returns StopTaken. With generations behind it, see `stop_generation`."""
        self.stop_generation()

    @property
    def has_room(self) -> bool:
        """Whether more may be handed over now: the engine has worked off enough of what was, or the call has ended."""
        if self._failing:
            return True
        return self._queued_steps < self._max_queued_steps and self._queued_bytes < QUEUED_BYTES and len(self._queued) < MAX_QUEUED_REQUESTS

    async def room(self) -> None:
        """Wait until the engine has worked off enough of what was handed over."""
        while not self.has_room:
            self._room = asyncio.Event()
            await self._room.wait()

    @property
    def failure(self) -> CellstateError | None:
        """Why the call failed; what was emitted before comes first."""
        return self.outbox.failure

    def listen(self, listener: Callable[[], None] | None) -> None:
        """Have `listener` called, in the loop, whenever something may have arrived; None ends it."""
        self.outbox.listener = listener

    @property
    def owes(self) -> bool:
        """Whether a request or a stop that was handed over is not answered yet."""
        return bool(self._queued)

    def half_close(self) -> None:
        """Say that nothing more will be handed over: once all is answered, `next` returns None."""
        self._half_closed = True
        if self._acknowledges and not self._failing:
            self.engine.acknowledged_last(self._resident)
        self.outbox.wake()

    async def next(self) -> Item | None:
        """Return the next item: emitted outputs (all that wait, of contiguous steps), the end of a request, or the answer to a stop.

        None where the call is half-closed and everything has been answered.

        Raises:
            CellstateError: The call failed; everything emitted before has been returned.
        """
        outbox = self.outbox
        while (item := outbox.next_ready()) is None:
            if outbox.failure is not None:
                raise outbox.failure
            if self._half_closed and not self._queued:
                return None
            await outbox.arrival()
        return self._taken(item)

    def next_ready(self) -> Item | None:
        """Return the next item if one is there."""
        item = self.outbox.next_ready()
        return None if item is None else self._taken(item)

    def _taken(self, item: Item) -> Item:
        if isinstance(item, Emitted):
            if self.outbox.paused and self.outbox.has_room_again:
                self.engine.resume(self._resident)
        else:
            steps, size = self._queued.popleft()
            self._queued_steps -= steps
            self._queued_bytes -= size
            if self._room is not None and self.has_room:
                self._open_room()
        return item

    def fail(self, error: CellstateError) -> None:
        """End the call from outside: its session was deleted, or a newer call took over."""
        self.engine.cancel(self._resident, self.outbox, error)
        self._failing = True
        self._open_room()

    def abandon(self, error: CellstateError) -> None:
        """End the call: outputs that wait to be secured cannot be."""
        self.outbox.abandon(error)
        self.fail(error)

    def end(self) -> None:
        """Drop what is left of its requests, and its state where it has no session."""
        if self.session is None:
            self.engine.release(self._resident)
        else:
            self.engine.cancel(self._resident, self.outbox)

    def _hand_over(self, steps: int, size: int) -> None:
        self._queued.append((steps, size))
        self._queued_steps += steps
        self._queued_bytes += size

    def _open_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None
