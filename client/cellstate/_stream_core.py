"""A full-duplex stream without its sockets: makes what is sent, sorts what arrives. Pure: `Stream` and `AsyncStream` add waiting and locking."""

from collections import deque
from typing import Any

from cellstate._calls import to_generation, to_stream_opening, to_target
from cellstate._convert import split, to_emit
from cellstate._exchange import Call, Reader
from cellstate._resume import GoingOn, StreamLog, again
from cellstate._tracking import Handle
from cellstate.errors import CellstateError, ErrorDetails, InvalidInput
from cellstate.outputs import Completion, Emit, Output
from cellstate.programs import DirectiveOptions, StreamOptions, check_options
from cellstate.v1 import inference_pb2

_Request = inference_pb2.ManyToManyRequest
ACKNOWLEDGED_BYTES = 128 << 10
"""Outputs after which a stream on a session acknowledges by itself."""
ACKNOWLEDGED_STEPS = 1024
"""Or after so many steps: the server counts what each takes beside its values, too."""


class StreamCore:
    """What both faces of a stream share.

    Attributes:
        call: The call to make; `opening` is its first message.
        reader: Reads the answers and keeps the session's handle current.
        events: Outputs and completions that arrived and were not taken yet.
        stops: Positions at which stop directives took effect, not taken yet.
        position: The last position heard of.
        opened: The opening was answered.
        half_closed: Nothing more may be sent.
        ended: Nothing more arrives.
        error: Why it ended, where it failed.
    """

    def __init__(self, model: str | Handle, options: StreamOptions, resume_s: float) -> None:
        check_options(options, StreamOptions, "stream")
        target, tracked = to_target(model)
        self.call: Call[Any] = Call("inference", "ManyToMany", lambda response: response, None, tracked, options.get("timeout_s"), streams=True)
        self.opening = _Request(open=to_stream_opening(target, options))
        self.reader = Reader(options.get("form"), tracked)
        self.going_on = GoingOn(self.reader.received, resume_s if tracked is not None else 0.0, options.get("timeout_s"))
        self._log = StreamLog()
        self._unacknowledged_bytes = self._unacknowledged_steps = 0
        self.events: deque[Output | Completion] = deque()
        self.stops: deque[int] = deque()
        self.position = 0
        self.opened = False
        self.half_closed = False
        self.ended = False
        self.error: CellstateError | None = None

    def send(self, value: Any, emit: Emit | str | None) -> list[inference_pb2.ManyToManyRequest]:
        """Return the messages that carry an input."""
        self._check_open()
        pieces = split(value)
        if pieces is None:
            raise InvalidInput("send takes one chunk at a time: text, numbers or an array", ErrorDetails(field="input"))
        messages = [_Request(input=inference_pb2.InputChunk(values=self.call.guess.to_sequence(piece), emit=to_emit(emit))) for piece in pieces]
        return [self._sent(message) for message in messages]

    def one_step(self, value: Any, emit: Emit) -> inference_pb2.ManyToManyRequest:
        """Return the message that carries one step, of which a vector is the features."""
        self._check_open()
        return self._sent(_Request(input=inference_pb2.InputChunk(values=self.call.guess.to_sequence(value, one_step=True), emit=to_emit(emit))))

    def generate(self, options: DirectiveOptions) -> inference_pb2.ManyToManyRequest:
        """Return the directive to generate."""
        check_options(options, DirectiveOptions, "generate")
        self._check_open()
        return self._sent(_Request(generate=inference_pb2.GenerateDirective(generation=to_generation(options))))

    def stop(self) -> inference_pb2.ManyToManyRequest:
        """Return the directive to stop."""
        self._check_open()
        return self._sent(_Request(stop=inference_pb2.StopDirective()))

    def acknowledge(self, position: int | None) -> inference_pb2.ManyToManyRequest:
        """Return the acknowledgement of outputs."""
        self._check_open()
        return _Request(acknowledge=inference_pb2.Acknowledgement(position=self.position if position is None else position))

    def feed(self, response: inference_pb2.ManyToManyResponse) -> None:
        """Sort a message that arrived."""
        if response.HasField("opened") and not self.opened:
            self.opened = True
            self.position = response.opened.position
            self._log.opened(self.position)
        self._log.answered(response)
        self._unacknowledged_bytes += response.output.ByteSize()
        self._unacknowledged_steps += response.output.position - response.output.first_position
        for event in self.reader.read(response):
            self.position = event.position
            self.events.append(event)
        if response.HasField("stopped"):
            self.position = response.stopped.position
            self.stops.append(response.stopped.position)

    def due(self) -> inference_pb2.ManyToManyRequest | None:
        """Return the acknowledgement that should be sent now: the server keeps outputs until it has it, within bounds."""
        few = self._unacknowledged_bytes < ACKNOWLEDGED_BYTES and self._unacknowledged_steps < ACKNOWLEDGED_STEPS
        if few or self.half_closed or not self.going_on.possible:
            return None
        self._unacknowledged_bytes = self._unacknowledged_steps = 0
        return _Request(acknowledge=inference_pb2.Acknowledgement(position=self.reader.received.position))

    def wait_s(self, error: CellstateError) -> float | None:
        """Return how long to wait before the stream is opened again; None where an error is its end."""
        return self.going_on.wait_s(error) if self._log.whole and not self.ended else None

    def reopening(self) -> list[inference_pb2.ManyToManyRequest]:
        """Return what opens the stream again, and what is sent again."""
        opening = _Request()
        opening.CopyFrom(self.opening)
        opening.open.target.session.CopyFrom(again(self.opening.open.target.session, self.reader.received, self._log.position))
        self._unacknowledged_bytes = self._unacknowledged_steps = 0
        return [opening, *self._log.again()]

    def finish(self, error: CellstateError | None = None) -> None:
        """Note that nothing more arrives."""
        if self.ended:
            return
        self.ended = self.half_closed = True
        if error is not None:
            self.reader.failed()
            self.error = self.call.failed(error)
        else:
            self.reader.ended()

    def cut(self) -> bool:
        """Note that the caller ends the stream; False where it had ended."""
        if self.ended:
            return False
        self.ended = self.half_closed = True
        self.reader.cut()
        return True

    def _sent(self, message: inference_pb2.ManyToManyRequest) -> inference_pb2.ManyToManyRequest:
        if self.going_on.possible:
            self._log.sent(message)
        return message

    def _check_open(self) -> None:
        if self.error is not None:
            raise self.error
        if self.half_closed:
            raise RuntimeError("the stream is closed: nothing more can be sent on it")
