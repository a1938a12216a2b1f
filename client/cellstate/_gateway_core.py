"""One stream of many sessions without its sockets: numbers channels, packs what is sent, sorts what arrives. Pure, as `_stream_core.py`.

A channel on a session that was lost, by itself or with the stream, is opened again under another number, as a stream is; until then what is sent on it
is only logged.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from cellstate._exchange import Call
from cellstate._resume import FIRST_WAIT_S, GoingOn, Replay, can_go_on
from cellstate._status import error_from_failure
from cellstate._stream_core import StreamCore
from cellstate._tracking import Handle
from cellstate.errors import CellstateError, SessionRolledBack
from cellstate.outputs import Emit
from cellstate.programs import ChannelOptions, StreamOptions, check_options
from cellstate.v1 import inference_pb2

PACKED_BYTES = 1 << 20

_Request = inference_pb2.ManyToManyRequest


class GatewayCore:
    """What both faces of a gateway share.

    Attributes:
        call: The call to make.
        channels: The channels that are open or being opened, by number; each is a stream of its own.
        lost: Channels that failed by themselves and are to be opened again, with why; whoever takes one out sees to it.
        away: Channels on their way back.
        finishing: All channels are closed as soon as what was asked of them allows.
        half_closed: Nothing more may be sent.
        ended: Nothing more arrives.
        error: Why it ended, where it failed.
    """

    def __init__(self, timeout_s: float | None, resume_s: float) -> None:
        self.call: Call[Any] = Call("inference", "ManyToMany", lambda response: response, None, None, timeout_s, streams=True)
        self.channels: dict[int, StreamCore] = {}
        self.lost: list[tuple[StreamCore, CellstateError]] = []
        self.away: set[StreamCore] = set()
        self.finishing = False
        self.half_closed = False
        self.ended = False
        self.error: CellstateError | None = None
        self._resume_s = resume_s
        self._idle = GoingOn(resume_s, timeout_s)
        self._until_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._made = 0

    @property
    def timeout_s(self) -> float | None:
        """What is left of the stream's deadline."""
        return None if self._until_s is None else self._until_s - time.monotonic()

    def open(self, model: str | Handle, options: ChannelOptions) -> tuple[StreamCore, inference_pb2.ManyToManyRequest]:
        """Return a new channel, and the message that opens it."""
        check_options(options, ChannelOptions, "open")
        if self.error is not None:
            raise self.error
        if self.half_closed or self.finishing:
            raise RuntimeError("the gateway is closed: open another one")
        core = StreamCore(model, cast("StreamOptions", {**options, "timeout_s": self.timeout_s}), self._resume_s)
        self._number(core)
        return core, on_channel(core, core.opening)

    def feed(self, response: inference_pb2.ManyToManyResponse) -> Iterator[StreamCore]:
        """Sort a message that arrived, and yield the channels that it tells of."""
        for part in (response, *response.more) if response.more else (response,):
            core = self.channels.get(part.channel)
            if core is not None:
                self._feed(core, part)
                yield core

    def due(self, core: StreamCore) -> list[inference_pb2.ManyToManyRequest]:
        """Return what is to be sent on a channel after it was told something: an acknowledgement, or its close."""
        if core.ended or not core.number:
            return []
        due = core.due()
        made = [] if due is None else [on_channel(core, due)]
        return [*made, close_message(core)] if core.closes else made

    def reopen(self, core: StreamCore) -> list[inference_pb2.ManyToManyRequest]:
        """Return the messages that open a channel again."""
        self.away.discard(core)
        closed = core.half_closed
        self._number(core)
        messages = [on_channel(core, message) for message in core.reopening()]
        return [*messages, close_message(core)] if closed else messages

    def returned(self, core: StreamCore, error: CellstateError | None) -> list[inference_pb2.ManyToManyRequest]:
        """Hear that a channel that was away can be opened again, or of the error that is its end; return the messages that open it."""
        if error is not None:
            core.finish(error)
        if core.ended:
            self.away.discard(core)
            return []
        return self.reopen(core)

    def wait_s(self, error: CellstateError) -> float | None:
        """Return how long to wait before the stream is opened again; None where an error is its end. Channels that cannot go on are finished."""
        waits = [FIRST_WAIT_S] if self.away else []
        if not waits and not self.channels and self._takes_channels and can_go_on(error):
            idle_s = self._idle.wait_s(error, 0)
            waits += [] if idle_s is None else [idle_s]
        for core in list(self.channels.values()):
            wait_s = None if self.ended else core.wait_s(error)
            if wait_s is None:
                core.finish(error)
                self._drop(core)
            else:
                waits.append(wait_s)
        return max(waits) if waits and not self.ended else None

    @property
    def _takes_channels(self) -> bool:
        """Whether channels may come that are worth another connection."""
        return self._idle.possible and not self.finishing and not self.half_closed

    def replays(self) -> list[Replay]:
        """Return nothing: whether a session went back is told when its channel is opened."""
        return []

    def reopenings(self) -> list[inference_pb2.ManyToManyRequest]:
        """Return what opens all channels again on another stream."""
        cores = list(self.channels.values())
        return [message for core in cores for message in self.reopen(core)]

    def finish(self, error: CellstateError | None = None) -> None:
        """Note that nothing more arrives, on any channel. Where it was half-closed all had been answered: how it ends is nobody's concern then."""
        if self.ended:
            return
        self.error = None if self.half_closed else error
        self.ended = self.half_closed = True
        for core in (*self.channels.values(), *self.away):
            core.finish(error)

    def cut(self) -> bool:
        """Note that the caller ends the stream; False where it had ended."""
        if self.ended:
            return False
        self.ended = self.half_closed = True
        for core in (*list(self.channels.values()), *list(self.away)):  # another thread may be reading
            core.cut()
        return True

    def _feed(self, core: StreamCore, part: inference_pb2.ManyToManyResponse) -> None:
        try:
            core.feed(part)
        except SessionRolledBack as error:
            self._failed(core, error)
            return
        if part.HasField("failure"):
            self._failed(core, error_from_failure(part.failure))
        elif part.HasField("closed"):
            core.position = part.closed.position
            core.finish()
            self._drop(core)

    def _failed(self, core: StreamCore, error: CellstateError) -> None:
        if core.goes_on(error):
            self.lost.append((core, error))
            self.away.add(core)
        else:
            core.finish(error)
        self._drop(core)

    def _number(self, core: StreamCore) -> None:
        self._drop(core)
        self._made += 1
        core.number = self._made
        self.channels[core.number] = core

    def _drop(self, core: StreamCore) -> None:
        self.channels.pop(core.number, None)
        core.number = 0


