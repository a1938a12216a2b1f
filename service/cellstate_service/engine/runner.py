"""The runner: takes a batch of rows some steps further in one compiled call, which runs without the interpreter's lock. Only the engine thread calls it.

The rows come as a working set (see `state_pool.py`) and are not changed; what a step gave comes back as a new one, with the rows whose values were not finite
left where they stood. Whoever has it puts it into the pool, or drops it, so that whatever fails in between leaves every session as it was.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cellstate_service.engine.sampler import Draws, draw, log_probabilities
from cellstate_service.models.networks import Network, Program, compile_module


class Taken(NamedTuple):
    """What some steps gave.

    Attributes:
        rows: The new working set: state tensors [B, width], and the last outputs [B, output_size].
        outputs: float32 [S, B, output_size] of the steps asked for: of all (`consume` with `every`) or of the last one.
        counts: Where not `complete`, the steps that each row took, int64 [B]: a row whose values were not finite stands before the step that gave them.
        complete: Every row took every step.
        fed: What went in at each step: int64 [B] or float32 [B, features].
        logs: float64 [G] for each step, the log-probability of what the G generating rows drew, where asked for.
    """

    rows: list[Tensor]
    outputs: Tensor
    counts: Tensor
    complete: bool
    fed: list[Tensor]
    logs: list[Tensor]


def _finite(tensors: list[Tensor], count: int) -> Tensor:
    """Return which of `count` rows are finite in every tensor [count, …]."""
    good = torch.ones(count, dtype=torch.bool)
    for tensor in tensors:
        good.logical_and_(tensor.abs().amax(1) < float("inf"))
    return good


def _all_finite(after: list[list[Tensor]], count: int) -> bool:
    good = torch.ones(count, dtype=torch.bool)
    for tensors in after:
        good.logical_and_(_finite(tensors, count))
    return bool(good.all())


def _last_finite(before: list[Tensor], after: list[list[Tensor]], count: int) -> tuple[list[Tensor], Tensor]:
    """Return for each row the last of its finite working sets, and how many steps that is from the first."""
    counts = torch.stack([_finite(rows, count) for rows in after]).to(torch.int64).cumprod(0).sum(0)
    row = torch.arange(count)
    rows: list[Tensor] = []
    for column, tensor in enumerate(before):
        rows.append(torch.stack([tensor] + [step[column] for step in after])[counts, row])
    return rows, counts


class Stepping(nn.Module):
    """The compiled part. `program` is the network's."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program

    def forward(self, rows: list[Tensor], inputs: Tensor, every: bool) -> Taken:
        """See `consume`."""
        return self.consume(rows, inputs, every)

    @torch.jit.export
    def consume(self, rows: list[Tensor], inputs: Tensor, every: bool) -> Taken:
        """Take T steps by given inputs, [T, B] or [T, B, features], as one chunk."""
        steps, count = inputs.size(0), inputs.size(1)
        hidden, after = self.program.advance(inputs, rows[:-1])
        outputs = torch.unflatten(self.program.head(hidden if every else hidden[(steps - 1) * count :]), 0, [-1, count])
        for step in range(outputs.size(0)):
            index = step - outputs.size(0)
            after[index] = after[index] + [outputs[step]]
        if _all_finite(after, count):
            return Taken(after[-1], outputs, torch.empty(0, dtype=torch.int64), True, [], [])
        whole: list[list[Tensor]] = []
        for step, block in enumerate(torch.split(self.program.head(hidden), count)):
            whole.append(after[step][: len(rows) - 1] + [block])  # noqa: RUF005 (TorchScript)
        new, counts = _last_finite(rows, whole, count)
        return Taken(new, outputs, counts, False, [], [])

    @torch.jit.export
    def generate(self, rows: list[Tensor], given: Tensor, generating: Tensor, draws: Draws, logs: bool, steps: int) -> Taken:
        """Take steps of tokens: the `generating` rows (int64 [G]) draw theirs from their last output, the others (int64 [B]) are given one."""
        count = rows[-1].size(0)
        everyone = generating.size(0) == count
        fed: list[Tensor] = []
        drawn_logs: list[Tensor] = []
        after: list[list[Tensor]] = []
        now = rows
        for step in range(steps):
            logits = now[-1] if everyone else now[-1][generating]
            drawn = draw(logits, draws, step)
            if logs:
                drawn_logs.append(log_probabilities(logits, drawn))
            fed.append(drawn if everyone else given.index_copy(0, generating, drawn))
            hidden, states = self.program.advance(fed[-1].unsqueeze(0), now[:-1])
            now = states[0] + [self.program.head(hidden)]
            after.append(now)
        if _all_finite(after, count):
            return Taken(now, now[-1].unsqueeze(0), torch.empty(0, dtype=torch.int64), True, fed, drawn_logs)
        new, counts = _last_finite(rows, after, count)
        return Taken(new, now[-1].unsqueeze(0), counts, False, fed, drawn_logs)

    @torch.jit.export
    def feed(self, rows: list[Tensor], given: Tensor, generating: Tensor, steps: int) -> Taken:
        """Take steps of numbers: the `generating` rows (int64 [G]) are fed their last output, the others (float32 [B, features]) are given one."""
        count = rows[-1].size(0)
        everyone = generating.size(0) == count
        fed: list[Tensor] = []
        after: list[list[Tensor]] = []
        now = rows
        for _ in range(steps):
            fed.append(now[-1].contiguous() if everyone else given.index_copy(0, generating, now[-1][generating]))
            hidden, states = self.program.advance(fed[-1].unsqueeze(0), now[:-1])
            now = states[0] + [self.program.head(hidden)]
            after.append(now)
        if _all_finite(after, count):
            return Taken(now, now[-1].unsqueeze(0), torch.empty(0, dtype=torch.int64), True, fed, [])
        new, counts = _last_finite(rows, after, count)
        return Taken(new, now[-1].unsqueeze(0), counts, False, fed, [])

    @torch.jit.export
    def answer(self, logits: Tensor, draws: Draws, logs: bool) -> tuple[Tensor, Tensor]:
        """Draw from outputs without a step: token ids int64 [N], and their log-probabilities float64 [N] where asked for."""
        tokens = draw(logits, draws, 0)
        return tokens, log_probabilities(logits, tokens) if logs else torch.empty(0, dtype=torch.float64)


def compile_stepping(network: Network) -> Stepping:
    """Return what steps a network: compiled where its program is."""
    stepping = Stepping(network.program)
    if not isinstance(network.program, torch.jit.ScriptModule):
        return stepping
    compiled: Stepping = compile_module(stepping)  # type: ignore[assignment]
    return compiled
