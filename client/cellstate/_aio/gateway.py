"""Many sessions on one stream, asyncio face."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Self, TypeVar, Unpack

from cellstate._aio.carrier import Carrier
from cellstate._aio.transport import Transport
from cellstate._gateway_core import GatewayCore, on_channel, step_messages
from cellstate._stream_core import StreamCore
from cellstate._tracking import Handle
from cellstate.errors import CellstateError
from cellstate.inputs import Input
from cellstate.outputs import Completion, Emit, Output
from cellstate.programs import ChannelOptions, DirectiveOptions

T = TypeVar("T")


class AsyncChannel:
    """One session, or one fresh state, on a gateway's stream. See `Channel`. Made by `AsyncGateway.open`."""

    def __init__(self, gateway: "AsyncGateway", core: StreamCore) -> None:
        self._gateway = gateway
        self._core = core
        self._arrived = asyncio.Event()

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
            emit: Which of its outputs are answered, where it differs from the channel's.
        """
        self._gateway._carrier.put(*(on_channel(self._core, message) for message in self._core.send(value, emit)))

    async def generate(self, **options: Unpack[DirectiveOptions]) -> None:
        """Generate after all that was sent before; `until_completion` reads what comes."""
        self._gateway._carrier.put(on_channel(self._core, self._core.generate(options)))

    async def stop(self) -> int:
        """End the generation that is running or waiting to run, and return the position where that took effect. Outputs that come before it stay to be read."""
        self._gateway._carrier.put(on_channel(self._core, self._core.stop()))
        try:
            position = await self._wait(self._core.stops.popleft, lambda: bool(self._core.stops))
        except asyncio.CancelledError:
            self._core.nobody_waits_for_stop()
            raise
        if position is None:
            raise RuntimeError("the channel ended before the stop took effect")
        return position

    async def receive(self) -> Output | Completion | None:
        """Return the next output, or the completion of a generation, waiting for it; None where the channel has ended.

        Raises:
            CellstateError: The channel failed, or the stream did.
        """
        return await self._wait(self._core.events.popleft, lambda: bool(self._core.events))

    async def until_completion(self) -> AsyncIterator[Output]:
        """Iterate outputs up to the end of the generation that runs, and leave `completion` behind."""
        while isinstance(event := await self.receive(), Output):
            yield event

    async def close(self) -> int:
        """End the channel once all that was sent on it is answered, and return the position. What was not read yet stays to be read.

        Raises:
            CellstateError: The channel failed, or the stream did.
        """
        self._gateway._carrier.close(self._core)
        await self._wait(lambda: None, lambda: False)
        return self.position

    def __aiter__(self) -> AsyncIterator[Output]:
        """Return itself."""
        return self

    async def __anext__(self) -> Output:
        """Return the next output, waiting for it; completions are passed over."""
        while (event := await self.receive()) is not None:
            if isinstance(event, Output):
                return event
        raise StopAsyncIteration

    async def _opened(self) -> Self:
        await self._wait(lambda: True, lambda: self._core.opened)
        return self

    async def _wait(self, take: Callable[[], T], ready: Callable[[], bool]) -> T | None:
        """Wait until `ready`, then `take`; None where the channel has ended."""
        while not ready():
            if self._core.ended:
                if self._core.error is not None:
                    raise self._core.error
                return None
            self._arrived.clear()
            await self._arrived.wait()
        return take()


class AsyncGateway:
    """Many sessions on one stream. See `Gateway`. Cancelling a task that waits for one channel leaves the others alone."""

    def __init__(self, transport: Transport, timeout_s: float | None) -> None:
        self._core = GatewayCore(timeout_s, transport.connection.resume_s)
        self._carrier = Carrier(transport, self._core)

    async def open(self, model: str | Handle, **options: Unpack[ChannelOptions]) -> AsyncChannel:
        """Open a channel, and wait until it is open.

        Args:
            model: A model's name, for a fresh state that is dropped with the channel; or a session handle.
            options: See `ChannelOptions`.

        Raises:
            CellstateError: It is refused: no such model or session, busy, or the server has as many calls as allowed.
        """
        core, message = self._core.open(model, options)
        channel = AsyncChannel(self, core)
        self._carrier.events[core] = channel._arrived
        self._carrier.put(message)
        try:
            return await channel._opened()
        except asyncio.CancelledError:
            self._carrier.close(core)
            raise

    async def step(self, inputs: Mapping[AsyncChannel, Input]) -> dict[AsyncChannel, Output | CellstateError]:
        """Take one step on each of many channels, by one message up and, where the server is ready with all, one down.

        For channels on which nothing else is outstanding: what `send` and `generate` asked for is received first. Where it is cancelled, steps that were
        asked are taken all the same; outputs that had not come are passed over.

        Args:
            inputs: One step for each channel: a vector is the features of the one step. Of several steps, the last one's output is returned.

        Returns:
            The output, or the error, of each: each channel fails or succeeds by itself. A channel that failed is closed; open another one.
        """
        messages, errors = step_messages({channel._core: value for channel, value in inputs.items()})
        self._carrier.put(*messages)
        results: dict[AsyncChannel, Output | CellstateError] = {channel: errors[channel._core] for channel in inputs if channel._core in errors}
        try:
            for channel in inputs:
                if channel not in results:
                    results[channel] = await _output(channel)
        except asyncio.CancelledError:
            for channel in inputs.keys() - results.keys():
                channel._core.nobody_waits_for_output()
            raise
        return {channel: results[channel] for channel in inputs}

    async def finish(self) -> None:
        """Close all channels once all that was sent is answered, and wait for the stream's end. What was not read yet stays to be read.

        Raises:
            CellstateError: The stream failed.
        """
        self._carrier.finish()
        await asyncio.wait([self._carrier.reading])
        if self._core.error is not None:
            raise self._core.error

    def cancel(self) -> None:
        """End the stream with all its channels now. On sessions, steps already taken stay taken."""
        self._carrier.cancel()

    async def close(self) -> None:
        """Cancel the stream where it has not ended."""
        self.cancel()
        await asyncio.wait([self._carrier.reading])

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Close."""
        await self.close()

    def __del__(self) -> None:
        """Cancel the stream where nobody holds it or a channel of it any more."""
        if hasattr(self, "_carrier"):
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                self.cancel()


async def _output(channel: AsyncChannel) -> Output | CellstateError:
    try:
        event = await channel.receive()
    except CellstateError as error:
        return error
    if not isinstance(event, Output):
        raise RuntimeError("the channel was closed, or generates: step takes channels on which nothing else is outstanding")
    return event
