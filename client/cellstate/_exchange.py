"""What a call consists of, whichever it is: the call itself, the messages that it streams, the answers that it reads. Pure, as `_calls.py`."""

import dataclasses
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cellstate._call_log import CallLog
from cellstate._convert import draws, from_completion, from_output, read_as_tokens, split, to_sequence
from cellstate._tracking import Tracked
from cellstate.errors import CellstateError, ErrorDetails, InvalidInput
from cellstate.outputs import Completion, Form, Output
from cellstate.v1 import inference_pb2, types_pb2

T = TypeVar("T")
SESSION_KEY = "cellstate-session"
"""Metadata key by which a proxy can send the calls of one session to one server. A hint for speed: any server answers."""
LONGEST_NAME = 128


class Guess:
    """Remembers whether a call took integers for token ids, to say so where the server then refuses the input."""

    def __init__(self) -> None:
        self.made = False

    def to_sequence(self, value: Any, *, one_step: bool = False, field: str = "input") -> types_pb2.Sequence:
        """Convert an input, and remember."""
        sequence = to_sequence(value, one_step=one_step, field=field)
        self.made = self.made or read_as_tokens(value, sequence)
        return sequence

    def explain(self, error: CellstateError) -> CellstateError:
        """Return the error, with a word on the guess where that may be what was wrong."""
        if self.made and isinstance(error, InvalidInput):
            advice = "integers were sent as token ids; numeric features are given as floats, or as cellstate.values(...)"
            return InvalidInput(f"{error.message} ({advice})", error.details)
        return error


@dataclass(frozen=True)
class Call(Generic[T]):
    """A call to make.

    Attributes:
        service: Attribute of `Raw` that holds the stub: inference, sessions or models.
        method: Name of the RPC.
        decode: Makes the caller's value of the answer.
        request: The request; None where requests are streamed.
        tracked: The session that the call is on.
        timeout_s: The call's own deadline.
        streams: The caller sends or reads at its own pace, so the client's deadline does not apply.
        log: What it asks of its session, to be asked again; None where it runs on none.
        repeats: It can be made again as it is: it changes nothing, or is known by its request id.
        guess: What was guessed of the inputs.
    """

    service: str
    method: str
    decode: Callable[[Any], T]
    request: Any = None
    tracked: Tracked | None = None
    timeout_s: float | None = None
    streams: bool = False
    log: CallLog | None = None
    repeats: bool = False
    guess: Guess = dataclasses.field(default_factory=Guess)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Name of the session that the call is on or makes, for a proxy on the way; nothing where it is on none, or the server will refuse the name."""
        name = ""
        if self.tracked is not None:
            name = self.tracked.info.name
        elif self.service == "sessions":
            name = getattr(self.request, "name", "") or getattr(getattr(self.request, "session", None), "name", "")
        return ((SESSION_KEY, name),) if name and len(name) <= LONGEST_NAME and name.isascii() and name.isprintable() else ()

    def failed(self, error: CellstateError) -> CellstateError:
        """Tell the session's handle of the error, and return it."""
        if self.tracked is not None:
            self.tracked.failed(error)
        if self.log is not None:
            self.log.failed(error)
        return self.guess.explain(error)

    def cut(self, error: BaseException) -> BaseException:
        """Tell the session's handle that the caller's own error ended the call, and return it."""
        if self.tracked is not None:
            self.tracked.cut()
        return error


class Uploader:
    """Makes the messages of a stream of inputs: the opening, which waits for the first chunk to know whether draws need a seed, then the chunks.

    Attributes:
        opening: The content of its first message.
    """

    def __init__(self, request: Any, opening: Any, guess: Guess, *, may_draw_seed: bool) -> None:
        self._guess = guess
        self._request = request
        self.opening = opening
        self._may_draw_seed = may_draw_seed and not opening.sampling.HasField("seed")
        self._opened = False

    def messages(self, chunk: Any) -> Iterator[Any]:
        """Yield the messages that carry a chunk."""
        pieces = split(chunk)
        if pieces is None:
            raise InvalidInput("each chunk is text, numbers or an array", ErrorDetails(field="input"))
        for piece in pieces:
            values = self._guess.to_sequence(piece)
            if not self._opened and self._may_draw_seed and draws(values):
                self.opening.sampling.seed = draw_seed()
            yield from self.end()
            yield self._request(input=inference_pb2.InputChunk(values=values))

    def end(self) -> Iterator[Any]:
        """Yield the opening, where it was not sent yet: a stream without chunks is opened too, so that the server tells what is wrong with it."""
        if not self._opened:
            self._opened = True
            yield self._request(open=self.opening)


class Reader:
    """Reads the answers of one stream in order, and keeps the session's handle current.

    Attributes:
        completion: How the last program on the stream ended; None until then.
    """

    def __init__(self, form: Form | str | None, tracked: Tracked | None) -> None:
        self.completion: Completion | None = None
        self._form = Form(form) if form is not None else None
        self._tracked = tracked
        self._token = ""
        self._cut = False
        self._lock = threading.RLock()  # `cut` may come from another thread than the one that reads

    def opened(self, stream_token: str, position: int | None) -> None:
        """Hear the answer to opening; the position is where the call began, None where that is known or lost."""
        with self._lock:
            if self._tracked is not None and not self._cut:
                self._token = stream_token
                self._tracked.opened(stream_token)
                if position is not None:
                    self._tracked.reached(position)

    def read(self, response: inference_pb2.OneToManyResponse | inference_pb2.ManyToManyResponse) -> list[Output | Completion]:
        """Return what a message carries: an output, a completion, both or neither."""
        events: list[Output | Completion] = []
        if response.HasField("output"):
            events.append(from_output(response.output, self._form))
            self._reached(response.output.position)
        if response.HasField("completion"):
            self.completion = from_completion(response.completion)
            events.append(self.completion)
            self._reached(response.completion.position)
        return events

    def ended(self) -> None:
        """Hear that the stream came to its own end."""
        with self._lock:
            if self._tracked is not None and not self._cut:
                self._tracked.ended()

    def failed(self) -> None:
        """Hear that the stream failed; `Call.failed` tells the handle why."""
        with self._lock:
            if self._tracked is not None:
                self._tracked.left(self._token)

    def cut(self) -> None:
        """Hear that the caller ended the stream before its end. What still arrives of it then leaves the handle as it is."""
        with self._lock:
            self._cut = True
            if self._tracked is not None:
                self._tracked.cut()
                self._tracked.left(self._token)

    def _reached(self, position: int) -> None:
        with self._lock:
            if self._tracked is not None and not self._cut:
                self._tracked.reached(position)


def draw_seed() -> int:
    """Draw a seed of 64 bits, so that a call without a session can be repeated."""
    return secrets.randbits(64)
