"""A full-duplex stream without its sockets: makes what is sent, sorts what arrives. Pure: `Stream` and `AsyncStream` add waiting and locking."""

from collections import deque
from enum import Enum, auto
from typing import Any

from cellstate._call_log import CallLog
from cellstate._calls import first_position, to_generation, to_stream_options, to_target
from cellstate._convert import split, to_emit
from cellstate._exchange import Call, Reader
from cellstate._resume import GoingOn, Replay, Resumption, messages
from cellstate._tracking import Handle
from cellstate.errors import CellstateError, ErrorDetails, InvalidInput
from cellstate.outputs import Completion, Emit, Output
from cellstate.programs import DirectiveOptions, StreamOptions, check_options
from cellstate.v1 import inference_pb2

_Request = inference_pb2.ManyToManyRequest
ACKNOWLEDGED_BYTES = 16 << 10
"""Outputs after which a stream on a session acknowledges by itself."""
ACKNOWLEDGED_STEPS = 128
"""Or after so many steps: what is not acknowledged travels in each snapshot of the session."""


class _Stop(Enum):
    """A stop directive that is not answered yet: whether somebody waits for the answer, nobody does any more, or only the log does."""

    WAITED_FOR = auto()
    LEFT = auto()
    MARK = auto()


class StreamCore:
    """What both faces of a stream share.

    Attributes:
        number: Of its channel, on a gateway's stream; 0 where it has none, now or ever.
        call: The call to make; `opening` is its first message.
        reader: Reads the answers and keeps the session's handle current.
        resumption: Takes the stream up again; None where it runs on no session.
        events: Outputs and completions that arrived and were not taken yet.
        stops: Positions at which the caller's stop directives took effect, not taken yet.
        position: The last position heard of.
        opened: The opening was answered.
        asked_all: Nothing more will be asked; until it `closes` the stream stays open for acknowledgements.
        held: What was asked waits for the answer to opening, since nobody knows where the session stands.
        half_closed: Nothing more may be sent.
        ended: Nothing more arrives.
        error: Why it ended, where it failed.
    """

    def __init__(self, model: str | Handle, options: StreamOptions, resume_s: float) -> None:
        check_options(options, StreamOptions, "stream")
        target, tracked = to_target(model)
        asked = to_stream_options(options)
        timeout_s = options.get("timeout_s")
        log = None if tracked is None else CallLog(tracked.log, asked, first_position(target))
        self.call: Call[Any] = Call("inference", "ManyToMany", lambda response: response, None, tracked, timeout_s, streams=True, log=log)
        self.number = 0
        self.opening = _Request(open=asked.opening(target))
        self.reader = Reader(options.get("form"), tracked)
        self.resumption = None if tracked is None or log is None else Resumption(tracked, log, GoingOn(resume_s, timeout_s))
        self._log = log
        self._acknowledges = log is not None and resume_s > 0
        self._unacknowledged_bytes = self._unacknowledged_steps = 0
        self.events: deque[Output | Completion] = deque()
        self.stops: deque[int] = deque()
        self._asked_stops: deque[_Stop] = deque()  # those that were not answered yet
        self._unwanted = 0
        self.position = 0
        self.opened = False
        self.asked_all = False
        self.held = False
        self.half_closed = False
        self.ended = False
        self.error: CellstateError | None = None

    def send(self, value: Any, emit: Emit | str | None) -> list[inference_pb2.ManyToManyRequest]:
        """Return the messages that carry an input."""
        self._check_open()
        pieces = split(value)
        if pieces is None:
            raise InvalidInput("send takes one chunk at a time: text, numbers or an array", ErrorDetails(field="input"))
        made = [_Request(input=inference_pb2.InputChunk(values=self.call.guess.to_sequence(piece), emit=to_emit(emit))) for piece in pieces]
        return self.logged(*made)

    def one_step(self, value: Any, emit: Emit) -> inference_pb2.ManyToManyRequest:
        """Return the message that carries one step, of which a vector is the features. It is asked once it went through `logged`."""
        self._check_open()
        return _Request(input=inference_pb2.InputChunk(values=self.call.guess.to_sequence(value, one_step=True), emit=to_emit(emit)))

    def logged(self, *inputs: inference_pb2.ManyToManyRequest) -> list[inference_pb2.ManyToManyRequest]:
        """Note that inputs are asked from now on, and return them, with a question behind them where it is due: where they end."""
        sent = [self._sent(message, message.input) for message in inputs]
        return [*sent, self._stop(_Stop.MARK)] if self._acknowledges and self._log is not None and self._log.wants_mark else sent

    def generate(self, options: DirectiveOptions) -> inference_pb2.ManyToManyRequest:
        """Return the directive to generate."""
        check_options(options, DirectiveOptions, "generate")
        self._check_open()
        message = _Request(generate=inference_pb2.GenerateDirective(generation=to_generation(options)))
        return self._sent(message, message.generate)

    def stop(self) -> inference_pb2.ManyToManyRequest:
        """Return the directive to stop."""
        self._check_open()
        return self._stop(_Stop.WAITED_FOR)

    def _stop(self, kind: "_Stop") -> inference_pb2.ManyToManyRequest:
        message = _Request(stop=inference_pb2.StopDirective())
        self._asked_stops.append(kind)
        if self._log is not None:
            self._log.sent(message.stop, mark=kind is _Stop.MARK)
        return message

    def _lost(self) -> None:
        if self._log is not None:
            self._log.drop_marks()

    def nobody_waits_for_stop(self) -> None:
        """Pass over the answer to the last stop directive: whoever waited for it was cancelled."""
        if self.stops:
            self.stops.pop()
        else:
            waited_for = [index for index, kind in enumerate(self._asked_stops) if kind is _Stop.WAITED_FOR]
            for index in waited_for[-1:]:
                self._asked_stops[index] = _Stop.LEFT

    def nobody_waits_for_output(self) -> None:
        """Pass over the next output: whoever waited for it was cancelled."""
        if self.events:
            self.events.popleft()
        else:
            self._unwanted += 1

    def acknowledge(self, position: int | None) -> inference_pb2.ManyToManyRequest:
        """Return the acknowledgement of outputs."""
        self._check_open()
        return _Request(acknowledge=inference_pb2.Acknowledgement(position=self.position if position is None else position))

    def feed(self, response: inference_pb2.ManyToManyResponse) -> None:
        """Sort a message that arrived.

        Raises:
            SessionRolledBack: The session stands at an older position: the stream is opened again, where it can go on.
        """
        if self.ended:
            return
        if response.HasField("opened"):
            self._opened(response.opened)
        if self._log is not None and self.resumption is not None:
            self._answered(response, self._log, self.resumption)
        for event in self.reader.read(response):
            self.position = event.position
            self._event(event)
        if response.HasField("stopped"):
            self.position = response.stopped.position
            if not self._asked_stops or self._asked_stops.popleft() is _Stop.WAITED_FOR:
                self.stops.append(response.stopped.position)

    def due(self) -> inference_pb2.ManyToManyRequest | None:
        """Return the acknowledgement that should be sent now: the server keeps outputs until it has it, within bounds."""
        few = self._unacknowledged_bytes < ACKNOWLEDGED_BYTES and self._unacknowledged_steps < ACKNOWLEDGED_STEPS
        if few or self.half_closed or self.resumption is None or not self._acknowledges:
            return None
        self._unacknowledged_bytes = self._unacknowledged_steps = 0
        return _Request(acknowledge=inference_pb2.Acknowledgement(position=self.resumption.received))

    @property
    def closes(self) -> bool:
        """Whether the stream is half-closed now: all was asked, and so little is left that it need not be acknowledged before the end."""
        if not self.asked_all or self.half_closed:
            return False
        left = 0 if self._log is None or self.resumption is None else self._log.left(self.resumption.received)
        return left is not None and left <= ACKNOWLEDGED_STEPS

    def goes_on(self, error: CellstateError) -> bool:
        """Tell whether the stream can be opened again after an error, time aside."""
        self._lost()
        return not self.ended and self.resumption is not None and self.resumption.goes_on(error)

    def wait_s(self, error: CellstateError) -> float | None:
        """Return how long to wait before the stream is opened again; None where an error is its end."""
        self._lost()
        return None if self.ended or self.resumption is None else self.resumption.wait_s(error)

    def replays(self) -> list[Replay]:
        """Return what earlier calls asked and is given again first, each on a stream of its own."""
        return [] if self.resumption is None else self.resumption.replays()

    def reopening(self) -> list[inference_pb2.ManyToManyRequest]:
        """Return what opens the stream again, and what is sent again."""
        if self.resumption is None and not self.opened:  # its opening was never answered: nothing was asked on it yet
            return [_Request(open=self.opening.open)]
        if self.resumption is None:
            raise RuntimeError("only streams on sessions go on")
        self._lost()
        self._asked_stops = deque(kind for kind in self._asked_stops if kind is not _Stop.MARK)
        plan = self.resumption.plan()
        again = [] if self.held and not self.opened else messages(plan.entries)
        told = bool(again) and not again[0].HasField("stop")
        opening = _Request(open=self.opening.open)  # the message itself may have carried others' on a gateway's stream
        opening.open.target.session.CopyFrom(self.resumption.reference(None if told else plan.first))
        self._unacknowledged_bytes = self._unacknowledged_steps = 0
        return [opening, *again]

    def hold(self) -> bool:
        """Have what is asked wait for the answer to opening, where nobody knows where the session stands: else it could not be asked again."""
        self.held = self._log is not None and self.resumption is not None and self._log.first is None
        if self.resumption is not None:
            self.resumption.held = self.held
        return self.held

    def released(self) -> list[inference_pb2.ManyToManyRequest] | None:
        """Return what waited for the answer to opening, once that has come; None where nothing waits, or it has not."""
        if not self.held or not self.opened or self.resumption is None:
            return None
        self.held = self.resumption.held = False
        return messages(self.resumption.plan().entries)

    def finish(self, error: CellstateError | None = None) -> None:
        """Note that nothing more arrives."""
        if self.ended:
            return
        if error is not None:
            self.reader.failed()
            self.error = self.call.failed(error)
        else:
            self.reader.ended()
            if self._log is not None:
                self._log.answered(self.position)
        self.ended = self.half_closed = True

    def cut(self) -> bool:
        """Note that the caller ends the stream; False where it had ended."""
        if self.ended:
            return False
        self.ended = self.half_closed = True
        self.reader.cut()
        return True

    def _opened(self, opened: inference_pb2.Opened) -> None:
        if self.resumption is not None:
            self.reader.opened(opened.stream_token, None)
            self.resumption.opened(opened)
        if not self.opened:
            self.opened = True
            self.position = opened.position if self._log is None or self._log.first is None else self._log.first
            self.reader.opened(opened.stream_token, self.position)

    def _answered(self, response: inference_pb2.ManyToManyResponse, log: CallLog, resumption: Resumption) -> None:
        """Note what was answered, and take out of the message what was known."""
        if response.HasField("output"):
            output = response.output
            log.output(output)
            if resumption.takes(output):
                self._unacknowledged_bytes += output.ByteSize()
                self._unacknowledged_steps += output.position - output.first_position
            else:
                response.ClearField("output")
        if response.HasField("completion") and not log.completed(response.completion):
            response.ClearField("completion")
        if response.HasField("stopped"):
            log.stopped(response.stopped.position)
        if response.HasField("safe_position"):
            resumption.secured(response.safe_position)

    def _event(self, event: Output | Completion) -> None:
        if self._unwanted and isinstance(event, Output):
            self._unwanted -= 1
        else:
            self.events.append(event)

    def _sent(self, message: inference_pb2.ManyToManyRequest, content: Any) -> inference_pb2.ManyToManyRequest:
        if self._log is not None:
            self._log.sent(content)
        return message

    def _check_open(self) -> None:
        if self.error is not None:
            raise self.error
        if self.half_closed or self.asked_all:
            raise RuntimeError("the stream is closed: nothing more can be sent on it")
