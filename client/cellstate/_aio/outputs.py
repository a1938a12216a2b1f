"""What calls that are read return, asyncio face: `AsyncOutputs`."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

import grpc

from cellstate._aio.duplex import Duplex
from cellstate._aio.transport import Source, being_cancelled, client_closed, to_error
from cellstate._exchange import Call, Reader
from cellstate._generation_core import is_of_mode
from cellstate.outputs import Completion, Output, join_outputs


class Answers:
    """The answers of a call that ends with its connection: on a model."""

    def __init__(self, call: Call[Any], reader: Reader, answers: Any, source: Source | None = None) -> None:
        self._call = call
        self._reader = reader
        self._answers = answers
        self._messages = aiter(answers)
        self._source = source
        self._events: deque[Output | Completion] = deque()
        self._cut = False

    @property
    def completion(self) -> Completion | None:
        """How generation ended; None before."""
        return self._reader.completion

    async def receive(self) -> Output | Completion | None:
        """Return the next output or completion, waiting for it; None where the call has ended.

        Raises:
            CellstateError: The call failed.
        """
        while not self._events:
            try:
                response = await anext(self._messages, None)
            except (grpc.RpcError, asyncio.CancelledError) as error:
                self._fail(error)
                return None
            if response is None:
                if self._source is not None and self._source.error is not None:  # the server was faster than the cancellation
                    raise self._source.error from None
                self._reader.ended()
                return None
            if response.HasField("opened"):
                self._reader.opened(response.opened.stream_token, response.opened.position)
            self._events.extend(self._reader.read(response))
        return self._events.popleft()

    def cancel(self) -> None:
        """End the call now."""
        self._cut = True
        self._reader.cut()
        self._answers.cancel()

    def _fail(self, error: BaseException) -> None:
        """Raise what the call failed with; return where the caller ended it."""
        if being_cancelled():
            self._reader.cut()
            raise error
        if self._cut:
            return
        if self._source is not None and self._source.error is not None:
            raise self._source.error from None
        self._reader.failed()
        raise self._call.failed(to_error(error) if isinstance(error, grpc.RpcError) else client_closed()) from None


class AsyncOutputs:
    """Iterates the outputs of a call as they arrive. Closing it, leaving its context or dropping it before the end cancels the call. See `Outputs`."""

    def __init__(self, answers: Answers | Duplex, otherwise: Callable[[], Answers] | None = None) -> None:
        self._answers = answers
        self._otherwise = otherwise  # how to ask a model that does not serve streams
        self._ended = False

    @property
    def completion(self) -> Completion | None:
        """How generation ended; None before the end, and for calls that generate nothing."""
        return self._answers.completion

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
        while not self._is_ended():
            try:
                event = await self._answers.receive()
            except Exception as error:
                if self._otherwise is not None and is_of_mode(error) and not self._is_ended():
                    self._answers, self._otherwise = self._otherwise(), None
                    continue
                if self._is_ended():  # by another task, meanwhile
                    break
                self._ended = True
                raise
            except asyncio.CancelledError:
                self._ended = True
                raise
            if isinstance(event, Output) and not self._is_ended():
                return event
            self._ended = self._ended or event is None
        raise StopAsyncIteration

    def _is_ended(self) -> bool:
        return self._ended

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
