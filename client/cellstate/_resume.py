"""How a call on a session goes on after its connection was lost: what it sends again, what it passes over, how long it waits. Pure: both faces do as it says.

The server keeps what a session was asked and answered until the caller has it (`docs/sessions.md`). So the caller opens again, says up to where it has outputs,
and sends what was not answered in full once more, with the position at which that began. What was applied is answered again, what was not is applied. The
caller's loop sees each output once, in order.
"""

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from cellstate.errors import CellstateError
from cellstate.v1 import inference_pb2, types_pb2

LOG_MESSAGES = 1024
"""Messages that a stream keeps to be sent again; the server remembers as many."""
FIRST_WAIT_S, LONGEST_WAIT_S, GROWTH = 0.05, 2.0, 1.6

_REASONS = frozenset({"SHUTTING_DOWN", "SESSION_MOVED", "STORE_UNAVAILABLE"})
# Codes by which gRPC itself tells that a stream ended on the way; a server's own error carries a reason.
_CODES = frozenset({"UNAVAILABLE", "UNKNOWN", "INTERNAL", "CANCELLED"})


def can_go_on(error: CellstateError) -> bool:
    """Tell whether an error says that the call was lost on the way, not that it cannot be answered."""
    return error.reason in _REASONS or (error.code in _CODES and error.reason == error.code)


class Backoff:
    """How long to wait before each attempt: longer each time, with jitter, until the limit; from the beginning once something came through.

    Args:
        limit_s: Seconds without any progress after which it gives up.
        now: Seconds on a clock that never goes back.
    """

    def __init__(self, limit_s: float, now: Callable[[], float]) -> None:
        self._limit_s = limit_s
        self._now = now
        self._attempts = 0
        self._since_s: float | None = None

    def progressed(self) -> None:
        """Note that something came through."""
        self._attempts, self._since_s = 0, None

    def next_wait_s(self) -> float | None:
        """Return how long to wait before the next attempt; None where the limit is reached."""
        now_s = self._now()
        self._since_s = now_s if self._since_s is None else self._since_s
        if now_s - self._since_s >= self._limit_s:
            return None
        longest_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * GROWTH**self._attempts)
        self._attempts += 1
        return longest_s * random.uniform(0.5, 1.0)  # noqa: S311 - nobody's secret


class Received:
    """Up to where a caller has outputs, and the opening of its call as it was first answered.

    Attributes:
        position: Position after the last output that was passed on.
        first: Position at which the call began; None before it was opened.
        stream_token: Of the newest opening.
    """

    def __init__(self) -> None:
        self.position = 0
        self.first: int | None = None
        self.stream_token = ""

    def opened(self, opened: inference_pb2.Opened) -> bool:
        """Hear the answer to opening; True the first time."""
        self.stream_token = opened.stream_token
        if self.first is not None:
            return False
        self.first = self.position = opened.position
        return True

    def takes(self, output: types_pb2.Output) -> bool:
        """Tell whether an output is new; one that is moves the position."""
        if output.position <= self.position:
            return False
        self.position = output.position
        return True


def again(reference: inference_pb2.SessionReference, received: Received, position: int | None) -> inference_pb2.SessionReference:
    """Return what a call that goes on says of its session.

    Args:
        reference: What it said at first.
        received: What came since.
        position: Position at which what it sends again began.
    """
    return inference_pb2.SessionReference(
        name=reference.name, uid=reference.uid, position=position, acknowledged_position=received.position, stream_token=received.stream_token
    )


@dataclass(slots=True)
class _Sent:
    message: inference_pb2.ManyToManyRequest
    steps: int | None


