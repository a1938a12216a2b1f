"""Carries out the calls that the core makes ready, on grpc.aio. The channel is made at the first call, on the loop that makes it."""

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

import grpc
import grpc.aio

from cellstate._exchange import Call
from cellstate._repeat import Repetition
from cellstate._resume import GoingOn, Replay, Resumable, Resumption
from cellstate._status import error_from_status
from cellstate._stubs import Raw
from cellstate.connection import Connection
from cellstate.errors import CellstateError, SessionRolledBack

T = TypeVar("T")


class Transport:
    """One channel and its settings, on one event loop."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._metadata = connection.metadata()
        self._raw: Raw | None = None
        self._closed = False
        self._reached = False

    @property
    def raw(self) -> Raw:
        """The stubs on the channel."""
        if self._closed:
            raise RuntimeError("the client is closed: make a new one")
        if self._raw is None:
            credentials, options, address = self.connection.credentials(), self.connection.options(), self.connection.address
            channel = grpc.aio.insecure_channel(address, options) if credentials is None else grpc.aio.secure_channel(address, credentials, options)
            self._raw = Raw(channel)
        return self._raw

    @property
    def closed(self) -> bool:
        """Whether the client was closed."""
        return self._closed

    async def close(self) -> None:
        """Close the channel; calls that are running are cancelled."""
        self._closed = True
        if self._raw is not None:
            await self._raw.channel.close()

    async def unary(self, call: Call[T], *, wait_for_ready: bool = False) -> T:
        """Send one request and return the decoded answer.

        A step on a session goes on where its connection was lost or its server died, and so does what makes, reads or ends a session.
        """
        resumption = repetition = None
        if call.log is not None and call.tracked is not None:
            resumption = Resumption(call.tracked, call.log, self.going_on(call))
        elif call.repeats:
            repetition = Repetition(call, self.going_on(call), reached=self._reached)
        try:
            while True:
                try:
                    answer = await self._invoke(call, call.request, wait_for_ready=wait_for_ready or None)
                    self._reached = True
                    return call.decode(answer)
                except (grpc.RpcError, asyncio.CancelledError) as raised:
                    if isinstance(raised, asyncio.CancelledError) and (being_cancelled() or self._closed):
                        raise
                    error = to_error(raised) if isinstance(raised, grpc.RpcError) else lost_call()
                    if repetition is not None and repetition.is_done(error):
                        return call.decode(None)
                    last = await self.take_up(call, resumption or repetition, error)
                if last is not None:
                    raise call.failed(last) from None
                if resumption is not None:
                    call = dataclasses.replace(call, request=resumption.request(call.request), timeout_s=resumption.timeout_s)
                elif repetition is not None:
                    call = dataclasses.replace(call, timeout_s=repetition.timeout_s)
        except asyncio.CancelledError as cancelled:
            raise self.cancelled(call, cancelled) from None

    def going_on(self, call: Call[Any]) -> GoingOn:
        """Return what decides when a call is made again."""
        return GoingOn(self.connection.resume_s, self._timeout_s(call))

    async def take_up(self, call: Call[Any], resumable: Resumable | None, error: CellstateError) -> CellstateError | None:
        """Wait, and give again what earlier calls asked, until a call that was lost can be made again; otherwise return the error that is its end.

        Args:
            call: The call.
            resumable: What decides; None where it cannot be made again.
            error: Why it was lost.
        """
        while resumable is not None and not self._closed and (wait_s := resumable.wait_s(error)) is not None:
            await asyncio.sleep(wait_s)
            if self.closed:
                return client_closed()
            try:
                for replay in resumable.replays():
                    await self._replay(call, replay)
            except grpc.RpcError as raised:
                error = to_error(raised)
            except SessionRolledBack as raised:
                error = raised
            except asyncio.CancelledError:
                if being_cancelled() or self._closed:
                    raise
                error = lost_call()
            else:
                return None
        return error

    async def _replay(self, call: Call[Any], replay: Replay) -> None:
        answers = self.exchange(dataclasses.replace(call, method="ManyToMany", streams=True, timeout_s=replay.timeout_s), _each(replay.messages))
        try:
            async for response in answers:
                replay.feed(response)
        finally:
            answers.cancel()

    def exchange(self, call: Call[Any], messages: AsyncIterator[Any]) -> Any:
        """Stream requests; return grpc's call, which iterates answers, or is awaited where it answers once."""
        return self._invoke(call, messages)

    async def upload(self, call: Call[T], messages: AsyncIterable[Any] | Iterable[Any]) -> T:
        """Stream requests and return the decoded answer. What iterating `messages` raises cancels the call and is raised here."""
        source = Source(messages)
        answer = self._invoke(call, source.messages())
        source.attach(answer.cancel)
        try:
            response = await answer
        except (grpc.RpcError, asyncio.CancelledError) as error:
            if source.error is not None:
                raise call.cut(source.error) from None
            if isinstance(error, grpc.RpcError):
                raise call.failed(to_error(error)) from None
            raise self.cancelled(call, error) from None
        if source.error is not None:  # the server was faster than the cancellation
            raise call.cut(source.error)
        return call.decode(response)

    def download(self, call: Call[Any]) -> Any:
        """Send one request and return grpc's call, which iterates answers."""
        return self._invoke(call, call.request)

    async def read_all(self, call: Call[Any]) -> list[Any]:
        """Send one request and return all answers, for calls whose answer is one thing in pieces."""
        try:
            return [response async for response in self.download(call)]
        except grpc.RpcError as error:
            raise call.failed(to_error(error)) from None
        except asyncio.CancelledError as error:
            raise self.cancelled(call, error) from None

    def duplex(self, call: Call[Any], messages: AsyncIterable[Any] | Iterable[Any]) -> tuple[Any, "Source"]:
        """Stream requests; return grpc's call, which iterates answers, and the source, which keeps what iterating `messages` raised."""
        source = Source(messages)
        answers = self._invoke(call, source.messages())
        source.attach(answers.cancel)
        return answers, source

    def cancelled(self, call: Call[Any], error: asyncio.CancelledError) -> BaseException:
        """Return what a cancelled call raises: the cancellation where the caller's task is asked to end, else a typed error."""
        if being_cancelled():
            return call.cut(error)
        return call.failed(client_closed() if self._closed else lost_call())

    def _invoke(self, call: Call[Any], request: Any, **settings: Any) -> Any:
        timeout_s = self._timeout_s(call)
        metadata = self._metadata + call.metadata
        made = getattr(getattr(self.raw, call.service), call.method)(request, timeout=timeout_s, metadata=metadata, **settings)
        if hasattr(made, "_async_request_poller") and hasattr(made, "_cython_call"):  # a call that streams requests; see _Shield
            made._cython_call = _Shield(made._cython_call)
        return made

    def _timeout_s(self, call: Call[Any]) -> float | None:
        timeout_s = call.timeout_s
        if timeout_s is None and not call.streams:
            timeout_s = self.connection.timeout_s
        return None if timeout_s is None or math.isinf(timeout_s) else timeout_s


