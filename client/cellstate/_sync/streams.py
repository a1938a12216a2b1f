"""What streaming calls of the sync face return: `Outputs`, which is read, and `Stream`, which is also written."""

import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from cellstate._exchange import Call, Reader
from cellstate._resume import Regenerating
from cellstate._stream_core import StreamCore
from cellstate._sync.transport import Source, Transport, to_error
from cellstate._tracking import Handle
from cellstate.errors import CellstateError
from cellstate.inputs import Input
from cellstate.outputs import Completion, Emit, Output, join_outputs
from cellstate.programs import DirectiveOptions, StreamOptions

T = TypeVar("T")


class Outputs:
    """Iterates the outputs of a call as they arrive. Closing it, leaving its context or dropping it before the end cancels the call.

    To be read by one thread; `cancel` may be called from any.
    """

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
        self._source = source
        self._again = again
        self._regenerating = regenerating
        self._ended = False
        self._waiting = threading.Event()  # set by whoever cancels while it waits

    @property
    def completion(self) -> Completion | None:
        """How generation ended; None before the end, and for calls that generate nothing."""
        return self._reader.completion

    def text(self) -> str:
        """Read to the end and return the outputs' text in one."""
        return join_outputs(list(self)).text

    def collect(self) -> Output:
        """Read to the end and return the outputs in one."""
        return join_outputs(list(self))

    def cancel(self) -> None:
        """End the call now; iteration ends. On a session, steps already taken stay taken."""
        if not self._ended:
            self._ended = True
            self._reader.cut()
            self._waiting.set()
            self._answers.cancel()

    def close(self) -> None:
        """Cancel the call where it has not ended."""
        self.cancel()

    def __iter__(self) -> Iterator[Output]:
        """Return itself."""
        return self

    def __next__(self) -> Output:
        """Return the next output, waiting for it.

        Raises:
            CellstateError: The call failed.
        """
        while not self._ended:
            try:
                response = next(self._answers)
            except StopIteration:
                self._end()
            except grpc.RpcError as error:
                if not self._goes_on(to_error(error)):
                    self._fail(error)
            else:
                for event in self._reader.read(response):
                    if isinstance(event, Output):
                        return event
        raise StopIteration

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Close."""
        self.close()

    def __del__(self) -> None:
        """Cancel the call where nobody reads it any more."""
        if not getattr(self, "_ended", True):
            self.cancel()

    def _goes_on(self, error: CellstateError) -> bool:
        """Make the call again where its connection was lost, after a while; False where the error is its end."""
        if self._ended or self._regenerating is None or self._again is None:
            return False
        wait_s = self._regenerating.wait_s(error)
        if wait_s is None or self._waiting.wait(wait_s):
            return False
        self._answers = self._again(dataclasses.replace(self._call, request=self._regenerating.request(), timeout_s=self._regenerating.timeout_s))
        if self._waiting.is_set():  # cancelled meanwhile
            self._answers.cancel()
        return True

    def _end(self) -> None:
        self._ended = True
        if self._source is not None and self._source.error is not None:  # the server was faster than the cancellation
            self._reader.cut()
            raise self._source.error from None
        self._reader.ended()

    def _fail(self, error: grpc.RpcError) -> None:
        if self._ended:
            return
        self._ended = True
        if self._source is not None and self._source.error is not None:
            self._reader.cut()
            raise self._source.error from None
        self._reader.failed()
        raise self._call.failed(to_error(error)) from None


class Stream:
    """A full-duplex stream: inputs and directives go in, outputs come out, in the order in which they were asked for.

    `send`, `generate` and `acknowledge` only queue; who produces faster than the model computes reads in between. One thread may read while others
    write. Leaving the context before the end cancels what is left: to finish, call `half_close` and read to the end.
    """

    def __init__(self, transport: Transport, model: str | Handle, options: StreamOptions) -> None:
        self._transport = transport
        self._core = StreamCore(model, options, transport.connection.resume_s)
        self._arrived = threading.Condition()
        self._reading = False
        self._writing = threading.RLock()
        self._queueing = threading.Lock()  # what is queued is in the log, and is queued once: for this connection or for the next
        self._cut = threading.Event()
        self._open(self._core.call, [self._core.opening])

    @property
    def position(self) -> int:
        """The last position heard of."""
        return self._core.position

    @property
    def completion(self) -> Completion | None:
        """How the last generation that was read ended; None before."""
        return self._core.reader.completion

    def send(self, value: Input, *, emit: Emit | str | None = None) -> None:
        """Send one chunk of input: one or more steps.

        Args:
            value: The chunk; see `Input`.
            emit: Which of its outputs are answered, where it differs from the stream's.
        """
        with self._writing:
            self._queue(lambda: self._core.send(value, emit))

    def generate(self, **options: Unpack[DirectiveOptions]) -> None:
        """Generate after all that was sent before; `until_completion` reads what comes."""
        with self._writing:
            self._queue(lambda: [self._core.generate(options)])

    def stop(self) -> int:
        """End the generation that is running or waiting to run, and return the position where that took effect. Outputs that come before it stay to be read."""
        with self._writing:
            self._queue(lambda: [self._core.stop()])
            position = self._wait(self._core.stops.popleft, lambda: bool(self._core.stops))
        if position is None:
            raise RuntimeError("the stream ended before the stop took effect")
        return position

    def acknowledge(self, position: int | None = None) -> None:
        """Tell up to where outputs were received, so that the server need not keep what lies before; None: all that arrived."""
        with self._writing:
            self._queue(lambda: [self._core.acknowledge(position)])

    def half_close(self) -> None:
        """Say that nothing more will be sent: what was asked is finished, then the stream ends."""
        with self._writing, self._queueing:
            if not self._core.half_closed:
                self._core.half_closed = True
                self._outbox.put(None)

    def receive(self) -> Output | Completion | None:
        """Return the next output, or the completion of a generation, waiting for it; None where the stream has ended.

        Raises:
            CellstateError: The stream failed.
        """
        return self._wait(self._core.events.popleft, lambda: bool(self._core.events))

    def until_completion(self) -> Iterator[Output]:
        """Iterate outputs up to the end of the generation that runs, and leave `completion` behind."""
        while isinstance(event := self.receive(), Output):
            yield event

    def cancel(self) -> None:
        """End the stream now; iteration ends. On a session, steps already taken stay taken."""
        if self._core.cut():
            self._cut.set()
            self._outbox.put(None)
            self._answers.cancel()

    def close(self) -> None:
        """Cancel the stream where it has not ended."""
        self.cancel()

    def __iter__(self) -> Iterator[Output]:
        """Return itself."""
        return self

    def __next__(self) -> Output:
        """Return the next output, waiting for it; completions are passed over."""
        while (event := self.receive()) is not None:
            if isinstance(event, Output):
                return event
        raise StopIteration

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Close."""
        self.close()

    def __del__(self) -> None:
        """Cancel the stream where nobody holds it any more."""
        if hasattr(self, "_answers"):
            self.cancel()

    def _wait(self, take: Callable[[], T], ready: Callable[[], bool]) -> T | None:
        """Read messages until `ready`, then `take`. One thread reads for all that wait; None where the stream has ended."""
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: ready() or self._core.ended or not self._reading)
                if ready():
                    return take()
                if self._core.ended:
                    if self._core.error is not None:
                        raise self._core.error
                    return None
                self._reading = True
            self._read()

    def _read(self) -> None:
        """Read one message, and tell all that wait."""
        response, error, interrupted, goes_on = None, None, True, False
        try:
            response = next(self._answers, None)
            interrupted = False
        except grpc.RpcError as raised:
            error = to_error(raised)
            goes_on = self._goes_on(error)
            interrupted = False
        finally:
            with self._arrived:
                self._reading = False
                if response is not None:
                    self._core.feed(response)
                    due = self._core.due()
                    if due is not None:
                        self._outbox.put(due)
                elif not interrupted and (error is None or not goes_on):
                    self._core.finish(error)
                    self._outbox.put(None)
                self._arrived.notify_all()

    def _open(self, call: Call[Any], messages: Iterable[Any]) -> None:
        self._outbox: SimpleQueue[Any] = SimpleQueue()
        for message in messages:
            self._outbox.put(message)
        self._answers, _ = self._transport.duplex(call, iter(self._outbox.get, None))

    def _queue(self, make: Callable[[], Iterable[Any]]) -> None:
        with self._queueing:
            for message in make():
                self._outbox.put(message)

    def _goes_on(self, error: CellstateError) -> bool:
        """Open the stream again where its connection was lost, after a while; False where the error is its end."""
        wait_s = self._core.wait_s(error)
        if wait_s is None or self._cut.wait(wait_s):
            return False
        with self._queueing:
            self._outbox.put(None)
            self._open(dataclasses.replace(self._core.call, timeout_s=self._core.going_on.timeout_s), self._core.reopening())
            if self._core.half_closed:
                self._outbox.put(None)
        if self._cut.is_set():
            self._answers.cancel()
        return True
