"""Carries out the calls that the core makes ready, on grpc's sync channel."""

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import grpc

from cellstate._exchange import Call
from cellstate._repeat import Repetition
from cellstate._resume import GoingOn, Replay, Resumable, Resumption
from cellstate._status import error_from_status
from cellstate._stubs import Raw
from cellstate.connection import Connection
from cellstate.errors import CellstateError, SessionRolledBack

T = TypeVar("T")


class Transport:
    """One channel and its settings. Safe to share between threads."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._metadata = connection.metadata()
        credentials = connection.credentials()
        options = connection.options()
        channel = grpc.insecure_channel(connection.address, options) if credentials is None else grpc.secure_channel(connection.address, credentials, options)
        self.raw = Raw(channel)
        self._closed = False
        self._reached = False

    def close(self) -> None:
        """Close the channel; calls that are running are cancelled."""
        self._closed = True
        self.raw.channel.close()

    def unary(self, call: Call[T], *, wait_for_ready: bool = False) -> T:
        """Send one request and return the decoded answer.

        A step on a session goes on where its connection was lost or its server died, and so does what makes, reads or ends a session.
        """
        resumption = repetition = None
        if call.log is not None and call.tracked is not None:
            resumption = Resumption(call.tracked, call.log, self.going_on(call))
        elif call.repeats:
            repetition = Repetition(call, self.going_on(call), reached=self._reached)
        while True:
            try:
                response = self._invoke(call, call.request, wait_for_ready=wait_for_ready or None)
                self._reached = True
                return call.decode(response)
            except grpc.RpcError as raised:
                error = to_error(raised)
            except BaseException as interruption:  # Ctrl-C: the step may have been taken
                raise call.cut(interruption) from None
            if repetition is not None and repetition.is_done(error):
                return call.decode(None)
            try:
                last = self.take_up(call, resumption or repetition, error, time.sleep)
            except BaseException as interruption:
                raise call.cut(interruption) from None
            if last is not None:
                raise call.failed(last) from None
            if resumption is not None:
                call = dataclasses.replace(call, request=resumption.request(call.request), timeout_s=resumption.timeout_s)
            elif repetition is not None:
                call = dataclasses.replace(call, timeout_s=repetition.timeout_s)

    def going_on(self, call: Call[Any]) -> GoingOn:
        """Return what decides when a call is made again."""
        return GoingOn(self.connection.resume_s, self._timeout_s(call))

    def take_up(self, call: Call[Any], resumable: Resumable | None, error: CellstateError, wait: Callable[[float], Any]) -> CellstateError | None:
        """Wait, and give again what earlier calls asked, until a call that was lost can be made again; otherwise return the error that is its end.

        Args:
            call: The call.
            resumable: What decides; None where it cannot be made again.
            error: Why it was lost.
            wait: Waits for seconds; True where the caller ended the call meanwhile.
        """
        while resumable is not None and not self._closed and (wait_s := resumable.wait_s(error)) is not None:
            if wait(wait_s) or self._closed:
                return error
            try:
                for replay in resumable.replays():
                    self._replay(call, replay)
            except grpc.RpcError as raised:
                error = to_error(raised)
            except SessionRolledBack as raised:
                error = raised
            else:
                return None
        return error

    def _replay(self, call: Call[Any], replay: Replay) -> None:
        answers = self.exchange(dataclasses.replace(call, method="ManyToMany", streams=True, timeout_s=replay.timeout_s), iter(replay.messages))
        try:
            for response in answers:
                replay.feed(response)
        finally:
            answers.cancel()

    def exchange(self, call: Call[Any], messages: Iterator[Any]) -> Any:
        """Stream requests; return grpc's iterator of answers."""
        return self._invoke(call, messages)

    def upload(self, call: Call[T], messages: Iterable[Any]) -> T:
        """Stream requests and return the decoded answer. What iterating `messages` raises cancels the call and is raised here."""
        source = Source(messages)
        future = self.future(call, source)
        source.attach(future.cancel)
        try:
            response = future.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            if source.error is not None:
                raise call.cut(source.error) from None
            raise call.failed(to_error(error)) from None
        except BaseException as error:  # Ctrl-C: steps may have been taken
            future.cancel()
            raise call.cut(error) from None
        if source.error is not None:  # the server was faster than the cancellation
            raise call.cut(source.error)
        return call.decode(response)

    def future(self, call: Call[Any], messages: Iterator[Any]) -> Any:
        """Stream requests; return grpc's future of the answer."""
        return self._stub(call).future(messages, **self._settings(call))

    def download(self, call: Call[Any]) -> Any:
        """Send one request and return grpc's iterator of answers."""
        return self._invoke(call, call.request)

    def read_all(self, call: Call[Any]) -> list[Any]:
        """Send one request and return all answers, for calls whose answer is one thing in pieces."""
        try:
            return list(self.download(call))
        except grpc.RpcError as error:
            raise call.failed(to_error(error)) from None

    def duplex(self, call: Call[Any], messages: Iterable[Any]) -> tuple[Any, "Source"]:
        """Stream requests; return grpc's iterator of answers, and the source, which keeps what iterating `messages` raised."""
        source = Source(messages)
        answers = self._invoke(call, source)
        source.attach(answers.cancel)
        return answers, source

    def _invoke(self, call: Call[Any], request: Any, **settings: Any) -> Any:
        return self._stub(call)(request, **self._settings(call), **settings)

    def _stub(self, call: Call[Any]) -> Any:
        if self._closed:
            raise RuntimeError("the client is closed: make a new one")
        return getattr(getattr(self.raw, call.service), call.method)

    def _settings(self, call: Call[Any]) -> dict[str, Any]:
        return {"timeout": self._timeout_s(call), "metadata": self._metadata + call.metadata}

    def _timeout_s(self, call: Call[Any]) -> float | None:
        timeout_s = call.timeout_s
        if timeout_s is None and not call.streams:
            timeout_s = self.connection.timeout_s
        return None if timeout_s is None or math.isinf(timeout_s) else timeout_s


class Source:
    """Iterates the caller's messages on grpc's thread. An error of the caller's own cancels the call, and is kept to be raised on the caller's thread."""

    def __init__(self, messages: Iterable[Any]) -> None:
        self.error: BaseException | None = None
        self._messages = iter(messages)
        self._cancel: Callable[[], Any] = lambda: None
        self._attached = threading.Event()

    def attach(self, cancel: Callable[[], Any]) -> None:
        """Tell how to cancel the call, which may have begun to read already."""
        self._cancel = cancel
        self._attached.set()

    def __iter__(self) -> Iterator[Any]:
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Return the next message."""
        try:
            return next(self._messages)
        except StopIteration:
            raise
        except BaseException as error:
            self.error = error
            self._attached.wait()  # ending before the call is cancelled would pass for the sequence's end
            self._cancel()
            raise StopIteration from None


def to_error(error: Exception) -> CellstateError:
    """Make the typed error of a call that failed."""
    if isinstance(error, grpc.FutureCancelledError):
        return error_from_status(1, "the client was closed")
    if isinstance(error, grpc.Call):
        return error_from_status(error.code().value[0], error.details() or "", error.trailing_metadata())
    return error_from_status(2, str(error))
