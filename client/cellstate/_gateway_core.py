"""One stream of many sessions without its sockets: numbers channels, packs what is sent, sorts what arrives. Pure, as `_stream_core.py`."""

from collections.abc import Iterable, Iterator
from typing import Any, cast

from cellstate._exchange import Call
from cellstate._status import error_from_failure
from cellstate._stream_core import StreamCore
from cellstate._tracking import Handle
from cellstate.errors import CellstateError
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
        half_closed: Nothing more may be sent.
        ended: Nothing more arrives.
        error: Why it ended, where it failed.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self.call: Call[Any] = Call("inference", "ManyToMany", lambda response: response, None, None, timeout_s, streams=True)
        self.channels: dict[int, StreamCore] = {}
        self.half_closed = False
        self.ended = False
        self.error: CellstateError | None = None
        self._made = 0

    def open(self, model: str | Handle, options: ChannelOptions) -> tuple[int, StreamCore, inference_pb2.ManyToManyRequest]:
        """Return a new channel with its number, and the message that opens it."""
        check_options(options, ChannelOptions, "open")
        if self.error is not None:
            raise self.error
        if self.half_closed:
            raise RuntimeError("the gateway is closed: open another one")
        core = StreamCore(model, cast("StreamOptions", options), 0.0)
        self._made += 1
        self.channels[self._made] = core
        return self._made, core, on_channel(self._made, core.opening)

    def feed(self, response: inference_pb2.ManyToManyResponse) -> Iterator[int]:
        """Sort a message that arrived, and yield the numbers of the channels that it tells of."""
        yield self._feed(response)
        for part in response.more:
            yield self._feed(part)

    def finish(self, error: CellstateError | None = None) -> None:
        """Note that nothing more arrives, on any channel."""
        if self.ended:
            return
        self.ended = self.half_closed = True
        self.error = error
        for core in self.channels.values():
            core.finish(error)

    def cut(self) -> bool:
        """Note that the caller ends the stream; False where it had ended."""
        if self.ended:
            return False
        self.ended = self.half_closed = True
        for core in list(self.channels.values()):  # another thread may be reading
            core.cut()
        return True

    def _feed(self, part: inference_pb2.ManyToManyResponse) -> int:
        core = self.channels.get(part.channel)
        if core is None:
            return part.channel
        core.feed(part)
        if part.HasField("failure"):
            core.finish(error_from_failure(part.failure))
        elif part.HasField("closed"):
            core.position = part.closed.position
            core.finish()
        if core.ended:
            del self.channels[part.channel]
        return part.channel


def on_channel(number: int, message: inference_pb2.ManyToManyRequest) -> inference_pb2.ManyToManyRequest:
    """Return the message, put on a channel."""
    message.channel = number
    return message


def step_message(number: int, core: StreamCore, value: Any) -> inference_pb2.ManyToManyRequest:
    """Return the message that asks for one step, or for the output of a chunk's last step.

    Raises:
        CellstateError: The value cannot be sent, or the channel has failed.
    """
    return on_channel(number, core.one_step(value, Emit.LAST))


def close_message(number: int, core: StreamCore) -> inference_pb2.ManyToManyRequest:
    """Return the message that closes a channel."""
    core.half_closed = True
    return _Request(close=inference_pb2.CloseDirective(), channel=number)


def pack(messages: Iterable[inference_pb2.ManyToManyRequest]) -> Iterator[inference_pb2.ManyToManyRequest]:
    """Yield the messages in their order, put into as few as their size allows."""
    first: inference_pb2.ManyToManyRequest | None = None
    size = 0
    for message in messages:
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
