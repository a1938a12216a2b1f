"""The stream below a gateway, asyncio face: opened again where its connection was lost, each channel of a session with it."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc

from cellstate._aio.transport import Transport, being_cancelled, client_closed, lost_call, to_error
from cellstate._gateway_core import GatewayCore, close_message, pack
from cellstate._resume import Replay
from cellstate._stream_core import StreamCore
from cellstate.errors import CellstateError, ServerError


class Carrier:
    """Carries the channels of a gateway, over as many connections as it takes. Holds no gateway, so that one that nobody holds can go.

    Attributes:
        core: The channels.
        events: Set where a channel was told something.
        reading: Reads to the end.
    """

    def __init__(self, transport: Transport, core: GatewayCore) -> None:
        self.core = core
        self.events: dict[StreamCore, asyncio.Event] = {}
        self._transport = transport
        self._on_their_way: set[asyncio.Future[None]] = set()
        self._open([])
        self.reading = asyncio.ensure_future(self._read())

    def put(self, *messages: Any) -> None:
        """Queue messages, which go together."""
        if messages:
            self._outbox.put_nowait(messages)

    def close(self, core: StreamCore) -> None:
        """Close a channel, now or as soon as what was asked on it need not be acknowledged any more."""
        core.asked_all = True
        if core.closes and core.number:
            self.put(close_message(core))

    def finish(self) -> None:
        """Close all channels, then half-close."""
        self.core.finishing = True
        for channel in [*self.core.channels.values(), *self.core.away]:
            self.close(channel)
        self._half_close_where_due()

    def cancel(self) -> None:
        """End the stream with all its channels now."""
        if self.core.cut():
            self._close()
            self._answers.cancel()

    # -- reading

    async def _read(self) -> None:
        """Read the stream to its end, and wake who waits for a channel."""
        try:
            while not self.core.ended:
                try:
                    async for response in self._answers:
                        self._take(response)
                    self.core.finish()
                except grpc.RpcError as error:
                    await self._broken(to_error(error))
                except asyncio.CancelledError:
                    if being_cancelled() or self.core.ended or self._transport.closed:
                        raise
                    await self._broken(lost_call())
        except Exception as error:  # an answer of a newer server, that this client does not know; whatever it is, nobody waits for what does not come
            self.core.finish(ServerError(str(error)))
            self._answers.cancel()
        except asyncio.CancelledError:
            self.core.finish(client_closed())  # does nothing where the stream was cut
            if being_cancelled():
                raise
        finally:
            self._close()

    def _take(self, response: Any) -> None:
        for core in self.core.feed(response):
            self.put(*self.core.due(core))
            self._tell(core)
        lost, self.core.lost = self.core.lost, []
        for core, error in lost:
            task = asyncio.ensure_future(self._take_up(core, error))
            self._on_their_way.add(task)
            task.add_done_callback(self._on_their_way.discard)
        self._half_close_where_due()

    def _tell(self, core: StreamCore) -> None:
        event = self.events.get(core)
        if event is not None:
            event.set()
            if core.ended:
                del self.events[core]

    # -- going on

    async def _broken(self, error: CellstateError) -> None:
        last = await self._transport.take_up(self.core.call, _Told(self), error)
        if last is not None:
            self.core.finish(last)
        elif not self.core.ended:
            self._outbox.put_nowait(None)
            self._open(self.core.reopenings())
            self._half_close_where_due()

    async def _take_up(self, core: StreamCore, error: CellstateError) -> None:
        """Open one channel again; the others go on meanwhile."""
        last: CellstateError | None = error
        try:
            last = await self._transport.take_up(core.call, core, error)
        finally:
            self.put(*self.core.returned(core, last))
            self._tell(core)
            self._half_close_where_due()

    def tell_all(self) -> None:
        """Wake all that wait."""
        for core in list(self.events):
            self._tell(core)

    def _open(self, messages: Iterable[Any]) -> None:
        self._outbox: asyncio.Queue[Any] = asyncio.Queue()
        self.put(*messages)
        if self.core.half_closed:
            self._outbox.put_nowait(None)
        self._answers = self._transport.exchange(dataclasses.replace(self.core.call, timeout_s=self.core.timeout_s), _drain(self._outbox))

    def _half_close_where_due(self) -> None:
        if self.core.finishing and not self.core.half_closed and not self.core.channels and not self.core.away:
            self.core.half_closed = True
            self._outbox.put_nowait(None)

    def _close(self) -> None:
        self._outbox.put_nowait(None)
        for task in self._on_their_way:
            task.cancel()
        self.tell_all()


class _Told:
    """A gateway's core, whose channels that cannot go on are told so before the others are waited for."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier

    def wait_s(self, error: CellstateError) -> float | None:
        wait_s = self._carrier.core.wait_s(error)
        self._carrier.tell_all()
        return wait_s

    def replays(self) -> list[Replay]:
        return self._carrier.core.replays()


async def _drain(outbox: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    """Yield what is to be sent; what waits together goes together."""
    while (messages := await outbox.get()) is not None:
        waiting = list(messages)
        while not outbox.empty() and (messages := outbox.get_nowait()) is not None:
            waiting += messages
        for message in pack(waiting):
            yield message
        if messages is None:
            return
