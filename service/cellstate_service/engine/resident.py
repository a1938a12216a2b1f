"""A session as the engine thread knows it: a slot, a position, and what generation carries from step to step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cellstate_service.engine.journal import Journal, KeptJournal
from cellstate_service.engine.request import Emit, Generation, Request
from cellstate_service.models.tokenizers import TextDecoder

TAIL_TOKENS = 256
TAIL_CHARACTERS = 512


@dataclass(slots=True, eq=False)
class Resident:
    """A resident session. Only the engine thread writes it; the loop may read `position`.

    It has lists, not deques: an empty deque takes 0.7 KiB, and most sessions are idle.

    Attributes:
        seed: Seed of draws that name none.
        slot: Row of the state pool; None until it first needs one.
        position: Steps taken.
        has_output: Whether the slot holds the output of a step (or of a snapshot).
        decoder: Incremental detokenizer of generated tokens, where the model has a tokenizer.
        tail_tokens: The last generated tokens (at least TAIL_TOKENS of them), for stop sequences that span two requests; None where there are none.
        tail_text: The same as text.
        requests: Requests in the order they came; the first is running.
        journal: What it was lately asked and answered; None where no call named a position.
        closed: Its slot was given back.
        rolled_back: It may stand before what its caller was told: a call is to say that it knows, by a position.
    """

    seed: int
    decoder: TextDecoder | None = None
    slot: int | None = None
    position: int = 0
    has_output: bool = False
    tail_tokens: list[int] | None = None
    tail_text: str = ""
    requests: list[Request] = field(default_factory=list)
    journal: Journal | None = None
    closed: bool = False
    rolled_back: bool = False

    @property
    def taken_slot(self) -> int:
        """The slot of a session that has one."""
        if self.slot is None:
            raise ValueError("the session has no slot")
        return self.slot

    @property
    def muted(self) -> int:
        """Position up to which its caller has outputs, so that none are emitted: above its own after a rollback."""
        return 0 if self.journal is None else self.journal.acknowledged

    @property
    def behind(self) -> bool:
        """Whether it may stand before what its caller was told: after a rollback, until it has caught up with what its caller has."""
        return self.rolled_back or self.muted > self.position

    @property
    def stops(self) -> bool:
        """Whether its running request ends here because its caller said so: not before what the caller has, where the session went back behind that."""
        request = self.requests[0]
        return request.stop_requested and not request.consuming and self.position >= self.muted

    @property
    def must_wait(self) -> bool:
        """Whether its running request waits for its caller: to read, or to say what it has received."""
        request = self.requests[0]
        return request.outbox.full or (request.position is not None and self.journal is not None and self.journal.full)

    @property
    def chunk_left(self) -> int:
        """Steps of input that could be taken at once: those left of its running request that its reader has room for; 0 where that generates."""
        request = self.requests[0]
        left = min(request.input_steps - request.consumed, request.steps_to_end)
        return min(left, request.outbox.room) if request.emit is Emit.ALL else left

    def consumed(self, steps: int, tokens: Sequence[int]) -> None:
        """Record that steps of input (`tokens`, of token models) were consumed: generation after them starts a new text."""
        self.position += steps
        self.has_output = True
        if self.tail_tokens is not None:
            self.tail_tokens, self.tail_text = None, ""
        if self.decoder is not None:
            self.decoder.context(tokens)

    def generated(self, tokens: Sequence[int]) -> str:
        """Record that tokens were generated, and return the text that became complete."""
        self.position += len(tokens)
        if self.tail_tokens is None:
            self.tail_tokens = []
        self.tail_tokens.extend(tokens)
        if len(self.tail_tokens) > 2 * TAIL_TOKENS:
            del self.tail_tokens[:-TAIL_TOKENS]
        text = "" if self.decoder is None else "".join([self.decoder.feed(token) for token in tokens])
        if text:
            self.tail_text = (self.tail_text + text)[-TAIL_CHARACTERS:]
        return text

    def stop_sequence(self, generation: Generation, text: str) -> str | tuple[int, ...] | None:
        """Return the stop sequence that the last generated step, which completed `text`, completes."""
        for tokens in generation.stop_tokens:
            if self.tail_tokens is not None and tuple(self.tail_tokens[-len(tokens) :]) == tokens:
                return tokens
        for stop in generation.stop_texts:
            if text and stop in self.tail_text[-(len(text) + len(stop) - 1) :]:
                return stop
        return None


@dataclass(frozen=True, slots=True)
class ResidentState:
    """A resident session's future at one position: whoever restores it and is given the same inputs computes the same bits.

    Attributes:
        position: Steps taken.
        seed: Seed of draws that name none.
        tensors: State float32 [layers, width] by name.
        last_output: float32 [output], in model units; None before any step.
        tail_tokens, tail_text: What still counts for the next match of a stop sequence.
        text_context, text_pending: Token ids that the detokenizer needs.
        journal: What it may be asked again, where that goes with it.
        rolled_back: There may have been a newer state.
    """

    position: int
    seed: int
    tensors: Mapping[str, NDArray[np.float32]]
    last_output: NDArray[np.float32] | None
    tail_tokens: tuple[int, ...] = ()
    tail_text: str = ""
    text_context: tuple[int, ...] = ()
    text_pending: tuple[int, ...] = ()
    journal: KeptJournal | None = None
    rolled_back: bool = False
