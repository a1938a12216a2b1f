"""Streams that carry many sessions, each on a channel of its own: one message up and one down move a step of all of them.

One task reads the stream and never waits for an engine; another writes whatever is ready on all channels. A channel's error closes that channel alone.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from functools import partial

import structlog

from cellstate.v1 import inference_pb2
from cellstate_service.engine.request import Emit, Request
from cellstate_service.errors import CellstateError, Exhausted, InvalidInput, Reason
from cellstate_service.rpc.calls import HeldCall, open_call
from cellstate_service.rpc.decode import decode_emit
from cellstate_service.rpc.intake import Intake, check_flat
from cellstate_service.rpc.interceptor import CallContext
from cellstate_service.rpc.parts import Parts
from cellstate_service.rpc.programs import ProgramDecoder
from cellstate_service.rpc.status import failure, unexpected
from cellstate_service.sessions.calling import Calling, stopping

MAX_WAITING_FAILURES = 1024
MAX_FOLLOWING = 1024
"""Messages that wait for a channel's opening; at more the stream is not read until it is open."""
MESSAGES_AT_ONCE = 64
_log = structlog.get_logger(__name__)


class Channel:
    """One session of a gateway's stream.

    Attributes:
        number: As its caller chose it.
        held: Its call.
        intake: What hands its messages over.
        position: Where its session stands, as far as the caller has been told.
        opened: Whether its opening was answered, which its first item is for.
        closing: It ends when all is answered.
        refused: A message of it was refused: what follows is dropped, and its failure comes in its turn.
    """

    __slots__ = ("closing", "held", "intake", "number", "opened", "position", "refused")

    def __init__(self, number: int, held: HeldCall, intake: Intake) -> None:
        self.number = number
        self.held = held
        self.intake = intake
        self.position = 0
        self.opened = False
        self.closing = False
        self.refused = False


class Opening:
    """A channel whose session is being brought in.

    Attributes:
        following: What came for it since, and whether that was inside of another message.
        task: Opens it, then takes what follows.
    """

    __slots__ = ("following", "task")

    def __init__(self) -> None:
        self.following: deque[tuple[inference_pb2.ManyToManyRequest, bool]] = deque()
        self.task: asyncio.Future[None] | None = None


