"""What streaming calls of the asyncio face return: `AsyncOutputs`, which is read, and `AsyncStream`, which is also written."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from cellstate._aio.transport import Source, Transport, being_cancelled, client_closed, to_error
from cellstate._exchange import Call, Reader
from cellstate._resume import Regenerating
from cellstate._stream_core import StreamCore
from cellstate._tracking import Handle
from cellstate.errors import CellstateError
from cellstate.inputs import Input
from cellstate.outputs import Completion, Emit, Output, join_outputs
from cellstate.programs import DirectiveOptions, StreamOptions

T = TypeVar("T")


class AsyncOutputs:
    """Iterates the outputs of a call as they arrive. Closing it, leaving its context or dropping it before the end cancels the call. See `Outputs`."""

    def __init__(
        self,
        call: Call[Any],
        reader: Reader,
        answers: Any,
        source: Source | None = None,
        *,
        again: Callable[[Call[Any]], Any] | None = None,
        regenerating: Regenerating | None = None,
    ) -> None:
        self._call = call
        self._reader = reader
        self._answers = answers
        self._messages = aiter(answers)
        self._source = source
        self._again = again
        self._regenerating = regenerating
        self._ended = False

    @property
    def completion(self) -> Completion | None:
        """How generation ended; None before the end, and for calls that generate nothing."""
        return self._reader.completion

    async def text(self) -> str:
        """Read to the end and return the outputs' text in one."""
        return (await self.collect()).text

    async def collect(self) -> Output:
        """Read to the end and return the outputs in one."""
        return join_outputs([output async for output in self])

    def cancel(self) -> None:
        """End the call now; iteration ends. On a session, steps already taken stay taken."""
        if not self._ended:
            self._ended = True
            self._reader.cut()
            self._answers.cancel()

    async def close(self) -> None:
        """Cancel the call where it has not ended."""
        self.cancel()

    def __aiter__(self) -> AsyncIterator[Output]:
        """Return itself."""
        return self

    async def __anext__(self) -> Output:
        """Return the next output, waiting for it.

        Raises:
            CellstateError: The call failed.
        """
        while not self._ended:
            try:
                response = await anext(self._messages)
            except StopAsyncIteration:
                self._end()
            except (grpc.RpcError, asyncio.CancelledError) as error:
                if not (isinstance(error, grpc.RpcError) and await self._goes_on(to_error(error))):
                    self._fail(error)
            else:
                for event in self._reader.read(response):
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
        """Cancel the call where nobody reads it any more."""
        if not getattr(self, "_ended", True):
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                self.cancel()

    async def _goes_on(self, error: CellstateError) -> bool:
        """Make the call again where its connection was lost, after a while; False where the error is its end."""
        if self._ended or self._regenerating is None or self._again is None:
            return False
        wait_s = self._regenerating.wait_s(error)
        if wait_s is None:
            return False
        await asyncio.sleep(wait_s)
        if not self._ended:
            self._answers = self._again(dataclasses.replace(self._call, request=self._regenerating.request(), timeout_s=self._regenerating.timeout_s))
            self._messages = aiter(self._answers)
        return not self._ended

    def _end(self) -> None:
        self._ended = True
        if self._source is not None and self._source.error is not None:  # the server was faster than the cancellation
            self._reader.cut()
            raise self._source.error from None
        self._reader.ended()

    def _fail(self, error: BaseException) -> None:
        """Raise what the call failed with; return where the caller ended it."""
        if self._ended and not being_cancelled():
            return
        self._ended = True
        failed = self._source.error if self._source is not None else None
        if failed is None and isinstance(error, grpc.RpcError):
            self._reader.failed()
            raise self._call.failed(to_error(error)) from None
        if failed is None and not being_cancelled():
            self._reader.failed()
            raise self._call.failed(client_closed()) from None
        self._reader.cut()
        if failed is not None:
            raise failed from None
        raise error


class AsyncStream:
    """A full-duplex stream: inputs and directives go in, outputs come out, in the order in which they were asked for. See `Stream`.

    One task may read while others write. Cancelling a task that reads ends the stream.
    """

    def __init__(self, transport: Transport, model: str | Handle, options: StreamOptions) -> None:
        self._transport = transport
        self._core = StreamCore(model, options, transport.connection.resume_s)
        self._arrived = asyncio.Condition()
        self._reading = False
        self._writing = asyncio.Lock()
        self._open(self._core.call, [self._core.opening])

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
            for message in self._core.send(value, emit):
                self._outbox.put_nowait(message)

    async def generate(self, **options: Unpack[DirectiveOptions]) -> None:
        """Generate after all that was sent before; `until_completion` reads what comes."""
        async with self._writing:
            self._outbox.put_nowait(self._core.generate(options))

    async def stop(self) -> int:
        """End the generation that is running or waiting to run, and return the position where that took effect. Outputs that come before it stay to be read."""
        async with self._writing:
            self._outbox.put_nowait(self._core.stop())
            position = await self._wait(self._core.stops.popleft, lambda: bool(self._core.stops))
        if position is None:
            raise RuntimeError("the stream ended before the stop took effect")
        return position

    async def acknowledge(self, position: int | None = None) -> None:
        """Tell up to where outputs were received, so that the server need not keep what lies before; None: all that arrived."""
        async with self._writing:
            self._outbox.put_nowait(self._core.acknowledge(position))

    async def half_close(self) -> None:
        """Say that nothing more will be sent: what was asked is finished, then the stream ends."""
        async with self._writing:
            if not self._core.half_closed:
                self._core.half_closed = True
                self._outbox.put_nowait(None)

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
        if self._core.cut():
            self._outbox.put_nowait(None)
            self._answers.cancel()

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
        if hasattr(self, "_messages"):
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
            response = await anext(self._messages, None)
        except grpc.RpcError as raised:
            await self._fail(to_error(raised))
        except asyncio.CancelledError:
            if being_cancelled():
                self.cancel()
                raise
            self._finish(client_closed())  # does nothing where the stream was cut
        else:
            if response is None:
                self._finish(None)
            else:
                self._core.feed(response)
                due = self._core.due()
                if due is not None:
                    self._outbox.put_nowait(due)
        finally:
            self._reading = False
            async with self._arrived:
                self._arrived.notify_all()

    def _open(self, call: Call[Any], messages: Iterable[Any]) -> None:
        self._outbox: asyncio.Queue[Any] = asyncio.Queue()
        for message in messages:
            self._outbox.put_nowait(message)
        self._answers, _ = self._transport.duplex(call, _drain(self._outbox))
        self._messages = aiter(self._answers)

    async def _fail(self, error: CellstateError) -> None:
        """Open the stream again where its connection was lost, after a while; otherwise the error is its end."""
        wait_s = self._core.wait_s(error)
        self._outbox.put_nowait(None)
        if wait_s is None:
            self._finish(error)
            return
        await asyncio.sleep(wait_s)
        if not self._core.ended:
            self._open(dataclasses.replace(self._core.call, timeout_s=self._core.going_on.timeout_s), self._core.reopening())
            if self._core.half_closed:
                self._outbox.put_nowait(None)

    def _finish(self, error: Any) -> None:
        self._core.finish(error)
        self._outbox.put_nowait(None)


async def _drain(outbox: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    while (message := await outbox.get()) is not None:
        yield message
