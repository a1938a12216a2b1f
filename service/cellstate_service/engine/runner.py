"""The runner: takes a batch of rows some steps further in one compiled call, which runs without the interpreter's lock. Only the engine thread calls it.

The rows come as a working set (see `state_pool.py`) and are not changed; what a step gave comes back as a new one, with the rows whose values were not finite
left where they stood. Whoever has it puts it into the pool, or drops it, so that whatever fails in between leaves every session as it was.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cellstate_service.engine.sampler import Draws, draw, log_probabilities, part_of_draws
from cellstate_service.engine.state_pool import WorkingSet, gather
from cellstate_service.models.networks import Network, Program, compile_module

Gave = tuple[list[Tensor], Tensor, bool, Tensor, Tensor, list[Tensor], list[Tensor]]
"""The fields of `Taken`: TorchScript would make a new class for each named tuple that it returns, which takes as long as a small step does."""


class Taken(NamedTuple):
    """What some steps gave.

    Attributes:
        rows: The new working set: state tensors [B, width], and the last outputs [B, output_size].
        outputs: float32 [S, B, output_size] of the steps asked for: of all (`consume` with `every`) or of the last one.
        complete: Every row took every step.
        counts: Where not `complete`, the steps that each row took, int64 [B].
        failed: Where not `complete`, the rows that stand before a step whose values were not finite, bool [B].
        fed: What went in at each step: int64 [B] or float32 [B, features].
        logs: float64 [B] for each step, the log-probability of what each row drew, where asked for.
    """

    rows: list[Tensor]
    outputs: Tensor
    complete: bool
    counts: Tensor
    failed: Tensor
    fed: list[Tensor]
    logs: list[Tensor]


class Asked(NamedTuple):
    """What some rows are to generate: each is fed what is drawn from its last output, or the output itself.

    Attributes:
        limits: int64 [B]: a row stands after as many steps as it says, or after its end token. All are computed for as many as the largest says.
        given: What some rows take in at the first step instead: token ids int64 [C], or float32 [C, features].
        rows: Which rows they are, int64 [C].
        draws: What tokens are drawn with; None where numbers are fed.
        logs: Also return the log-probabilities of what is drawn.
        end_token: After it a row stands.
    """

    limits: Tensor
    given: Tensor
    rows: Tensor
    draws: Draws | None = None
    logs: bool = False
    end_token: int | None = None


def _finite(tensors: list[Tensor], count: int) -> Tensor:
    """Return which of `count` rows are finite in every tensor [count, …]."""
    good = torch.ones(count, dtype=torch.bool)
    for tensor in tensors:
        good.logical_and_(tensor.abs().amax(1) < float("inf"))
    return good


def _all_finite(after: list[list[Tensor]]) -> bool:
    """Tell whether all is finite: the sum is, only where everything in it is. One that overflows says no without a cause; who asks then looks at each row."""
    total = 0.0
    for tensors in after:
        for tensor in tensors:
            total += float(tensor.sum())
    return math.isfinite(total)


def _cut_short(before: list[Tensor], after: list[list[Tensor]], wanted: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return each row's working set after the steps that it wanted (int64 [B]), or after the last finite one of them; how many those are; which rows failed."""
    count = wanted.size(0)
    finite = torch.stack([_finite(rows, count) for rows in after]).to(torch.int64).cumprod(0).sum(0)
    counts = torch.minimum(finite, wanted)
    short = torch.nonzero(counts < len(after))[:, 0]
    taken, row = counts[short], torch.arange(short.size(0))
    rows: list[Tensor] = []
    for column, tensor in enumerate(before):
        of_short = torch.stack([tensor[short]] + [step[column][short] for step in after])[taken, row]
        rows.append(after[-1][column].index_copy(0, short, of_short))
    return rows, counts, finite < wanted


def _wanted(fed: list[Tensor], asked: Asked) -> Tensor:
    """Return how many of the steps each row wants, int64 [B]: not beyond its limit, nor beyond the end token where it was drawn."""
    wanted, end_token = asked.limits.clamp(max=len(fed)), asked.end_token
    if end_token is None:
        return wanted
    goes_on = torch.stack([tokens != end_token for tokens in fed])
    goes_on[0, asked.rows] = True
    return torch.minimum(wanted, goes_on.to(torch.int64).cumprod(0).sum(0) + 1)


