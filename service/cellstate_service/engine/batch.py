"""Assembles the rows of one step, and tells what each row's step gave. Runs on the engine thread; sees tensors but no queues, names or callers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellstate_service.engine.request import Emit, Event, Failed, Finish, Finished, Form, Request, StepOutput
from cellstate_service.engine.resident import Resident
from cellstate_service.engine.runner import Runner
from cellstate_service.engine.sampler import Draw, draw_tokens, log_probabilities
from cellstate_service.engine.state_pool import StatePool
from cellstate_service.errors import StepFailed
from cellstate_service.models.loading import LoadedModel

Values = NDArray[np.float32]


@dataclass(slots=True)
class Row:
    """One session's step in a batch.

    Attributes:
        resident: The session.
        request: Its running request.
        consuming: The step takes an input (otherwise it generates).
        token: The token that goes in (token models).
        log_probability: Of a generated token, where asked for.
    """

    resident: Resident
    request: Request
    consuming: bool
    token: int | None = None
    log_probability: float | None = None

    def draw_at(self, position: int) -> Draw:
        """Return what the row draws with at a position."""
        sampling = self.request.drawing(generated=not self.consuming)
        return Draw(sampling, self.resident.seed if sampling.seed is None else sampling.seed, position)

    @property
    def answers(self) -> bool:
        """Whether the output of the input that is about to be consumed is answered."""
        emit, request = self.request.emit, self.request
        return self.consuming and (emit is Emit.ALL or (emit is Emit.LAST and request.consumed + 1 == request.input_steps))


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token drawn from an output that is answered."""

    token: int
    text: str
    log_probability: float | None


