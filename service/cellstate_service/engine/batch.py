"""A batch: assembles the rows of some sessions and has them step. Runs on the engine thread; sees tensors, but no queues, names or callers.

What comes out is plain data, which `recording.py` turns into progress and events.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellstate_service.engine.recording import Drawn, Steps
from cellstate_service.engine.request import Inputs, Request, Sampling
from cellstate_service.engine.resident import Resident
from cellstate_service.engine.runner import Asked, Runner, Taken
from cellstate_service.engine.sampler import Draw, Draws, gather_draws
from cellstate_service.engine.state_pool import StatePool, size_of_batch
from cellstate_service.models.loading import LoadedModel

WARMING_ROUNDS = 3
"""TorchScript settles on how it runs a program within its first two calls."""


@dataclass(frozen=True, slots=True)
class _Members:
    """Who is in a batch that generates, and what stays the same while they are.

    Attributes:
        requests: Their requests.
        positions: Where their sessions stand, for as long as only this batch moves them.
        draws: What the rows draw with (token models).
        logs: Some of them want log-probabilities.
        once: A limit of one step for each row, int64 [B].
    """

    requests: list[Request]
    positions: list[int]
    draws: Draws | None
    logs: bool
    once: Tensor


NOBODY = _Members([], [], None, logs=False, once=torch.empty(0, dtype=torch.int64))


class Batch:
    """Steps of several sessions in one call of the runner."""

    def __init__(self, model: LoadedModel, pool: StatePool) -> None:
        self._model = model
        self._pool = pool
        self._runner = Runner(model.network)
        self._takes_tokens = model.manifest.input.kind == "tokens"
        self._members = NOBODY

    def step(self, residents: Sequence[Resident], ahead: int = 1, parts: int = 1) -> Steps:
        """Take one step of each session: of its input where it consumes, of generation otherwise. Moves their states, nothing else.

        Or up to `ahead` steps of each, where each generates after this one at the latest: no more than it has left, and none beyond its end token. `parts` of
        the batch are computed at once.
        """
        if all(resident.requests[0].consuming and resident.requests[0].generation is None for resident in residents):
            return self.consume(residents, 1, parts)
        real, residents = len(residents), _filled(residents)
        requests = [resident.requests[0] for resident in residents]
        consuming = [row for row, request in enumerate(requests) if request.consuming]
        members = self._members_of(residents, requests)
        slots = [resident.taken_slot for resident in residents[:real]]
        working, (given, rows) = self._pool.working_set(slots), self._given(requests, consuming)
        limits = members.once if ahead == 1 else torch.tensor([min(ahead, request.steps_left) for request in requests])
        asked = Asked(limits, given, rows, members.draws, members.logs, self._model.manifest.end_token)
        taken = self._runner.generate(working, asked, parts=parts)
        steps = self._steps(residents[:real], requests[:real], taken, torch.stack(taken.fed).numpy())
        if taken.logs:
            steps.logs.extend(torch.stack(taken.logs, 1).tolist())
        self._pool.keep(slots, taken.rows)  # what may fail lies before it, so that state and positions move together
        members.positions[:] = [position + len(taken.fed) for position in members.positions]
        if members.draws is not None:
            members.draws.positions.add_(len(taken.fed))
        return steps

    def consume(self, residents: Sequence[Resident], count: int, parts: int = 1) -> Steps:
        """Take `count` steps of input of each session as one chunk; all have as many to take. Moves their states, nothing else."""
        requests = [resident.requests[0] for resident in residents]
        slots = [resident.taken_slot for resident in residents]
        inputs: Inputs = np.stack([resident.requests[0].taking(count) for resident in _filled(residents)], axis=1)  # type: ignore[assignment]
        every = count > 1 and any(request.answered(1, count) for request in requests)
        taken = self._runner.consume(self._pool.working_set(slots), torch.from_numpy(inputs), every=every, parts=parts)
        steps = self._steps(residents, requests, taken, inputs)
        self._pool.keep(slots, taken.rows)
        return steps

    def warm_up(self, most_rows: int, given_up: Callable[[], bool]) -> None:
        """Compute every size that batches of up to `most_rows` have once, on no session's state: building kernels takes longer than the steps themselves."""
        shape = (1,) if self._takes_tokens else (1, self._model.manifest.input.size)
        one = torch.zeros(1, *shape, dtype=torch.int64 if self._takes_tokens else torch.float32)
        for count in sorted({size_of_batch(rows) for rows in range(1, most_rows + 1)}, reverse=True):
            if given_up():
                return
            self._runner.consume(self._pool.empty_set(count), one.expand(1, count, *shape[1:]).contiguous(), every=False)
        nothing, nobody = one[0][:0], torch.empty(0, dtype=torch.int64)
        samplings = [Sampling(0.0), Sampling(1.0), Sampling(1.0, top_k=2)]
        for parts in (1, 2):
            rows, limits = self._pool.empty_set(parts), torch.full((parts,), 2)
            asked = [Asked(limits, nothing, nobody)] if self._model.generates else []
            if self._takes_tokens and asked:
                draws = [gather_draws([Draw(sampling, 0, 0)] * parts, self._model.network.output_size) for sampling in samplings]
                asked = [Asked(limits, nothing, nobody, each, logs=True, end_token=0) for each in draws]
            for _ in range(WARMING_ROUNDS):
                self._runner.consume(rows, one.expand(2, parts, *shape[1:]).contiguous(), every=True, parts=parts)
                for each_asked in asked:
                    self._runner.generate(rows, each_asked, parts=parts)

    def last_output(self, resident: Resident, request: Request) -> NDArray[np.float32] | list[Drawn]:
        """Return the output [1, width] of the session's last step, or what is drawn from it, which takes no step."""
        output = self._pool.output(resident.taken_slot)
        values: NDArray[np.float32] = output.numpy()
        return self._draw(request, resident, output, resident.position) if request.form.draws else values

    def _members_of(self, residents: Sequence[Resident], requests: list[Request]) -> _Members:
        known, positions = self._members, [resident.position for resident in residents]
        if known.requests == requests and known.positions == positions:
            return known
        draws = None
        if self._takes_tokens:
            chosen = [_draw(request, resident, resident.position, generated=True) for request, resident in zip(requests, residents, strict=True)]
            draws = gather_draws(chosen, self._model.network.output_size)
        logs = any(request.log_probabilities for request in requests)
        self._members = _Members(requests, positions, draws, logs=logs, once=torch.ones(len(requests), dtype=torch.int64))
        return self._members

    def _given(self, requests: list[Request], consuming: list[int]) -> tuple[Tensor, Tensor]:
        """Return the next input of each row that consumes, and which rows they are."""
        shape = (len(consuming),) if self._takes_tokens else (len(consuming), self._model.manifest.input.size)
        given = np.empty(shape, dtype=np.int64 if self._takes_tokens else np.float32)
        for index, row in enumerate(consuming):
            given[index] = requests[row].taking(1)[0]
        return torch.from_numpy(given), torch.tensor(consuming, dtype=torch.int64)

    def _steps(self, residents: Sequence[Resident], requests: list[Request], taken: Taken, fed: Inputs) -> Steps:
        """Return what was taken as plain data, tokens drawn from those outputs of inputs that are answered as tokens."""
        asked = len(fed)
        counts = [asked] * len(requests) if taken.complete else taken.counts[: len(requests)].tolist()
        drawn: dict[int, list[Drawn]] = {}
        for row, (resident, request, count) in enumerate(zip(residents, requests, counts, strict=True)):
            answered = request.answered(count, asked) if request.form.draws and request.consuming else 0
            if answered:
                logits = taken.outputs[-answered:, row] if count == asked else taken.outputs[:answered, row]
                drawn[row] = self._draw(request, resident, logits, resident.position + count - answered + 1)
        failed = set() if taken.complete else set(torch.nonzero(taken.failed[: len(requests)])[:, 0].tolist())
        return Steps(requests, asked, counts, failed, fed, taken.outputs.numpy(), drawn)

    def _draw(self, request: Request, resident: Resident, logits: Tensor, position: int) -> list[Drawn]:
        """Draw a token from each of contiguous outputs [n, vocabulary], the first at a position."""
        draws = [_draw(request, resident, position + index, generated=False) for index in range(len(logits))]
        tokens, logs = self._runner.answer(logits, gather_draws(draws, self._model.network.output_size), logs=request.log_probabilities)
        chances: list[float | None] = logs.tolist() if request.log_probabilities else [None] * len(draws)
        return [Drawn(token, chance) for token, chance in zip(tokens.tolist(), chances, strict=True)]


def _draw(request: Request, resident: Resident, position: int, *, generated: bool) -> Draw:
    sampling = request.drawing(generated=generated)
    return Draw(sampling, resident.seed if sampling.seed is None else sampling.seed, position)


def _filled(residents: Sequence[Resident]) -> Sequence[Resident]:
    """Return sessions up to the size at which they are computed: the first one again for the rows beyond them."""
    missing = size_of_batch(len(residents)) - len(residents)
    return [*residents, *[residents[0]] * missing] if missing else residents
