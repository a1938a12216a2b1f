"""What the caller sends on a many-to-many stream, or on one channel of it, and how it is handed to the engine."""

from collections.abc import Iterator

from cellstate.v1 import inference_pb2
from cellstate_service.errors import InvalidInput, Reason
from cellstate_service.rpc.decode import decode_emit
from cellstate_service.rpc.programs import Opening, ProgramDecoder


class Intake:
    """Hands the messages of one opening to its call, in the order in which they come."""

    __slots__ = ("_decoder", "_position", "opening")

    def __init__(self, decoder: ProgramDecoder, opening: Opening) -> None:
        self.opening = opening
        self._decoder = decoder
        self._position = opening.position

    async def take(self, message: inference_pb2.ManyToManyRequest) -> None:
        """Hand over a chunk, a directive or an acknowledgement.

        Raises:
            InvalidInput: The message is refused; nothing of it was handed over.
        """
        kind = message.WhichOneof("message")
        opening = self.opening
        if kind == "input":
            request = await self._decoder.chunk(message.input, opening, decode_emit(message.input.emit, opening.emit, "input.emit"))
        elif kind == "generate":
            request = self._decoder.generate(message.generate, opening)
        elif kind == "stop":
            opening.call.stop_generation()
            return
        elif kind == "acknowledge":
            opening.call.acknowledge(message.acknowledge.position)
            return
        else:
            raise InvalidInput(f"message: {_MISPLACED.get(kind or '', 'the message is empty')}", Reason.STREAM_PROTOCOL, field=kind or "message")
        if request.position is None:
            request.position = self._position
        self._position = None
        opening.call.submit(request)


def unfold(message: inference_pb2.ManyToManyRequest) -> Iterator[inference_pb2.ManyToManyRequest]:
    """Yield a message and those that it carries.

    Raises:
        InvalidInput: One of those carries further ones.
    """
    yield message
    for further in message.more:
        check_flat(further)
        yield further


def check_flat(further: inference_pb2.ManyToManyRequest) -> None:
    """Raise InvalidInput where a message inside of `more` carries further ones itself."""
    if further.more:
        raise InvalidInput("more: messages inside of more carry none themselves; put them all beside each other", Reason.STREAM_PROTOCOL, field="more")


_MISPLACED = {
    "open": "a stream opens once, and so does a channel until it is closed; send input, generate, stop or acknowledge",
    "close": "a stream on channel 0 is half-closed, not closed",
}
