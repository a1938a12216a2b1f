"""Records what steps gave: sessions and requests move on, callers are told. Plain data; no tensors, no I/O. Runs on the engine thread."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cellstate_service.engine.outbox import Outbox
from cellstate_service.engine.request import Event, Failed, Finish, Finished, Form, Outputs, Request
from cellstate_service.engine.resident import Resident
from cellstate_service.errors import StepFailed
from cellstate_service.models.loading import LoadedModel


class Drawn(NamedTuple):
    """A token drawn from an output of an input."""

    token: int
    log_probability: float | None


@dataclass(frozen=True, slots=True)
class Steps:
    """What a batch of B rows gave.

    Attributes:
        requests: The request of each row.
        asked: Steps that were to be taken.
        counts: Steps that each row took: fewer where it had fewer left, came to its end token, or failed.
        failed: Rows that stand before a step whose values were not finite.
        fed: What went in: token ids int64 [asked, B], or float32 [asked, B, features].
        outputs: float32 [S, B, width], of all steps or of the last one.
        drawn: By row, what was drawn from outputs that are answered.
        logs: By row and step, the log-probability of what the row drew; empty where no row asks for it.
    """

    requests: list[Request]
    asked: int
    counts: list[int]
    failed: set[int]
    fed: NDArray[np.int64] | NDArray[np.float32]
    outputs: NDArray[np.float32]
    drawn: dict[int, list[Drawn]] = field(default_factory=dict)
    logs: list[list[float]] = field(default_factory=list)


@dataclass(slots=True)
class Recorded:
    """What is to be done about steps that were recorded.

    Attributes:
        outcomes: For each row: what ended its request in these steps, or None.
        events: What callers are to be told, each with the outbox it goes to.
        consumed, generated: Steps that were taken.
    """

    outcomes: list[Finished | Failed | None] = field(default_factory=list)
    events: list[tuple[Outbox, Event]] = field(default_factory=list)
    consumed: int = 0
    generated: int = 0


class Recorder:
    """Turns steps into progress and events."""

    def __init__(self, model: LoadedModel) -> None:
        self._tokenizer = model.tokenizer
        self._takes_tokens = model.manifest.input.kind == "tokens"
        self._gives_tokens = model.manifest.output.kind == "tokens"
        self._end_token = model.manifest.end_token

    def record(self, residents: Sequence[Resident], steps: Steps, began_s: float, now_s: float) -> Recorded:
        """Record steps that were taken between two times. Mutates the residents (position, detokenizer) and their first requests (progress)."""
        recorded = Recorded()
        fed = steps.fed.tolist() if self._takes_tokens else []
        for row, (resident, request, count) in enumerate(zip(residents, steps.requests, steps.counts, strict=True)):
            if request.started_s is None:
                request.started_s = began_s
            outcome: Finished | Failed | None = None
            tokens, first = [one[row] for one in fed[:count]], 0
            if request.consuming:
                first = min(count, request.input_steps - request.consumed)
                self._consumed(recorded, resident, steps, row, tokens[:first])
            if count > first and self._takes_tokens:
                outcome = self._tokens(recorded, resident, request, tokens[first:], steps.logs[row][first:count] if steps.logs else [], now_s)
            elif count > first:
                values = steps.fed[first:count, row].astype(np.float32)
                for part in _parts(resident.position, len(values), resident.muted):
                    resident.position += part.stop - part.start
                    _generated(recorded, resident, request, values[part], "", [])
            if row in steps.failed:
                outcome = Failed(StepFailed("the model gave NaN or infinity: check the input and the weights; the session stands before this step"))
            recorded.outcomes.append(outcome)
        return recorded

    def finished(self, resident: Resident, request: Request, reason: Finish, now_s: float, stop: str | tuple[int, ...] | None = None) -> Finished:
        """Return the event that ends a request."""
        started_s = now_s if request.started_s is None else request.started_s
        seed = None
        if self._gives_tokens:
            given = request.drawing(generated=request.generation is not None).seed
            seed = resident.seed if given is None else given
        return Finished(
            reason=reason,
            position=resident.position,
            consumed_steps=request.consumed,
            generated_steps=request.generated,
            stop_sequence=stop,
            seed=seed,
            queue_wait_s=started_s - request.accepted_s,
            run_s=now_s - started_s,
            emit=request.emit,
            generates=request.generation is not None,
        )

    def answered(self, first_position: int, request: Request, drawn: Sequence[Drawn]) -> Outputs:
        """Return tokens that were drawn from outputs of inputs; each is a text by itself."""
        decodes = request.form is Form.TEXT and self._tokenizer is not None
        text = "".join(self._tokenizer.decode([one.token]) for one in drawn) if decodes and self._tokenizer else ""
        logs = [one.log_probability for one in drawn if one.log_probability is not None]
        return Outputs(first_position, [one.token for one in drawn], text, logs, generated=False)

    def _consumed(self, recorded: Recorded, resident: Resident, steps: Steps, row: int, tokens: list[int]) -> None:
        request = steps.requests[row]
        count = min(steps.counts[row], request.input_steps - request.consumed)
        answered = request.answered(count, steps.asked)
        request.consumed += count
        if count:
            resident.consumed(count, tokens)
        recorded.consumed += count
        if not answered:
            return
        first = resident.position - answered
        values = steps.outputs[-answered:, row] if count == steps.asked else steps.outputs[:answered, row]
        for part in _parts(first, answered, resident.muted):
            if request.form.draws:
                event = self.answered(first + part.start, request, steps.drawn[row][part])
            else:
                event = Outputs(first + part.start, values[part].copy(), "", [], generated=False)
            _emit(recorded, resident, request, event)

    def _tokens(self, recorded: Recorded, resident: Resident, request: Request, tokens: list[int], logs: list[float], now_s: float) -> Finished | None:
        logs, text = logs if request.log_probabilities else [], ""
        for part in _parts(resident.position, len(tokens), resident.muted):
            text = resident.generated(tokens[part])
            _generated(recorded, resident, request, tokens[part], text, logs[part])
        generation = request.generation
        if generation is None:
            return None
        if generation.stop_texts or generation.stop_tokens:
            stop = resident.stop_sequence(generation, text)
            if stop is not None:
                return self.finished(resident, request, Finish.STOP_SEQUENCE, now_s, stop)
        if tokens[-1] == self._end_token:
            return self.finished(resident, request, Finish.END_TOKEN, now_s)
        return None


def _generated(recorded: Recorded, resident: Resident, request: Request, values: "list[int] | NDArray[np.float32]", text: str, logs: list[float]) -> None:
    count = len(values)
    request.generated += count
    recorded.generated += count
    _emit(recorded, resident, request, Outputs(resident.position - count, values, text, logs, generated=True))


def _parts(first_position: int, count: int, muted: int) -> list[slice]:
    """Return so many steps as one part, or in two where their caller has the outputs of the first of them."""
    known = muted - first_position
    return [slice(0, known), slice(known, count)] if 0 < known < count else [slice(0, count)]


def _emit(recorded: Recorded, resident: Resident, request: Request, outputs: Outputs) -> None:
    if outputs.position <= resident.muted:
        return
    request.outbox.sent += len(outputs.values)
    recorded.events.append((request.outbox, outputs))
    if request.position is not None and resident.journal is not None:
        resident.journal.emitted(outputs)
