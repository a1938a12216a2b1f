"""What a session was lately asked and answered, so that what is asked again is answered again and applied once. Engine thread only; plain data.

A request that carries a position can be repeated: its caller may not know whether it arrived, or where its answers were lost. It is recognised by the position
of its first step and a digest of its content. What it emitted is kept until its caller says that it has it, or, for callers that say nothing, until their next
call begins or the bounds are reached.
"""

import hashlib
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from cellstate_service.engine.request import Finished, Outputs, Request
from cellstate_service.errors import Aborted, CellstateError, Precondition, Reason

KEPT_BYTES = 1 << 20
"""Outputs of one session that are kept at most."""
OUTPUTS_BYTES = 256
"""Of that, what outputs of one step or a few take beside their values: Python's objects."""
FORGOTTEN_AT_ONCE = 64
"""Where oldest outputs are forgotten, this part of a request's is at once."""
KEPT_REQUESTS = 1024
"""Requests of one session that are remembered at most."""
STORED_TEXTS = 256
"""Chunks of text that are stored though their outputs were acknowledged, at most: their caller may not know where they end, and send them again."""


def content_digest(request: Request) -> bytes:
    """Return a digest of what a request asks for: its inputs, what it emits and how, and what it generates; not of when, by whom, or with which deadline."""
    asked = (request.emit, request.form, request.sampling, request.generation, request.generation_sampling, request.log_probabilities)
    digest = hashlib.blake2b(repr(asked).encode(), digest_size=16)
    if request.inputs is not None:
        digest.update(f"{request.inputs.dtype}{request.inputs.shape}".encode())
        digest.update(np.ascontiguousarray(request.inputs).data)
    return digest.digest()


def _bytes(outputs: Outputs) -> int:
    values = 8 * len(outputs.values) if isinstance(outputs.values, list) else outputs.values.nbytes
    return OUTPUTS_BYTES + values + len(outputs.text) + 8 * len(outputs.log_probabilities)


@dataclass(slots=True)
class Entry:
    """A request that began. It has lists, as residents do: an empty deque takes 0.7 KiB, and most sessions are idle.

    Attributes:
        first: Position of its first step.
        digest: Of its content.
        position: Where it stands: after its last step so far.
        consumed, generated: Steps so far.
        outputs: What it emitted and is still kept.
        forgotten: Position up to which its outputs are not kept any more.
        finished: How it ended; None while it has not.
        stored: What `rpc/` made of it to be stored, beside the list of outputs that it was made of: it is of no use any more where `outputs` is another one.
            Once it has ended nothing else of it changes without that.
        of_text: It was a chunk of text. Not stored: whoever sends it again says so again.
    """

    first: int
    digest: bytes
    position: int
    consumed: int = 0
    generated: int = 0
    outputs: list[Outputs] = field(default_factory=list)
    forgotten: int = 0
    finished: Finished | None = None
    stored: tuple[list[Outputs], bytes] | None = field(default=None, repr=False, compare=False)
    of_text: bool = field(default=False, compare=False)


class KeptJournal(NamedTuple):
    """A journal at one moment, to be stored beside the state of that moment. Not to be changed.

    Attributes:
        acknowledged: Position up to which the caller has all outputs.
        entries: The requests that it may send again.
    """

    acknowledged: int
    entries: tuple[Entry, ...]