class _Shield:
    """grpc's inner call, without its `set_internal_error`.

    When the server refuses a call while requests are still being written, grpc.aio's writer meets a broken stream and sets an internal error in place of the
    status that is about to arrive. Without that the status is what the server said.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def set_internal_error(self, _: str) -> None:
        """Leave the status to the server."""


class Source:
    """Iterates the caller's messages in grpc's task. An error of the caller's own cancels the call, and is kept to be raised where the caller waits."""

    def __init__(self, messages: AsyncIterable[Any] | Iterable[Any]) -> None:
        self.error: Exception | None = None
        self._messages = messages
        self._cancel: Callable[[], Any] = lambda: None

    def attach(self, cancel: Callable[[], Any]) -> None:
        """Tell how to cancel the call, which reads no message before its task runs."""
        self._cancel = cancel

    async def messages(self) -> AsyncIterator[Any]:
        """Yield the messages."""
        try:
            if isinstance(self._messages, AsyncIterable):
                async for message in self._messages:
                    yield message
            else:
                for message in self._messages:
                    yield message
        except Exception as error:
            self.error = error
            self._cancel()


async def _each(messages: Iterable[Any]) -> AsyncIterator[Any]:
    for message in messages:
        yield message


def being_cancelled() -> bool:
    """Tell whether the running task was asked to cancel, as opposed to a call that its owner ended."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def client_closed() -> CellstateError:
    """Make the error of a call that ended with its channel: nobody else cancels a call whose task goes on."""
    return error_from_status(1, "the client was closed")


def lost_call() -> CellstateError:
    """Make the error of a call that grpc says was cancelled though nobody here did: its connection went as it began."""
    return error_from_status(1, "the call was cancelled on the way")


def to_error(error: grpc.RpcError) -> CellstateError:
    """Make the typed error of a call that failed."""
    with contextlib.suppress(AttributeError):
        return error_from_status(error.code().value[0], error.details() or "", error.trailing_metadata())
    return error_from_status(2, str(error))
