"""The runner: takes a batch of rows some steps further in one compiled call, which runs without the interpreter's lock. Only the engine thread calls it.

The rows come as a working set (see `state_pool.py`) and are not changed; what a step gave comes back as a new one, with the rows whose values were not finite
left where they stood. Whoever has it puts it into the pool, or drops it, so that whatever fails in between leaves every session as it was.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cellstate_service.engine.sampler import Draws, draw, log_probabilities
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


class Given(NamedTuple):
    """What some rows of a batch take in before they generate.

    Attributes:
        values: Token ids int64 [C], or float32 [C, features].
        rows: Which rows they are, int64 [C].
    """

    values: Tensor
    rows: Tensor


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


def _wanted(fed: list[Tensor], consuming: Tensor, limits: Tensor, end_token: int | None) -> Tensor:
    """Return how many of the steps each row wants, int64 [B]: not beyond its limit [B], nor beyond the end token where it was drawn."""
    wanted = limits.clamp(max=len(fed))
    if end_token is None:
        return wanted
    goes_on = torch.stack([tokens != end_token for tokens in fed])
    goes_on[0, consuming] = True
    return torch.minimum(wanted, goes_on.to(torch.int64).cumprod(0).sum(0) + 1)


class Stepping(nn.Module):
    """The compiled part. `program` is the network's."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program

    def forward(self, working: WorkingSet, inputs: Tensor, every: bool) -> Gave:
        """See `consume`."""
        return self.consume(working, inputs, every)

    @torch.jit.export
    def consume(self, working: WorkingSet, inputs: Tensor, every: bool) -> Gave:
        """Take T steps by given inputs, [T, B] or [T, B, features], as one chunk."""
        rows = gather(working)
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
    def generate(self, working: WorkingSet, given: Tensor, consuming: Tensor, draws: Draws, logs: bool, limits: Tensor, end_token: int | None) -> Gave:
        """Take steps of tokens, each drawn from the row's last output; at the first step the `consuming` rows (int64 [C]) take those that are given, int64 [C].

        As many steps as the largest of `limits` (int64 [B]) says; a row stands after as many as its own says, or after its end token.
        """
        fed: list[Tensor] = []
        drawn_logs: list[Tensor] = []
        after: list[list[Tensor]] = []
        rows = gather(working)
        now = rows
        for step in range(int(limits.max())):
            tokens = draw(now[-1], draws, step)
            if logs:
                drawn_logs.append(log_probabilities(now[-1], tokens))
            if step == 0:
                tokens.index_copy_(0, consuming, given)
            fed.append(tokens)
            hidden, states = self.program.advance(fed[-1].unsqueeze(0), now[:-1])
            now = states[0] + [self.program.head(hidden)]
            after.append(now)
        wanted = _wanted(fed, consuming, limits, end_token) if len(fed) > 1 else limits
        if int(wanted.min()) == len(fed) and _all_finite(after):
            return (now, now[-1].unsqueeze(0), True, torch.empty(0), torch.empty(0), fed, drawn_logs)
        new, counts, failed = _cut_short(rows, after, wanted)
        return (new, now[-1].unsqueeze(0), False, counts, failed, fed, drawn_logs)

    @torch.jit.export
    def feed(self, working: WorkingSet, given: Tensor, consuming: Tensor, limits: Tensor) -> Gave:
        """Take steps of numbers, as `generate` does of tokens: a row is fed its last output, or at the first step what is given, float32 [C, features]."""
        fed: list[Tensor] = []
        after: list[list[Tensor]] = []
        rows = gather(working)
        now = rows
        for step in range(int(limits.max())):
            fed.append(now[-1].index_copy(0, consuming, given) if step == 0 else now[-1].contiguous())
            hidden, states = self.program.advance(fed[-1].unsqueeze(0), now[:-1])
            now = states[0] + [self.program.head(hidden)]
            after.append(now)
        if int(limits.min()) == len(fed) and _all_finite(after):
            return (now, now[-1].unsqueeze(0), True, torch.empty(0), torch.empty(0), fed, [])
        new, counts, failed = _cut_short(rows, after, limits)
        return (new, now[-1].unsqueeze(0), False, counts, failed, fed, [])

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

    def consume(self, working: WorkingSet, inputs: Tensor, *, every: bool) -> Taken:
        """See `Stepping.consume`."""
        return Taken(*self._stepping.consume(working, inputs, every))

    def generate(self, working: WorkingSet, given: Given, draws: Draws, limits: Tensor, *, logs: bool = False, end_token: int | None = None) -> Taken:
        """See `Stepping.generate`."""
        return Taken(*self._stepping.generate(working, given.values, given.rows, draws, logs, limits, end_token))

    def feed(self, working: WorkingSet, given: Given, limits: Tensor) -> Taken:
        """See `Stepping.feed`."""
        return Taken(*self._stepping.feed(working, given.values, given.rows, limits))

    def answer(self, logits: Tensor, draws: Draws, *, logs: bool) -> tuple[Tensor, Tensor]:
        """See `Stepping.answer`."""
        return self._stepping.answer(logits, draws, logs)