class GoingOn:
    """Decides whether and when a call on a session goes on after an error.

    Args:
        received: What came so far.
        limit_s: Seconds without progress after which it gives up; 0: it does not go on.
        timeout_s: The call's deadline, in seconds from now; None for none.
        now: Seconds on a clock that never goes back.
    """

    def __init__(self, received: Received, limit_s: float, timeout_s: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self._received = received
        self._limit_s = limit_s
        self._now = now
        self._until_s = None if timeout_s is None else now() + timeout_s
        self._backoff = Backoff(limit_s, now)
        self._position = 0

    def wait_s(self, error: CellstateError) -> float | None:
        """Return how long to wait before the call is made again; None where the error is the call's end."""
        if self._received.first is None or not self._limit_s or not can_go_on(error):
            return None
        if self._received.position > self._position:
            self._position = self._received.position
            self._backoff.progressed()
        wait_s, left_s = self._backoff.next_wait_s(), self.timeout_s
        if wait_s is None:
            return None
        wait_s = max(wait_s, error.retry_after_s or 0.0)
        return None if left_s is not None and left_s <= wait_s else wait_s

    @property
    def possible(self) -> bool:
        """Whether it may go on at all."""
        return self._limit_s > 0

    @property
    def timeout_s(self) -> float | None:
        """What is left of the call's deadline."""
        return None if self._until_s is None else self._until_s - self._now()


class Repeating(GoingOn):
    """A call that is sent again as it was: on a session, with the position of its first step.

    Args:
        position: That position; None where the call names none, and is not sent again.
        limit_s, timeout_s: See GoingOn.
    """

    def __init__(self, position: int | None, limit_s: float, timeout_s: float | None) -> None:
        received = Received()
        received.first = position
        super().__init__(received, limit_s, timeout_s)


class Regenerating(GoingOn):
    """A generation on a session, of one request."""

    def __init__(self, request: inference_pb2.OneToManyRequest, received: Received, limit_s: float, timeout_s: float | None) -> None:
        super().__init__(received, limit_s, timeout_s)
        self._request = request

    def request(self) -> inference_pb2.OneToManyRequest:
        """Return the request to be sent again."""
        request = inference_pb2.OneToManyRequest()
        request.CopyFrom(self._request)
        request.target.session.CopyFrom(again(self._request.target.session, self._received, self._received.first))
        return request


class StreamLog:
    """What a stream sent and was not answered in full, as far as the answers show.

    Chunks of text have as many steps as the server's tokenizer says, which the answers do not tell: such a chunk, and what follows it, is kept until a
    generation's end or a stop tells where the session stood.

    Attributes:
        position: Position at which the first of it began.
        whole: False where more was sent than is kept: the stream cannot go on then.
    """

    def __init__(self) -> None:
        self.position = 0
        self.whole = True
        self._sent: deque[_Sent] = deque()

    def __len__(self) -> int:
        """Return the number of messages."""
        return len(self._sent)

    def sent(self, message: inference_pb2.ManyToManyRequest) -> None:
        """Note a message."""
        kind = message.WhichOneof("message")
        if kind in {"input", "generate", "stop"} and self.whole:
            self.whole = len(self._sent) < LOG_MESSAGES
            self._sent.append(_Sent(message, _steps(message.input) if kind == "input" else None))

    def opened(self, position: int) -> None:
        """Hear where the stream began."""
        self.position = position

    def answered(self, response: inference_pb2.ManyToManyResponse) -> None:
        """Hear an answer, in the order of its fields."""
        if response.HasField("output"):
            while self._sent and self._sent[0].steps is not None and self.position + self._sent[0].steps <= response.output.position:
                self.position += self._sent.popleft().steps or 0
        if response.HasField("completion"):
            self._through("generate", response.completion.position)
        if response.HasField("stopped"):
            self._through("stop", response.stopped.position)

    def again(self) -> list[inference_pb2.ManyToManyRequest]:
        """Return what is to be sent again; the first of it began at `position`."""
        return [sent.message for sent in self._sent]

    def _through(self, kind: str, position: int) -> None:
        """Drop all up to the first message of a kind: it was answered in full."""
        while self._sent and self._sent.popleft().message.WhichOneof("message") != kind:
            pass
        self.position = position


def _steps(chunk: inference_pb2.InputChunk) -> int | None:
    """Return the steps of a chunk; None where only the server can tell."""
    kind = chunk.values.WhichOneof("value")
    if kind == "tokens":
        return len(chunk.values.tokens.ids)
    return chunk.values.tensor.shape[0] if kind == "tensor" and chunk.values.tensor.shape else None