def on_channel(core: StreamCore, message: inference_pb2.ManyToManyRequest) -> inference_pb2.ManyToManyRequest:
    """Return the message, put on a channel."""
    message.channel = core.number
    return message


def step_messages(inputs: Mapping[StreamCore, Any]) -> tuple[list[inference_pb2.ManyToManyRequest], dict[StreamCore, CellstateError]]:
    """Return the messages that ask for one step on each channel, or for the output of a chunk's last step; and the errors of those where that cannot be.

    Raises:
        TypeError, RuntimeError: What is given is no input, or a channel was closed. Then nothing is asked on any.
    """
    made: dict[StreamCore, inference_pb2.ManyToManyRequest] = {}
    errors: dict[StreamCore, CellstateError] = {}
    for core, value in inputs.items():
        try:
            made[core] = core.one_step(value, Emit.LAST)
        except CellstateError as error:
            errors[core] = error
    return [on_channel(core, message) for core, asked in made.items() for message in core.logged(asked)], errors


def close_message(core: StreamCore) -> inference_pb2.ManyToManyRequest:
    """Return the message that closes a channel."""
    core.half_closed = True
    return _Request(close=inference_pb2.CloseDirective(), channel=core.number)


def pack(messages: Iterable[inference_pb2.ManyToManyRequest]) -> Iterator[inference_pb2.ManyToManyRequest]:
    """Yield the messages in their order, put into as few as their size allows; what was sent on a channel that is away is in its log."""
    first: inference_pb2.ManyToManyRequest | None = None
    size = 0
    for message in messages:
        if not message.channel:
            continue
        length = message.ByteSize()
        if first is not None and size + length <= PACKED_BYTES:
            first.more.append(message)
            size += length
            continue
        if first is not None:
            yield first
        first, size = message, length
    if first is not None:
        yield first
