"""What is read and written, asyncio face: `AsyncStream`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self, TypeVar, Unpack

from cellstate._aio.duplex import Duplex
from cellstate._aio.transport import Transport
from cellstate._stream_core import StreamCore
from cellstate._tracking import Handle
from cellstate.inputs import Input
from cellstate.outputs import Completion, Emit, Output
from cellstate.programs import DirectiveOptions, StreamOptions

T = TypeVar("T")


class AsyncStream:
    """A full-duplex stream: inputs and directives go in, outputs come out, in the order in which they were asked for. See `Stream`.

    One task may read while others write. Cancelling a task that reads ends the stream.
    """

    def __init__(self, transport: Transport, model: str | Handle, options: StreamOptions) -> None:
        self._duplex = Duplex(transport, StreamCore(model, options, transport.connection.resume_s))
        self._core = self._duplex.core
        self._arrived = asyncio.Condition()
        self._reading = False
        self._writing = asyncio.Lock()

    @property
    def position(self) -> int:
        """The last position heard of."""
        return self._core.position

    @property
    def completion(self) -> Completion | None:
        """How the last generation that was read ended; None before."""
        return self._core.reader.completion

    async def send(self, value: Input, *, emit: Emit | str | None = None) -> None:
        """Send one chunk of input: one or more steps.

        Args:
            value: The chunk; see `Input`.
            emit: Which of its outputs are answered, where it differs from the stream's.
        """
        async with self._writing:
            self._duplex.put(*self._core.send(value, emit))

    async def generate(self, **options: Unpack[DirectiveOptions]) -> None:
        """Generate after all that was sent before; `until_completion` reads what comes."""
        async with self._writing:
            self._duplex.put(self._core.generate(options))

    async def stop(self) -> int:
        """End the generation that is running or waiting to run, and return the position where that took effect. Outputs that come before it stay to be read."""
        async with self._writing:
            self._duplex.put(self._core.stop())
            try:
                position = await self._wait(self._core.stops.popleft, lambda: bool(self._core.stops))
            except asyncio.CancelledError:
                self._core.nobody_waits_for_stop()
                raise
        if position is None:
            raise RuntimeError("the stream ended before the stop took effect")
        return position

    async def acknowledge(self, position: int | None = None) -> None:
        """Tell up to where outputs were received, so that the server need not keep what lies before; None: all that arrived."""
        async with self._writing:
            self._duplex.put(self._core.acknowledge(position))

    async def half_close(self) -> None:
        """Say that nothing more will be sent: what was asked is finished, then the stream ends."""
        async with self._writing:
            self._duplex.half_close()

    async def receive(self) -> Output | Completion | None:
        """Return the next output, or the completion of a generation, waiting for it; None where the stream has ended.

        Raises:
            CellstateError: The stream failed.
        """
        return await self._wait(self._core.events.popleft, lambda: bool(self._core.events))

    async def until_completion(self) -> AsyncIterator[Output]:
        """Iterate outputs up to the end of the generation that runs, and leave `completion` behind."""
        while isinstance(event := await self.receive(), Output):
            yield event

    def cancel(self) -> None:
        """End the stream now; iteration ends. On a session, steps already taken stay taken."""
        self._duplex.cancel()

    async def close(self) -> None:
        """Cancel the stream where it has not ended."""
        self.cancel()

    def __aiter__(self) -> AsyncIterator[Output]:
        """Return itself."""
        return self

    async def __anext__(self) -> Output:
        """Return the next output, waiting for it; completions are passed over."""
        while (event := await self.receive()) is not None:
            if isinstance(event, Output):
                return event
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Close."""
        await self.close()

    def __del__(self) -> None:
        """Cancel the stream where nobody holds it any more."""
        if hasattr(self, "_duplex"):
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                self.cancel()

    async def _wait(self, take: Callable[[], T], ready: Callable[[], bool]) -> T | None:
        """Read messages until `ready`, then `take`. One task reads for all that wait; None where the stream has ended."""
        while True:
            async with self._arrived:
                await self._arrived.wait_for(lambda: ready() or self._core.ended or not self._reading)
                if ready():
                    return take()
                if self._core.ended:
                    if self._core.error is not None:
                        raise self._core.error
                    return None
                self._reading = True
            await self._read()

    async def _read(self) -> None:
        """Read one message, and tell all that wait."""
        try:
            await self._duplex.read()
        finally:
            self._reading = False
            async with self._arrived:
                self._arrived.notify_all()