def _part(rows: list[Tensor], low: int, high: int) -> list[Tensor]:
    """Return the rows from `low` to before `high` of each tensor [B, width]."""
    part: list[Tensor] = []
    for tensor in rows:
        part.append(tensor[low:high])  # noqa: PERF401 (TorchScript)
    return part


def _part_of_asked(asked: Asked, low: int, high: int) -> Asked:
    """Return what the rows from `low` to before `high` are to generate."""
    chosen = torch.logical_and(asked.rows >= low, asked.rows < high)
    draws = asked.draws
    return Asked(
        asked.limits[low:high],
        asked.given[chosen],
        asked.rows[chosen] - low,
        None if draws is None else part_of_draws(draws, low, high),
        asked.logs,
        asked.end_token,
    )


def _joined(gave: list[Gave], asked: int) -> Gave:
    """Return what the parts of a batch gave, each asked for as many steps, as what the batch gave."""
    whole = True
    for part in gave:
        whole = whole and part[2]
    rows: list[Tensor] = []
    for column in range(len(gave[0][0])):
        rows.append(torch.cat([part[0][column] for part in gave]))  # noqa: PERF401 (TorchScript)
    fed: list[Tensor] = []
    for step in range(len(gave[0][5])):
        fed.append(torch.cat([part[5][step] for part in gave]))  # noqa: PERF401 (TorchScript)
    logs: list[Tensor] = []
    for step in range(len(gave[0][6])):
        logs.append(torch.cat([part[6][step] for part in gave]))  # noqa: PERF401 (TorchScript)
    if whole and gave[0][1].size(0) == 1:
        return (rows, rows[-1].unsqueeze(0), True, torch.empty(0), torch.empty(0), fed, logs)
    outputs = torch.cat([part[1] for part in gave], 1)
    if whole:
        return (rows, outputs, True, torch.empty(0), torch.empty(0), fed, logs)
    counts: list[Tensor] = []
    failed: list[Tensor] = []
    for part in gave:
        count = part[1].size(1)
        counts.append(torch.full([count], asked) if part[2] else part[3])
        failed.append(torch.zeros(count, dtype=torch.bool) if part[2] else part[4])
    return (rows, outputs, False, torch.cat(counts), torch.cat(failed), fed, logs)