class Gateway:
    """Serves one gateway's stream. Everything runs in the event loop."""

    def __init__(self, calling: Calling, decoder: ProgramDecoder, context: CallContext) -> None:
        self._calling = calling
        self._decoder = decoder
        self._context = context
        self._channels: dict[int, Channel] = {}
        self._failed: dict[int, None] = {}  # numbers whose caller may not have learned of the failure yet, the oldest first
        self._failures: deque[tuple[int, CellstateError]] = deque()  # of numbers that no channel has
        self._space = asyncio.Event()
        self._opening: dict[int, Opening] = {}
        self._ready: dict[Channel, None] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._half_closed = False

    async def serve(self, first: inference_pb2.ManyToManyRequest, requests: AsyncIterator[inference_pb2.ManyToManyRequest]) -> None:
        """Serve the stream to its end.

        Raises:
            InvalidInput: A message cannot be read at all, so that nobody knows whose it was.
            Unavailable: The server stops, and no channel is left: whoever wants to go on is to open another stream, which reaches another server.
        """
        pump = asyncio.ensure_future(self._pump(first, requests))
        pump.add_done_callback(lambda _: self._wake())
        self._calling.on_drain.add(self._wake)
        try:
            while not (pump.done() and pump.exception()):
                response = self._gather()
                if response is not None:
                    await self._context.write(response)
                elif pump.done() and not self._channels and not self._opening:
                    break
                elif self._calling.draining and not self._channels and not self._opening:
                    raise stopping()
                else:
                    await self._something()
            pump.result()
        finally:
            self._calling.on_drain.discard(self._wake)
            await self._end(pump)

    # -- reading

    async def _pump(self, first: inference_pb2.ManyToManyRequest, requests: AsyncIterator[inference_pb2.ManyToManyRequest]) -> None:
        await self._take_all(first)
        async for message in requests:
            await self._take_all(message)
        self._half_closed = True
        for channel in self._channels.values():
            if channel.number not in self._opening:  # otherwise what waits behind its opening comes first
                self._half_close(channel)

    def _half_close(self, channel: Channel) -> None:
        if not channel.refused:
            channel.closing = True
            channel.held.call.half_close()
            self._mark(channel)

    async def _take_all(self, message: inference_pb2.ManyToManyRequest) -> None:
        await self._take(message)
        for count, further in enumerate(message.more, 1):
            await self._take(further, inner=True)
            if count % MESSAGES_AT_ONCE == 0:
                await asyncio.sleep(0)  # others' turn

    async def _take(self, message: inference_pb2.ManyToManyRequest, *, inner: bool = False) -> None:
        opening = self._opening.get(message.channel)
        if opening is None:
            await self._apply(message, inner=inner)
            return
        opening.following.append((message, inner))
        if len(opening.following) >= MAX_FOLLOWING and opening.task is not None:
            await asyncio.wait([opening.task])

    async def _apply(self, message: inference_pb2.ManyToManyRequest, *, inner: bool = False) -> None:
        channel = self._channels.get(message.channel)
        if channel.refused if channel is not None else message.channel in self._failed and not message.HasField("open"):
            return  # sent before its caller learned of the failure
        try:
            if inner:
                check_flat(message)
            if channel is None:
                await self._begin_open(message)
            elif channel.closing:
                raise InvalidInput("channel: it is being closed; wait for `closed` before it is used again", Reason.STREAM_PROTOCOL, field="channel")
            elif message.HasField("close"):
                self._half_close(channel)
            elif not channel.held.call.has_room:
                raise Exhausted("channel: too many of its inputs wait for the model; read outputs before sending more", Reason.OVERLOADED, retry_after_s=1.0)
            else:
                await channel.intake.take(message)
        except CellstateError as error:
            await self._refuse(message.channel, channel, error)
        except Exception:
            fault = unexpected()
            _log.exception("unexpected fault in a channel", log_id=fault.metadata["log_id"])
            await self._refuse(message.channel, channel, fault)

    async def _refuse(self, number: int, channel: Channel | None, error: CellstateError) -> None:
        """Tell an error: of a channel in its turn, behind the answers to what came before it; of a number that no channel has, at once."""
        if channel is not None:
            channel.refused = True
            call = channel.held.call
            call.submit(Request(call.outbox, refusal=error))
            return
        while len(self._failures) >= MAX_WAITING_FAILURES:
            self._space.clear()
            await self._space.wait()
        self._failures.append((number, error))
        self._wake()

    # -- opening

    async def _begin_open(self, message: inference_pb2.ManyToManyRequest) -> None:
        """Open a channel; where its session is elsewhere, beside the reading of the stream, so that the other channels need not wait."""
        number, target = message.channel, message.open.target
        if not message.HasField("open") or self._calling.is_near(self._context.owner, target.session.name):
            await self._open(message)
            return
        opening = self._opening[number] = Opening()

        async def open_and_follow() -> None:
            try:
                await self._open(message)
            except CellstateError as error:
                await self._refuse(number, None, error)
            except Exception:
                fault = unexpected()
                _log.exception("unexpected fault in a channel", log_id=fault.metadata["log_id"])
                await self._refuse(number, None, fault)
            while opening.following:
                following, was_inner = opening.following.popleft()
                await self._apply(following, inner=was_inner)
            del self._opening[number]
            if self._half_closed and (channel := self._channels.get(number)) is not None:
                self._half_close(channel)
            self._wake()

        opening.task = asyncio.ensure_future(open_and_follow())

    async def _open(self, message: inference_pb2.ManyToManyRequest) -> None:
        number = message.channel
        if not number:
            text = "channel: this stream is a gateway's, whose channels begin with 1; open another stream for channel 0"
            raise InvalidInput(text, Reason.STREAM_PROTOCOL, field="channel")
        if not message.HasField("open"):
            raise InvalidInput("channel: it is not open; open it, with a model or a session", Reason.STREAM_PROTOCOL, field="channel")
        self._note_failed(number)  # until it is open
        limit = self._decoder.limits.max_channels
        if len(self._channels) + len(self._opening) - (number in self._opening) >= limit:
            raise Exhausted(f"channel: {limit} are open, the limit of one stream; close some, or open another stream", Reason.OVERLOADED, field="channel")
        held = await open_call(self._calling, self._context, message.open.target, "many_to_many", "open.target")
        try:
            emit = decode_emit(message.open.emit, Emit.ALL, "open.emit")
            settings = self._decoder.opening(message.open, held.call, emit, self._context.deadline_s, "open.")
            held.begin()
        except BaseException:
            held.end()
            raise
        del self._failed[number]
        channel = self._channels[number] = Channel(number, held, Intake(self._decoder, settings))
        held.call.listen(partial(self._mark, channel))
        held.call.ask_position()  # told before anything of this channel is applied, without waiting for it

    def _note_failed(self, number: int) -> None:
        self._failed.pop(number, None)
        self._failed[number] = None
        if len(self._failed) > self._decoder.limits.max_channels:
            del self._failed[next(iter(self._failed))]

    # -- writing

    def _gather(self) -> inference_pb2.ManyToManyResponse | None:
        """Return one message of what is ready on all channels, as much as a message takes; None where nothing is."""
        parts = Parts()
        while self._failures and not parts.full:
            self._tell_failure(parts, *self._failures.popleft())
            self._space.set()
        while self._ready and not parts.full:
            channel = next(iter(self._ready))
            del self._ready[channel]
            self._empty(channel, parts)
        return parts.message()

    def _empty(self, channel: Channel, parts: Parts) -> None:
        """Take what is ready on one channel; where the message is full before, the channel stays ready, behind the others."""
        call = channel.held.call
        while (item := call.next_ready()) is not None:
            channel.position = item.position
            if channel.opened:
                parts.tell(channel.number, item, channel.intake.opening)
            else:
                channel.opened = True
                parts.opened(channel.number, item.position, call)
            if parts.full:
                self._ready[channel] = None
                return
        if call.failure is not None:
            self._tell_failure(parts, channel.number, call.failure)
            self._note_failed(channel.number)
            self._close(channel)
        elif channel.closing and not call.owes:
            parts.closed(channel.number, channel.position)
            self._close(channel)

    def _tell_failure(self, parts: Parts, number: int, error: CellstateError) -> None:
        self._context.refused(error)
        parts.failure(number, failure(error))

    def _close(self, channel: Channel) -> None:
        channel.held.call.listen(None)
        channel.held.end()
        self._ready.pop(channel, None)
        del self._channels[channel.number]

    def _mark(self, channel: Channel) -> None:
        """Note that something may be ready on a channel."""
        if not self._ready:  # whoever came first has woken the writer
            self._wake()
        self._ready[channel] = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _something(self) -> None:
        """Wait until something may be ready."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def _end(self, pump: "asyncio.Future[None]") -> None:
        pump.cancel()
        openings = [opening.task for opening in self._opening.values() if opening.task is not None]
        for task in openings:
            task.cancel()
        await asyncio.gather(*openings, return_exceptions=True)
        for channel in list(self._channels.values()):
            self._close(channel)
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await pump
