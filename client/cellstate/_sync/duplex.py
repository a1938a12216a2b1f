"""A stream that is opened again where its connection was lost, sync face: `Stream` and `Outputs` of sessions are read and written through it."""

import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any

import grpc

from cellstate._exchange import Call
from cellstate._stream_core import StreamCore
from cellstate._sync.transport import Transport, to_error
from cellstate.errors import CellstateError, SessionRolledBack
from cellstate.outputs import Completion, Output


class Pump:
    """Reads a caller's iterable once, on a thread of its own: a chunk whenever the connection, whichever it is by then, takes more.

    Attributes:
        error: What iterating it raised, or taking a chunk.
    """

    def __init__(self, chunks: Iterable[Any], take: Callable[[Any], None], end: Callable[[], None]) -> None:
        self.error: BaseException | None = None
        self._chunks = chunks
        self._take = take
        self._end = end
        self._wanted = threading.Semaphore(0)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def want(self) -> None:
        """Ask for one more chunk."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="cellstate-pump", daemon=True)
            self._thread.start()
        self._wanted.release()

    def stop(self) -> None:
        """Read no more; what is being read is dropped."""
        self._stopped.set()
        self._wanted.release()

    def _run(self) -> None:
        try:
            self._wanted.acquire()
            for chunk in self._chunks if not self._stopped.is_set() else ():
                if self._stopped.is_set():
                    return
                self._take(chunk)
                self._wanted.acquire()
                if self._stopped.is_set():
                    return
        except BaseException as error:
            self.error = None if self._stopped.is_set() else error
        self._end()


class Duplex:
    """One stream, over as many connections as it takes.

    Attributes:
        core: What is sent, and what arrived.
    """

    def __init__(self, transport: Transport, core: StreamCore, asked: Sequence[Any] = (), chunks: Iterable[Any] | None = None) -> None:
        self.core = core
        self._transport = transport
        self._queueing = threading.RLock()  # what is queued is in the log, and is queued once: for this connection or for the next
        self._ended = threading.Event()
        self._pump = None if chunks is None else Pump(chunks, self._take, self._all_taken)
        held = core.hold() if asked or chunks is not None else False
        self._open(core.call, [core.opening] if held else [core.opening, *asked])
        self._close_where_due()

    def put(self, make: Callable[[], Iterable[Any]]) -> None:
        """Queue messages."""
        with self._queueing:
            for message in make():
                self._outbox.put(message)

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        with self._queueing:
            if not self.core.half_closed:
                self.core.half_closed = True
                self._outbox.put(None)

    def read(self) -> None:
        """Read one message, or go on over another connection, or come to the end. One thread at a time."""
        try:
            response = next(self._answers, None)
            if response is not None:
                self.core.feed(response)
        except grpc.RpcError as raised:
            self._lost(to_error(raised))
        except SessionRolledBack as raised:
            self._lost(raised)
        else:
            if response is None:
                self._finish(None)
                return
            if self.core.held:
                self._release()
            due = self.core.due()
            if due is not None:
                self._outbox.put(due)
            if self.core.asked_all:
                self._close_where_due()

    def receive(self) -> Output | Completion | None:
        """Return the next output or completion, waiting for it; None where the stream has ended.

        Raises:
            CellstateError: The stream failed.
        """
        while not self.core.events:
            if self.core.ended:
                if self.failure is not None:
                    raise self.failure
                return None
            self.read()
        return self.core.events.popleft()

    @property
    def completion(self) -> Completion | None:
        """How the last generation that was read ended; None before."""
        return self.core.reader.completion

    def cancel(self) -> None:
        """End the stream now."""
        if self.core.cut():
            self._close()
            self._answers.cancel()

    @property
    def failure(self) -> BaseException | None:
        """Why it ended, where it failed."""
        return (self._pump.error if self._pump is not None else None) or self.core.error

    def _open(self, call: Call[Any], messages: Iterable[Any]) -> None:
        outbox: SimpleQueue[Any] = SimpleQueue()
        for message in messages:
            outbox.put(message)
        self._outbox = outbox
        self._answers = self._transport.exchange(call, iter(outbox.get, None) if self._pump is None else requests(outbox, self._want))

    def _release(self) -> None:
        with self._queueing:
            for message in self.core.released() or ():
                self._outbox.put(message)
        if self._pump is not None and not self.core.held:
            self._pump.want()

    def _close_where_due(self) -> None:
        with self._queueing:
            if self.core.closes:
                self.half_close()

    def _want(self) -> None:
        if self._pump is not None and not self.core.held:
            self._pump.want()

    def _take(self, chunk: Any) -> None:
        self.put(lambda: self.core.send(chunk, None))

    def _all_taken(self) -> None:
        if self._pump is not None and self._pump.error is not None:
            self.cancel()
            return
        self.core.asked_all = True
        self._close_where_due()

    def _lost(self, error: CellstateError) -> None:
        self._answers.cancel()
        last = self._transport.take_up(self.core.call, self.core, error, self._ended.wait)
        if last is not None:
            self._finish(last)
            return
        with self._queueing:
            self._outbox.put(None)
            timeout_s = self.core.resumption.timeout_s if self.core.resumption is not None else None
            self._open(dataclasses.replace(self.core.call, timeout_s=timeout_s), self.core.reopening())
            if self.core.half_closed:
                self._outbox.put(None)
        if self._ended.is_set():
            self._answers.cancel()

    def _finish(self, error: CellstateError | None) -> None:
        self.core.finish(error)
        self._close()

    def _close(self) -> None:
        self._ended.set()
        self._outbox.put(None)
        if self._pump is not None:
            self._pump.stop()


def requests(outbox: "SimpleQueue[Any]", want: Callable[[], None]) -> Iterator[Any]:
    """Yield what is queued, and ask for more where nothing is."""
    while True:
        if outbox.empty():
            want()
        message = outbox.get()
        if message is None:
            return
        yield message
