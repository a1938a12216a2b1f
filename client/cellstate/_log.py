"""What was asked of a session through one handle, in order, so that it can be asked again. Pure; safe to share between threads.

An entry is a request: a chunk of input, a generation, or a stop that was not answered yet. It is kept until it was answered in full and lies before what the
session's durability has secured (`docs/sessions.md`). `_call_log.py` learns positions from answers. What was stopped, cut short or failed keeps the position
where it ended at the latest, and is sent again to end there.
"""

import itertools
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from cellstate.v1 import inference_pb2, types_pb2

if TYPE_CHECKING:
    from cellstate._call_log import CallLog

LOG_BYTES = 64 << 20
"""Inputs of one session that are kept at most."""
LOG_ENTRIES = 65_536
"""Requests of one session that are kept at most."""
ENTRY_BYTES = 256
"""What an entry counts beside its inputs."""


class Options(NamedTuple):
    """What a call's opening says of the content of its requests."""

    output: types_pb2.OutputOptions
    sampling: types_pb2.Sampling | None = None
    emit: Any = types_pb2.EMIT_UNSPECIFIED

    def opening(self, target: inference_pb2.Target | None = None) -> inference_pb2.ManyToManyOpen:
        """Return the opening of a stream with these options."""
        return inference_pb2.ManyToManyOpen(target=target, output=self.output, emit=self.emit, sampling=self.sampling)


@dataclass(slots=True, eq=False)
class Entry:
    """A request.

    Attributes:
        call: The call that made it.
        content: InputChunk, GenerateDirective or StopDirective; or a Sequence, which is a chunk that says nothing of its emission.
        steps: Steps of its input; None where only the server can tell.
        size: What it counts.
        first: Position of its first step, where known.
        end: Position after its last step, where known.
        limit: Position after its last step at the latest, where it ended before its content did.
        done: It was answered in full, or its call is over.
        mark: It is a stop that nobody waits for: only its answer's position is of use.
    """

    call: "CallLog"
    content: Any
    steps: int | None
    size: int
    first: int | None = None
    end: int | None = None
    limit: int | None = None
    done: bool = False
    mark: bool = False

    @property
    def void(self) -> bool:
        """Whether it took no step and takes none."""
        return self.done and (self.steps == 0 or (self.end is not None and self.end == self.first))

    @property
    def bound(self) -> int | None:
        """Position that it ended at or before, where known."""
        return self.limit if self.end is None else self.end

    def ended(self, position: int) -> None:
        """Hear where the session stood when its call was over, without an answer to this request."""
        self.done = True
        if self.first is not None and self.first >= position:
            self.end = self.first
        elif self.first is not None and self.steps is not None and self.first + self.steps <= position:
            self.end = self.first + self.steps
        else:
            self.end, self.limit = None, position

    def forget(self) -> None:
        """Let go of its input: it cannot be sent again."""
        if isinstance(self.content, types_pb2.Sequence):
            self.content = types_pb2.Sequence()
        elif isinstance(self.content, inference_pb2.InputChunk):
            self.content = inference_pb2.InputChunk(emit=self.content.emit)

    def message(self, *, first: bool = False) -> inference_pb2.ManyToManyRequest:
        """Return it as a message of a stream; the `first` one of a stream says where it begins."""
        content: Any = inference_pb2.InputChunk(values=self.content) if isinstance(self.content, types_pb2.Sequence) else self.content
        if isinstance(content, inference_pb2.StopDirective):
            return inference_pb2.ManyToManyRequest(stop=content)
        is_input = isinstance(content, inference_pb2.InputChunk)
        message = inference_pb2.ManyToManyRequest(input=content) if is_input else inference_pb2.ManyToManyRequest(generate=content)
        part = message.input if is_input else message.generate
        if first and self.first is not None:
            part.position = self.first
        if self.limit is not None:
            part.end_position = self.limit
        return message


class SessionLog:
    """The entries of all calls that one handle made on its session.

    Attributes:
        safe: Newest position that is secured; None where whatever is answered is.
    """

    def __init__(self, safe: int | None = None) -> None:
        self.safe = safe
        self.lock = threading.RLock()
        self._entries: deque[Entry] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """Append an entry; beyond the bounds the oldest are dropped."""
        self._entries.append(entry)
        self._bytes += entry.size
        while len(self._entries) > 1 and (self._bytes > LOG_BYTES or len(self._entries) > LOG_ENTRIES):
            dropped = self._drop_first()
            if not dropped.done:
                dropped.call.whole = False
                dropped.forget()

    def secured(self, safe: int | None) -> None:
        """Hear what is secured by now; None where an answer does not say."""
        if safe is not None and safe != self.safe:
            with self.lock:
                self.safe = safe
                self.trim()

    def opened(self, opened: inference_pb2.Opened) -> None:
        """Hear what is secured, and whether anything need be."""
        with self.lock:
            self.safe = opened.safe_position if opened.HasField("safe_position") else None
            self.trim()

    def trim(self) -> None:
        """Drop entries that were answered in full and are secured."""
        entries = self._entries
        while entries and entries[0].done and (self.safe is None or entries[0].void or self._bound(0) <= self.safe):
            self._drop_first()

    def begins(self, call: "CallLog", position: int) -> None:
        """Hear where a call begins: there all earlier ones are over. Where the session moved without this handle, what lies before is of no use."""
        with self.lock:
            self.truncate(position, but=call)
            last = next((entry for entry in reversed(self._entries) if entry.call is not call and not entry.void), None)
            if last is not None and last.end is not None and last.end != position:
                self._keep(entry for entry in self._entries if entry.call is call)
            self.trim()

    def truncate(self, position: int, *, but: "CallLog | None" = None) -> None:
        """Hear that the session stands at a position and all calls but one are over: what they asked beyond it was not done."""
        with self.lock:
            for entry in reversed(self._entries):
                if entry.call is but or entry.void:
                    continue
                if entry.done and entry.bound is not None and entry.bound <= position:
                    break
                entry.ended(position)
            self.trim()

    def clear(self, safe: int | None) -> None:
        """Forget all: the session is another one, of which that much is secured."""
        with self.lock:
            self.safe = safe
            self._keep(())

    def since(self, position: int) -> list[Entry] | None:
        """Return the entries from the one that contains a position; None where they do not reach back to it."""
        with self.lock:
            entries = [entry for entry in self._entries if not entry.void]
        begin = None
        for index, entry in enumerate(entries):
            if entry.first is not None and entry.first > position:
                break
            if entry.first is not None:
                begin = index
        if begin is None or (entries[-1].bound is not None and entries[-1].bound <= position):
            return None
        return entries[begin:]

    def _bound(self, index: int) -> int:
        entry = self._entries[index]
        if entry.bound is not None:
            return entry.bound
        later = (following.first for following in itertools.islice(self._entries, index + 1, None) if following.first is not None)
        return next(later, 1 << 64)

    def _drop_first(self) -> Entry:
        entry = self._entries.popleft()
        self._bytes -= entry.size
        return entry

    def _keep(self, entries: Iterable[Entry]) -> None:
        self._entries = deque(entries)
        self._bytes = sum(entry.size for entry in self._entries)