class Journal:
    """The requests of a session's last call, and what they emitted.

    Attributes:
        acknowledged: Position up to which the caller said that it has all outputs. Above the session's own after a rollback: nothing below is emitted again.
    """

    __slots__ = ("_acknowledges", "_bytes", "_call", "_entries", "acknowledged")

    def __init__(self) -> None:
        self.acknowledged = 0
        self._acknowledges = False
        self._entries: list[Entry] = []
        self._bytes = 0
        self._call = 0

    def kept(self, position: int) -> KeptJournal:
        """Return what of it is to be stored beside a state of the session's present position: what its caller may still ask for."""
        newest = len(self._entries) - STORED_TEXTS
        entries = [
            entry
            for index, entry in enumerate(self._entries)
            if entry.finished is None or entry.position >= self.acknowledged or (entry.of_text and index >= newest)
        ]
        if entries and entries[-1].finished is None:
            entries[-1] = replace(entries[-1], outputs=list(entries[-1].outputs))
        return KeptJournal(min(self.acknowledged, position), tuple(entries))

    @classmethod
    def restored(cls, kept: KeptJournal) -> "Journal":
        """Return a journal that was stored."""
        journal = cls()
        journal.acknowledged = kept.acknowledged
        journal._entries = list(kept.entries)
        journal._bytes = sum(_bytes(outputs) for entry in kept.entries for outputs in entry.outputs)
        return journal

    def __len__(self) -> int:
        """Return the number of requests that are remembered."""
        return len(self._entries)

    @property
    def full(self) -> bool:
        """Whether a caller that acknowledges while its call runs is to do so before there is more: what such a caller may need is not forgotten."""
        return self._acknowledges and self._bytes >= KEPT_BYTES

    def begin(self, request: Request, digest: bytes, position: int) -> None:
        """Record that a request begins where the session stands. Whoever begins a call there has what the calls before emitted."""
        if self._of_another_call(request):
            self._entries.clear()
            self._bytes = 0
        if self._entries and self._entries[-1].finished is None and self._entries[-1].position == self._entries[-1].first == position:
            self._entries.pop()  # it began, and was cut before its first step
        self._entries.append(Entry(position, digest, position, of_text=request.of_text))
        while len(self._entries) > KEPT_REQUESTS:
            self._drop_first()

    def again(self, request: Request, digest: bytes, position: int, present: int) -> Entry:
        """Return what is known of a request that was made before, at `position`; the session stands at `present`.

        Raises:
            Aborted: The position was taken with other content.
            Precondition: It is too long ago.
        """
        same = [entry for entry in reversed(self._entries) if entry.first == position and entry.digest == digest]  # one may have been stopped at once
        found = next((entry for entry in same if entry.position == request.end_position), same[0] if same else None)
        if found is None and any(entry.first <= position < entry.position for entry in self._entries):
            raise _conflict(position, present, "another request took it")
        if found is not None and found.finished is None and (found is not self._entries[-1] or found.position != present):
            raise _conflict(position, present, "the session went on from the middle of it")
        if found is not None and found.forgotten <= max(found.first, self.acknowledged):
            self._of_another_call(request)
            found.of_text = request.of_text
            return found
        raise Precondition(
            f"position: {position} was taken, the session's next position is {present}, and what was answered then is not held any more",
            Reason.POSITION_MISMATCH,
            field="position",
        ).at(present)

    def emitted(self, outputs: Outputs) -> None:
        """Record what the running request emitted."""
        entry = self._entries[-1]
        entry.outputs.append(outputs)
        self._bytes += _bytes(outputs)
        while not self._acknowledges and self._bytes > KEPT_BYTES:
            self._forget_oldest()

    def moved(self, request: Request, position: int) -> None:
        """Record where the running request stands."""
        entry = self._entries[-1]
        entry.position, entry.consumed, entry.generated = position, request.consumed, request.generated

    def finish(self, finished: Finished) -> None:
        """Record how the running request ended."""
        self._entries[-1].finished = finished

    def acknowledge(self, position: int, *, running: bool) -> None:
        """Forget outputs before a position: the caller has them. One that says so while its call is `running` will go on to say so."""
        self.acknowledged = max(position, self.acknowledged)
        self._acknowledges = self._acknowledges or running
        for entry in self._entries:
            had = next((index for index, outputs in enumerate(entry.outputs) if outputs.position > self.acknowledged), len(entry.outputs))
            if had:
                self._drop_outputs(entry, had)

    def acknowledged_last(self) -> None:
        """Take in that the caller cannot acknowledge any more: from now on the oldest outputs are forgotten at the bound."""
        self._acknowledges = False

    def _of_another_call(self, request: Request) -> bool:
        """Tell whether a request is the first of a call, which is the newest from then on: whether it acknowledges is to be seen."""
        if self._call == request.outbox.number:
            return False
        self._call, self._acknowledges = request.outbox.number, False
        return True

    def _forget_oldest(self) -> None:
        for entry in self._entries:
            if entry.outputs:
                count = 1 + len(entry.outputs) // FORGOTTEN_AT_ONCE
                entry.forgotten = entry.outputs[count - 1].position  # before they are dropped: a kept journal may be read meanwhile
                self._drop_outputs(entry, count)
                return

    def _drop_outputs(self, entry: Entry, count: int) -> None:
        """Drop the first outputs of a request. The list that a kept journal may have is left as it is."""
        dropped, entry.outputs = entry.outputs[:count], entry.outputs[count:]
        self._bytes -= sum(map(_bytes, dropped))

    def _drop_first(self) -> None:
        self._bytes -= sum(map(_bytes, self._entries.pop(0).outputs))


def _conflict(position: int, present: int, why: str) -> CellstateError:
    text = f"position: {position} was taken with other content ({why}); the session's next position is {present}"
    return Aborted(text, Reason.POSITION_CONFLICT, field="position").at(present)
