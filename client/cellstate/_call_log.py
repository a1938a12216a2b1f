"""The requests of one call on a session, as far as the answers to it show. Pure; safe to share between threads.

Chunks of text have as many steps as the server's tokenizer says, and a generation ends where it ends: their positions are learned from what comes back.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from cellstate._log import ENTRY_BYTES, Entry, Options, SessionLog
from cellstate.errors import CellstateError, SessionBusy, Superseded
from cellstate.v1 import inference_pb2, types_pb2

MARKED_EVERY = 64
"""Chunks whose end only the server can tell, after which it is asked where the session stands."""


class Plan(NamedTuple):
    """What is to be sent again.

    Attributes:
        groups: What earlier calls asked, one stream each, to be given first.
        entries: What the call itself asked.
        first: Position at which it is to be where that follows.
    """

    groups: list[list[Entry]]
    entries: list[Entry]
    first: int | None


class CallLog:
    """The entries of one call, as far as the answers to it show.

    Attributes:
        options: Of its opening.
        whole: False where more was sent than is kept: the call cannot go on then.
        first: Position at which it began; None before that is known.
        answered_to: Position up to which all was answered in full.
    """

    def __init__(self, log: SessionLog, options: Options, first: int | None) -> None:
        self.options = options
        self.whole = True
        self.first: int | None = None
        self.answered_to = 0
        self._log = log
        self._pending: deque[Entry] = deque()
        self._tail: int | None = None
        self._unmarked = 0
        if first is not None:
            self.names(first)

    def __len__(self) -> int:
        """Return the number of requests that were not answered in full."""
        return len(self._pending)

    def names(self, position: int) -> None:
        """Note where the call is to begin; the server may refuse it there."""
        with self._log.lock:
            self.first = position
            self._stands(position)

    def begins(self, position: int) -> None:
        """Hear that the call is on its session, which stands at a position; where it began before, that is known. The calls before it are over."""
        with self._log.lock:
            if self.first is None:
                self.names(position)
            self._log.begins(self, position if self.first is None else self.first)

    def sent(self, content: Any, *, mark: bool = False) -> None:
        """Note a request; a `mark` is a stop that was asked for because of `wants_mark`."""
        values = content if isinstance(content, types_pb2.Sequence) else content.values if isinstance(content, inference_pb2.InputChunk) else None
        steps = _steps(values) if values is not None else 0 if isinstance(content, inference_pb2.StopDirective) else None
        size = ENTRY_BYTES + (values.ByteSize() if values is not None else 0)
        with self._log.lock:
            if values is None:
                self._unmarked = 0
            elif steps is None or self._tail is None:
                self._unmarked += 1
            entry = Entry(self, content, steps, size, self._tail, mark=mark)
            self._tail = None if self._tail is None or steps is None else self._tail + steps
            self._pending.append(entry)
            self._log.add(entry)

    @property
    def wants_mark(self) -> bool:
        """Whether a stop is to be asked now: nothing generates that it could end, and only its answer tells where the chunks before it end."""
        with self._log.lock:
            return self._unmarked >= MARKED_EVERY and not any(map(_generates, self._pending))

    def drop_marks(self) -> None:
        """Forget marks that were not answered, since the stream was lost: answered again they would tell where the session stands, not where they stood."""
        with self._log.lock:
            marks = [entry for entry in self._pending if entry.mark]
            if marks:
                for entry in marks:
                    entry.done, entry.end = True, entry.first
                self._pending = deque(entry for entry in self._pending if not entry.mark)
                self._unmarked = MARKED_EVERY
                self._log.trim()

    def output(self, output: types_pb2.Output) -> None:
        """Hear of outputs, or of a position."""
        position = output.position
        if position <= self.answered_to:
            return
        with self._log.lock:
            self.reached(position)
            if self._pending and position > self.answered_to and not output.HasField("values"):
                self._through(position, _silent)
                self._log.trim()

    def reached(self, position: int) -> None:
        """Hear that chunks up to a position were consumed."""
        with self._log.lock:
            pending = self._pending
            while pending and pending[0].steps and pending[0].first is not None and pending[0].first + pending[0].steps <= position:
                self._done(pending[0].first + pending[0].steps)
            self._log.trim()

    def completed(self, completion: types_pb2.Completion) -> bool:
        """Hear that a generation ended; False where that was known."""
        steps = completion.generated_steps + completion.consumed_steps
        if completion.position < self.answered_to or (completion.position == self.answered_to and steps):
            return False
        with self._log.lock:
            stopped = completion.reason == types_pb2.FINISH_REASON_STOP_DIRECTIVE
            self._through(completion.position, _generates, limit=completion.position if stopped else None)
            self._log.trim()
        return True

    def stopped(self, position: int) -> None:
        """Hear that a stop took effect."""
        with self._log.lock:
            self._through(position, _stops)
            self._log.trim()

    def failed(self, error: CellstateError) -> None:
        """Hear that the call failed. Where the error does not say where the session stands, the next call will show."""
        with self._log.lock:
            position = self.first if isinstance(error, SessionBusy) else error.position
            if position is not None and not isinstance(error, Superseded):
                for entry in self._pending:
                    entry.ended(position)
                self._pending.clear()
            self._log.trim()

    def left(self, position: int) -> int | None:
        """Return how many steps at most follow a position in what was asked; None where nobody can tell before they are taken."""
        generating = [entry for entry in self._pending if _generates(entry)]
        if not generating:
            return 0 if self._tail is None else self._tail - position  # text is not waited for
        last = generating[-1]
        if last is not self._pending[-1] or last.first is None or not last.content.generation.HasField("max_steps"):
            return None
        return int(last.first + last.content.generation.max_steps - position)

    def answered(self, position: int, steps: int | None = None) -> None:
        """Hear that all was answered in full, and of how many steps it was."""
        with self._log.lock:
            if self.first is None and steps is not None:
                self.names(position - steps)
            if self.first is not None:
                self._log.begins(self, self.first)
            while len(self._pending) > 1:
                head = self._pending[0]
                self._done(head.first + head.steps if head.first is not None and head.steps is not None else None)
            if self._pending:
                self._done(position)
            self._log.trim()

    def plan(self, stands: int | None, received: int) -> Plan | None:
        """Return what is to be sent again; None where the log does not reach back so far.

        Args:
            stands: Where the session was found to stand after it went back; None where nobody said that it did.
            received: Up to where its outputs came.
        """
        with self._log.lock:
            if stands is not None and self.first is None:
                self.names(max(stands, received))
            begun = self._pending[0].first if self._pending else self._tail
            if stands is None or (begun is not None and stands >= begun):
                return Plan([], list(self._pending), begun)
            if self.first is not None:
                self._log.begins(self, self.first)
            entries = self._log.since(stands)
            if entries is None:
                return None
            own = [entry for entry in entries if entry.call is self]
            return Plan(list(_grouped(entry for entry in entries if entry.call is not self)), own, own[0].first if own else begun)

    def _done(self, end: int | None, limit: int | None = None) -> None:
        entry = self._pending.popleft()
        entry.done, entry.end = True, end
        if limit is not None and (entry.steps is None or entry.first is None or entry.first + entry.steps > limit):
            entry.limit = limit
        if end is not None:
            self.answered_to = end
            self._stands(end)

    def _through(self, position: int, kind: Callable[[Entry], bool], limit: int | None = None) -> None:
        """Take all up to the first entry of a kind for answered in full: there the session stood at a position."""
        found = next((index for index, entry in enumerate(self._pending) if kind(entry)), None)
        if found is None:
            return
        for _ in range(found):
            self._done(None)
        self._done(position, limit)

    def _stands(self, position: int) -> None:
        """Hear where the first entry that is not done begins, and with it those that follow, as far as their steps are known."""
        for entry in self._pending:
            if entry.first is not None:
                return
            entry.first = position
            if entry.steps is None:
                return
            position += entry.steps
        self._tail = position


def _grouped(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Yield consecutive entries of equal options together: each group is one stream."""
    group: list[Entry] = []
    key = b""
    for entry in entries:
        made = entry.call.options.opening().SerializeToString(deterministic=True)
        if group and made != key:
            yield group
            group = []
        key = made
        group.append(entry)
    if group:
        yield group


def _generates(entry: Entry) -> bool:
    return isinstance(entry.content, inference_pb2.GenerateDirective)


def _stops(entry: Entry) -> bool:
    return isinstance(entry.content, inference_pb2.StopDirective)


def _silent(entry: Entry) -> bool:
    """Whether it is a chunk that emits nothing, so that an answer without values tells its end."""
    if _generates(entry) or _stops(entry):
        return False
    return (getattr(entry.content, "emit", 0) or entry.call.options.emit) == types_pb2.EMIT_NONE


def _steps(values: types_pb2.Sequence) -> int | None:
    """Return the steps of an input; None where only the server can tell."""
    kind = values.WhichOneof("value")
    if kind == "tokens":
        return len(values.tokens.ids)
    return values.tensor.shape[0] if kind == "tensor" and values.tensor.shape else None
