"""A stream that is opened again where its connection was lost, asyncio face: `AsyncStream` and `AsyncOutputs` of sessions are read and written through it."""

import asyncio
import dataclasses
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import grpc

from cellstate._aio.transport import Transport, being_cancelled, client_closed, lost_call, to_error
from cellstate._exchange import Call
from cellstate._stream_core import StreamCore
from cellstate.errors import CellstateError, SessionRolledBack
from cellstate.outputs import Completion, Output


class Pump:
    """Reads a caller's iterable once, in a task of its own: a chunk whenever the connection, whichever it is by then, takes more.

    Attributes:
        error: What iterating it raised, or taking a chunk.
    """

    def __init__(self, chunks: AsyncIterable[Any] | Iterable[Any], take: Callable[[Any], None], end: Callable[[], None]) -> None:
        self.error: BaseException | None = None
        self._chunks = chunks
        self._take = take
        self._end = end
        self._wanted = asyncio.Event()
        self._stopped = False
        self._task: asyncio.Task[None] | None = None

    def want(self) -> None:
        """Ask for one more chunk."""
        self._wanted.set()
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())

    def stop(self) -> None:
        """Read no more."""
        self._stopped = True
        if self._task is not None and not self._task.done() and self._task is not _current_task():
            self._task.cancel()

    async def _run(self) -> None:
        try:
            async for chunk in self._each():
                self._take(chunk)
                await self._wanted.wait()
                self._wanted.clear()
        except asyncio.CancelledError as error:
            if self._stopped:
                raise
            self.error = error  # the iterable's own, who waited for what was cancelled
        except Exception as error:
            self.error = error
        self._end()

    async def _each(self) -> AsyncIterator[Any]:
        self._wanted.clear()
        if isinstance(self._chunks, AsyncIterable):
            async for chunk in self._chunks:
                yield chunk
        else:
            for chunk in self._chunks:
                yield chunk


class Duplex:
    """One stream, over as many connections as it takes.

    Attributes:
        core: What is sent, and what arrived.
    """

    def __init__(self, transport: Transport, core: StreamCore, asked: Sequence[Any] = (), chunks: AsyncIterable[Any] | Iterable[Any] | None = None) -> None:
        self.core = core
        self._transport = transport
        self._pump = None if chunks is None else Pump(chunks, self._take, self._all_taken)
        held = core.hold() if asked or chunks is not None else False
        self._open(core.call, [core.opening] if held else [core.opening, *asked])
        self._close_where_due()

    def put(self, *messages: Any) -> None:
        """Queue messages."""
        for message in messages:
            self._outbox.put_nowait(message)

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        if not self.core.half_closed:
            self.core.half_closed = True
            self.put(None)

    async def read(self) -> None:
        """Read one message, or go on over another connection, or come to the end. One task at a time."""
        try:
            await self._read()
        except asyncio.CancelledError:
            if being_cancelled():
                self.cancel()
                raise
            self._finish(client_closed())  # does nothing where the stream was cut

    async def receive(self) -> Output | Completion | None:
        """Return the next output or completion, waiting for it; None where the stream has ended.

        Raises:
            CellstateError: The stream failed.
        """
        while not self.core.events:
            if self.core.ended:
                if self.failure is not None:
                    raise self.failure
                return None
            await self.read()
        return self.core.events.popleft()

    @property
    def completion(self) -> Completion | None:
        """How the last generation that was read ended; None before."""
        return self.core.reader.completion

    @property
    def failure(self) -> BaseException | None:
        """Why it ended, where it failed."""
        return (self._pump.error if self._pump is not None else None) or self.core.error

    def cancel(self) -> None:
        """End the stream now."""
        if self.core.cut():
            self._close()
            self._answers.cancel()

    async def _read(self) -> None:
        try:
            response = await anext(self._messages, None)
            if response is not None:
                self.core.feed(response)
        except grpc.RpcError as raised:
            await self._lost(to_error(raised))
        except SessionRolledBack as raised:
            await self._lost(raised)
        except asyncio.CancelledError:
            if being_cancelled() or self.core.ended or self._transport.closed:
                raise
            await self._lost(lost_call())
        else:
            if response is None:
                self._finish(None)
                return
            if self.core.held:
                self._release()
            due = self.core.due()
            if due is not None:
                self.put(due)
            if self.core.asked_all:
                self._close_where_due()

    def _open(self, call: Call[Any], messages: Iterable[Any]) -> None:
        self._outbox: asyncio.Queue[Any] = asyncio.Queue()
        self.put(*messages)
        self._answers = self._transport.exchange(call, requests(self._outbox, self._want))
        self._messages = aiter(self._answers)

    def _release(self) -> None:
        self.put(*(self.core.released() or ()))
        self._want()

    def _want(self) -> None:
        if self._pump is not None and not self.core.held:
            self._pump.want()

    def _close_where_due(self) -> None:
        if self.core.closes:
            self.half_close()

    def _take(self, chunk: Any) -> None:
        self.put(*self.core.send(chunk, None))

    def _all_taken(self) -> None:
        if self._pump is not None and self._pump.error is not None:
            self.cancel()
            return
        self.core.asked_all = True
        self._close_where_due()

    async def _lost(self, error: CellstateError) -> None:
        self._answers.cancel()
        self.put(None)
        last = await self._transport.take_up(self.core.call, self.core, error)
        if last is not None:
            self._finish(last)
        elif not self.core.ended:
            timeout_s = self.core.resumption.timeout_s if self.core.resumption is not None else None
            self._open(dataclasses.replace(self.core.call, timeout_s=timeout_s), self.core.reopening())
            if self.core.half_closed:
                self.put(None)

    def _finish(self, error: CellstateError | None) -> None:
        self.core.finish(error)
        self._close()

    def _close(self) -> None:
        self.put(None)
        if self._pump is not None:
            self._pump.stop()


async def requests(outbox: "asyncio.Queue[Any]", want: Callable[[], None]) -> AsyncIterator[Any]:
    """Yield what is queued, and ask for more where nothing is."""
    while True:
        if outbox.empty():
            want()
        message = await outbox.get()
        if message is None:
            return
        yield message


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # dropped after its loop
        return None
