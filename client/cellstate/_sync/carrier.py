"""The stream below a gateway, sync face: opened again where its connection was lost, each channel of a session with it."""

import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

import grpc

from cellstate._gateway_core import GatewayCore, close_message, pack
from cellstate._stream_core import StreamCore
from cellstate._sync.transport import Transport, to_error
from cellstate.errors import CellstateError

RETURNING_AT_ONCE = 32
"""Channels of one gateway that were lost by themselves and are opened again at once, each on a thread."""


class Carrier:
    """Carries the channels of a gateway, over as many connections as it takes.

    Attributes:
        core: The channels.
        writing: Held while something is logged and queued.
        arrived: Notified when something was read.
    """

    def __init__(self, transport: Transport, core: GatewayCore) -> None:
        self.core = core
        self.writing = threading.RLock()
        self.arrived = threading.Condition()
        self._transport = transport
        self._ended = threading.Event()
        self._lost: deque[tuple[StreamCore, CellstateError]] = deque()
        self._returning = 0
        self._open([])

    def put(self, *messages: Any) -> None:
        """Queue messages, which go together."""
        if messages:
            self._outbox.put(messages)

    def close(self, core: StreamCore) -> None:
        """Close a channel, now or as soon as what was asked on it need not be acknowledged any more."""
        with self.writing:
            core.asked_all = True
            if core.closes and core.number:
                self.put(close_message(core))

    def finish(self) -> None:
        """Close all channels, then half-close."""
        with self.writing:
            self.core.finishing = True
            for channel in [*self.core.channels.values(), *self.core.away]:
                self.close(channel)
            self._half_close_where_due()

    def read(self) -> None:
        """Read one message, or go on over another connection, or come to the end; tell all that wait. One thread at a time."""
        try:
            response = next(self._answers, None)
        except grpc.RpcError as raised:
            self._broken(to_error(raised))
        else:
            with self.writing:
                if response is None:
                    self._end(None)
                    return
                for core in self.core.feed(response):
                    self.put(*self.core.due(core))
                self._lost += self.core.lost
                self.core.lost.clear()
                self._half_close_where_due()
                for _ in range(min(len(self._lost), RETURNING_AT_ONCE - self._returning)):
                    self._returning += 1
                    threading.Thread(target=self._return, name="cellstate-channel", daemon=True).start()

    def cancel(self) -> None:
        """End the stream with all its channels now."""
        if self.core.cut():
            self._close()
            self._answers.cancel()

    def _open(self, messages: Iterable[Any]) -> None:
        self._outbox: SimpleQueue[Any] = SimpleQueue()
        self.put(*messages)
        if self.core.half_closed:
            self._outbox.put(None)
        self._answers = self._transport.exchange(dataclasses.replace(self.core.call, timeout_s=self.core.timeout_s), _drain(self._outbox))

    def _half_close_where_due(self) -> None:
        if self.core.finishing and not self.core.half_closed and not self.core.channels and not self.core.away:
            self.core.half_closed = True
            self._outbox.put(None)

    def _broken(self, error: CellstateError) -> None:
        last = self._transport.take_up(self.core.call, self.core, error, self._told(self._ended.wait))
        with self.writing:
            if last is not None:
                self._end(last)
                return
            self._outbox.put(None)
            self._open(self.core.reopenings())
            self._half_close_where_due()
        if self._ended.is_set():
            self._answers.cancel()

    def _return(self) -> None:
        """Open channels again while there are any to be. Runs on a thread of its own: the other channels go on meanwhile."""
        while True:
            with self.writing:
                if not self._lost:
                    self._returning -= 1
                    return
                core, error = self._lost.popleft()
            self._take_up(core, error)

    def _take_up(self, core: StreamCore, error: CellstateError) -> None:
        """Open one channel again."""
        last: CellstateError | None = error
        with suppress(Exception):  # the client was closed meanwhile: the channel is told why it was lost
            last = self._transport.take_up(core.call, core, error, self._ended.wait)
        with self.writing:
            self.put(*self.core.returned(core, last))
            self._half_close_where_due()
        self._tell()

    def _told(self, wait: Callable[[float], bool]) -> Callable[[float], bool]:
        """Return a wait before which those that wait for channels that cannot go on are told."""

        def told(seconds: float) -> bool:
            self._tell()
            return wait(seconds)

        return told

    def _tell(self) -> None:
        with self.arrived:
            self.arrived.notify_all()

    def _end(self, error: CellstateError | None) -> None:
        self.core.finish(error)
        self._close()

    def _close(self) -> None:
        self._ended.set()
        self._outbox.put(None)


def _drain(outbox: "SimpleQueue[Any]") -> Iterator[Any]:
    """Yield what is to be sent; what waits together goes together."""
    while (messages := outbox.get()) is not None:
        waiting = list(messages)
        try:
            while (messages := outbox.get_nowait()) is not None:
                waiting += messages
        except Empty:
            pass
        yield from pack(waiting)
        if messages is None:
            return