class Batch:
    """One step of several sessions: draw what generates, run, record, and turn outputs into events."""

    def __init__(self, model: LoadedModel, pool: StatePool, runner: Runner) -> None:
        self._model = model
        self._pool = pool
        self._runner = runner
        self._takes_tokens = model.manifest.input.kind == "tokens"
        self._gives_tokens = model.manifest.output.kind == "tokens"
        self._end_token = model.manifest.end_token

    def step(self, residents: Sequence[Resident], now_s: float) -> list[tuple[Request, Event]]:
        """Take one step of each session and return the events, each with its request. Failed rows have not moved.

        Mutates the residents (position, detokenizer), their first requests (progress) and the pool.
        """
        rows = [Row(resident, resident.requests[0], resident.requests[0].consuming) for resident in residents]
        slots = torch.tensor([row.resident.slot for row in rows])
        inputs = self._inputs(rows, slots)
        for row in rows:
            if row.request.started_s is None:
                row.request.started_s = now_s
        computed = self._runner.compute(slots, inputs)
        good = [bool(row) for row in computed.good.tolist()]
        drawn = self._draw_answers([row if ok else None for row, ok in zip(rows, good, strict=True)], computed.outputs)
        self._runner.commit(slots, computed)  # what may fail lies before it, so that state and positions move together
        events: list[tuple[Request, Event]] = []
        outputs, fed = computed.outputs.numpy(), None if self._takes_tokens else inputs.numpy()
        for index, row in enumerate(rows):
            if not good[index]:
                error = StepFailed("the model gave NaN or infinity: check the input and the weights; the session stands before this step")
                events.append((row.request, Failed(error)))
            elif row.consuming:
                self._record_consumed(row, outputs[index], drawn.get(index), events)
            else:
                self._record_generated(row, None if fed is None else fed[index].copy(), now_s, events)
        return events

    def last_output(self, resident: Resident, request: Request) -> StepOutput:
        """Return the output of the session's last step, which takes no step."""
        output = self._pool.outputs(torch.tensor([resident.slot]))
        row = Row(resident, request, consuming=True)
        drawn = self._draw([row], output, [resident.position])[0] if request.form.draws else None
        return _answer(resident.position - 1, output.numpy()[0], drawn)

    def _inputs(self, rows: list[Row], slots: Tensor) -> Tensor:
        generating = [index for index, row in enumerate(rows) if not row.consuming]
        if self._takes_tokens:
            if generating:
                self._draw_inputs([rows[index] for index in generating], self._pool.outputs(slots[generating] if len(generating) < len(rows) else slots))
            for row in rows:
                if row.consuming and row.request.inputs is not None:
                    row.token = int(row.request.inputs[row.request.consumed])
            return torch.tensor([row.token for row in rows])
        inputs = np.empty((len(rows), self._model.manifest.input.size), dtype=np.float32)
        if generating:
            inputs[generating] = self._pool.outputs(slots[generating]).numpy()
        for index, row in enumerate(rows):
            if row.consuming and row.request.inputs is not None:
                inputs[index] = row.request.inputs[row.request.consumed]
        return torch.from_numpy(inputs)

    def _draw_inputs(self, rows: list[Row], last_outputs: Tensor) -> None:
        tokens = draw_tokens(last_outputs, [row.draw_at(row.resident.position) for row in rows])
        asked = [index for index, row in enumerate(rows) if row.request.log_probabilities]
        logs = dict(zip(asked, log_probabilities(last_outputs[asked], [tokens[index] for index in asked]), strict=True)) if asked else {}
        for index, row in enumerate(rows):
            row.token = tokens[index]
            row.log_probability = logs.get(index)

    def _draw_answers(self, rows: "Sequence[Row | None]", outputs: Tensor) -> dict[int, Drawn]:
        """Draw tokens from the outputs that are answered as tokens, by row index. Rows that failed are None."""
        wanted = {index: row for index, row in enumerate(rows) if row is not None and row.answers and row.request.form.draws}
        if not wanted:
            return {}
        chosen = list(wanted.values())
        return dict(zip(wanted, self._draw(chosen, outputs[list(wanted)], [row.resident.position + 1 for row in chosen]), strict=True))

    def _draw(self, rows: Sequence[Row], logits: Tensor, positions: Sequence[int]) -> list[Drawn]:
        tokens = draw_tokens(logits, [row.draw_at(position) for row, position in zip(rows, positions, strict=True)])
        asked = any(row.request.log_probabilities for row in rows)
        logs = log_probabilities(logits, tokens) if asked else [0.0] * len(tokens)
        return [
            Drawn(token, self._text(row.request, token), log if row.request.log_probabilities else None)
            for row, token, log in zip(rows, tokens, logs, strict=True)
        ]

    def _text(self, request: Request, token: int) -> str:
        return self._model.tokenizer.decode([token]) if request.form is Form.TEXT and self._model.tokenizer is not None else ""

    def _record_consumed(self, row: Row, output: Values, drawn: Drawn | None, events: list[tuple[Request, Event]]) -> None:
        answers = row.answers
        row.request.consumed += 1
        row.resident.consumed(row.token)
        if answers:
            events.append((row.request, _answer(row.resident.position - 1, output, drawn)))

    def _record_generated(self, row: Row, fed: Values | None, now_s: float, events: list[tuple[Request, Event]]) -> None:
        resident, request = row.resident, row.request
        text = resident.generated(row.token)
        request.generated += 1
        value = row.token if row.token is not None else fed
        if value is None:
            raise StepFailed("a generated step has no value")
        events.append((request, StepOutput(resident.position - 1, value, text, row.log_probability, generated=True)))
        generation = request.generation
        if generation is None:
            return
        stop = resident.stop_sequence(generation, text) if generation.stop_texts or generation.stop_tokens else None
        if stop is not None:
            events.append((request, self.finished(resident, request, Finish.STOP_SEQUENCE, now_s, stop)))
        elif row.token is not None and row.token == self._end_token:
            events.append((request, self.finished(resident, request, Finish.END_TOKEN, now_s)))

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


def _answer(position: int, output: Values, drawn: Drawn | None) -> StepOutput:
    if drawn is None:
        return StepOutput(position, output.copy(), "", None, generated=False)
    return StepOutput(position, drawn.token, drawn.text, drawn.log_probability, generated=False)