class Stepping(nn.Module):
    """The compiled part. `program` is the network's.

    A batch is computed in `parts` at once, each by a thread of its own: rows do not see each other, so that this changes nothing but the time it takes.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program

    def forward(self, working: WorkingSet, inputs: Tensor, every: bool, parts: int) -> Gave:
        """See `consume`."""
        return self.consume(working, inputs, every, parts)

    @torch.jit.export
    def consume(self, working: WorkingSet, inputs: Tensor, every: bool, parts: int) -> Gave:
        """Take T steps by given inputs, [T, B] or [T, B, features], as one chunk."""
        rows = gather(working)
        if parts == 1:
            return self.consume_part(rows, inputs, every)
        size = -(-inputs.size(1) // parts)
        futures: list[torch.jit.Future[Gave]] = []
        for low in range(size, inputs.size(1), size):
            high = low + size
            futures.append(torch.jit.fork(self.consume_part, _part(rows, low, high), inputs[:, low:high].contiguous(), every))
        gave = [self.consume_part(_part(rows, 0, size), inputs[:, :size].contiguous(), every)]
        for future in futures:
            gave.append(torch.jit.wait(future))  # noqa: PERF401 (TorchScript)
        return _joined(gave, inputs.size(0))

    @torch.jit.export
    def consume_part(self, rows: list[Tensor], inputs: Tensor, every: bool) -> Gave:
        """See `consume`."""
        steps, count = inputs.size(0), inputs.size(1)
        hidden, after = self.program.advance(inputs, rows[:-1])
        if steps == 1:
            last = self.program.head(hidden)
            after[0].append(last)
            outputs = last.unsqueeze(0)
        else:
            outputs = torch.unflatten(self.program.head(hidden if every else hidden[(steps - 1) * count :]), 0, [-1, count])
            for step in range(outputs.size(0)):
                after[step - outputs.size(0)].append(outputs[step])
        if _all_finite(after):
            return (after[-1], outputs, True, torch.empty(0), torch.empty(0), [], [])
        whole: list[list[Tensor]] = []
        for step, block in enumerate(torch.split(self.program.head(hidden), count)):
            whole.append(after[step][: len(rows) - 1] + [block])  # noqa: RUF005 (TorchScript)
        new, counts, failed = _cut_short(rows, whole, torch.full([count], steps))
        return (new, outputs, False, counts, failed, [], [])

    @torch.jit.export
    def generate(self, working: WorkingSet, asked: Asked, parts: int) -> Gave:
        """Take steps in which each row is fed what its last output gives, but for those that take a given input first."""
        rows, count, steps = gather(working), asked.limits.size(0), int(asked.limits.max())
        if parts == 1:
            return self.generate_part(rows, asked, steps)
        size = -(-count // parts)
        futures: list[torch.jit.Future[Gave]] = []
        for low in range(size, count, size):
            high = low + size
            futures.append(torch.jit.fork(self.generate_part, _part(rows, low, high), _part_of_asked(asked, low, high), steps))
        gave = [self.generate_part(_part(rows, 0, size), _part_of_asked(asked, 0, size), steps)]
        for future in futures:
            gave.append(torch.jit.wait(future))  # noqa: PERF401 (TorchScript)
        return _joined(gave, steps)

    @torch.jit.export
    def generate_part(self, rows: list[Tensor], asked: Asked, steps: int) -> Gave:
        """See `generate`."""
        fed: list[Tensor] = []
        logs: list[Tensor] = []
        after: list[list[Tensor]] = []
        draws, now = asked.draws, rows
        for step in range(steps):
            if draws is None:
                value = now[-1].contiguous()
            else:
                value = draw(now[-1], draws, step)
                if asked.logs:
                    logs.append(log_probabilities(now[-1], value))
            if step == 0:
                value = value.index_copy(0, asked.rows, asked.given)
            fed.append(value)
            hidden, states = self.program.advance(value.unsqueeze(0), now[:-1])
            now = states[0] + [self.program.head(hidden)]
            after.append(now)
        wanted = _wanted(fed, asked) if steps > 1 else asked.limits
        if int(wanted.min()) == steps and _all_finite(after):
            return (now, now[-1].unsqueeze(0), True, torch.empty(0), torch.empty(0), fed, logs)
        new, counts, failed = _cut_short(rows, after, wanted)
        return (new, now[-1].unsqueeze(0), False, counts, failed, fed, logs)

    @torch.jit.export
    def answer(self, logits: Tensor, draws: Draws, logs: bool) -> tuple[Tensor, Tensor]:
        """Draw from outputs without a step: token ids int64 [N], and their log-probabilities float64 [N] where asked for."""
        tokens = draw(logits, draws, 0)
        return tokens, log_probabilities(logits, tokens) if logs else torch.empty(0, dtype=torch.float64)


class Runner:
    """Takes steps of a network."""

    def __init__(self, network: Network) -> None:
        stepping = Stepping(network.program)
        compiles = isinstance(network.program, torch.jit.ScriptModule)
        self._stepping: Stepping = compile_module(stepping) if compiles else stepping

    @property
    def compiled(self) -> bool:
        """Whether a step is one compiled call."""
        return isinstance(self._stepping, torch.jit.ScriptModule)

    def consume(self, working: WorkingSet, inputs: Tensor, *, every: bool, parts: int = 1) -> Taken:
        """See `Stepping.consume`."""
        return Taken(*self._stepping.consume(working, inputs, every, parts))

    def generate(self, working: WorkingSet, asked: Asked, *, parts: int = 1) -> Taken:
        """See `Stepping.generate`."""
        return Taken(*self._stepping.generate(working, asked, parts))

    def answer(self, logits: Tensor, draws: Draws, *, logs: bool) -> tuple[Tensor, Tensor]:
        """See `Stepping.answer`."""
        return self._stepping.answer(logits, draws, logs)
