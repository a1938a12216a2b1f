"""One response that carries what happened on many channels."""

from cellstate.v1 import error_pb2, inference_pb2
from cellstate_service.engine.outbox import Item
from cellstate_service.rpc.calls import fill_opened
from cellstate_service.rpc.programs import Opening
from cellstate_service.rpc.streams import field_of, fill
from cellstate_service.sessions.call import MESSAGE_BYTES, Call

_Response = inference_pb2.ManyToManyResponse


class Parts:
    """Puts what happened into one message: first into the message itself, then into `more`. Fields of one channel share a part where their order allows it."""

    def __init__(self) -> None:
        self._message = _Response()
        self._part: _Response | None = None
        self._last_field = 0
        self._bytes = 0

    @property
    def full(self) -> bool:
        """Whether the message carries as much as one should."""
        return self._bytes >= MESSAGE_BYTES

    def message(self) -> inference_pb2.ManyToManyResponse | None:
        """Return the message; None where nothing happened."""
        return None if self._part is None else self._message

    def opened(self, channel: int, position: int, call: Call) -> None:
        """Tell that a channel is open."""
        opened = self._at(channel, _Response.OPENED_FIELD_NUMBER).opened
        opened.position = position
        fill_opened(opened, call)

    def tell(self, channel: int, item: Item, opening: Opening) -> None:
        """Tell an item of a channel, where it has anything to tell."""
        field = field_of(item)
        if field is not None:
            part = self._at(channel, field)
            fill(part, item, opening)
            self._bytes += part.ByteSize()

    def failure(self, channel: int, failure: error_pb2.Failure) -> None:
        """Tell that a channel failed."""
        part = self._at(channel, _Response.FAILURE_FIELD_NUMBER)
        part.failure.CopyFrom(failure)
        self._bytes += part.ByteSize()

    def closed(self, channel: int, position: int) -> None:
        """Tell that a channel has ended."""
        self._at(channel, _Response.CLOSED_FIELD_NUMBER).closed.position = position

    def _at(self, channel: int, field: int) -> inference_pb2.ManyToManyResponse:
        """Return a part of the message in which a field of a channel takes its turn."""
        part = self._part
        if part is None:
            part = self._message
        elif part.channel == channel and self._last_field < field:
            self._last_field = field
            return part
        else:
            part = self._message.more.add()
        part.channel = channel
        self._part, self._last_field = part, field
        return part
