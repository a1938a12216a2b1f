"""The sampler draws the next token. Counter-based: a draw is a pure function of the logits, the seed and the position, whatever else is in the batch.

Top-k: Fan, Lewis & Dauphin 2018. Top-p (nucleus): Holtzman et al. 2020. The counter's hash is the finalizer of SplitMix64 (Steele, Lea & Flood 2014), computed
in int64, whose products wrap around as those of uint64 do. TorchScript compiles the functions as parts of the runner's step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cellstate_service.engine.request import Sampling


@dataclass(frozen=True, slots=True)
class Draw:
    """What one row draws with: its settings, seed and position."""

    sampling: Sampling
    seed: int
    position: int


class Draws(NamedTuple):
    """What N rows draw with, as tensors.

    Rows are drawn in three groups, so that a row's arithmetic does not depend on the others' settings: greedy ones (temperature 0 takes the most probable
    token, the lowest id among equals), plain ones, and those that are filtered by rank.

    Attributes:
        seeds, positions: int64 [N].
        temperature, top_p: float64 [N, 1].
        top_k: int64 [N, 1]; the vocabulary's size where all are kept.
        greedy, plain, ranked: int64, the rows of each group.
    """

    seeds: Tensor
    positions: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    greedy: Tensor
    plain: Tensor
    ranked: Tensor


def gather_draws(draws: Sequence[Draw], vocabulary: int) -> Draws:
    """Return the draws of N rows as tensors."""
    groups: dict[str, list[int]] = {"greedy": [], "plain": [], "ranked": []}
    for row, draw in enumerate(draws):
        settings = draw.sampling
        plain = settings.top_k == 0 and settings.top_p >= 1.0
        groups["greedy" if settings.temperature == 0 else "plain" if plain else "ranked"].append(row)
    return Draws(
        seeds=torch.tensor([_signed(draw.seed) for draw in draws]),
        positions=torch.tensor([_signed(draw.position) for draw in draws]),
        temperature=torch.tensor([[draw.sampling.temperature] for draw in draws], dtype=torch.float64),
        top_k=torch.tensor([[draw.sampling.top_k or vocabulary] for draw in draws]),
        top_p=torch.tensor([[draw.sampling.top_p] for draw in draws], dtype=torch.float64),
        **{name: torch.tensor(rows, dtype=torch.int64) for name, rows in groups.items()},
    )


def part_of_draws(draws: Draws, low: int, high: int) -> Draws:
    """Return what the rows from `low` to before `high` draw with."""
    return Draws(
        draws.seeds[low:high],
        draws.positions[low:high],
        draws.temperature[low:high],
        draws.top_k[low:high],
        draws.top_p[low:high],
        _within(draws.greedy, low, high),
        _within(draws.plain, low, high),
        _within(draws.ranked, low, high),
    )


def _within(rows: Tensor, low: int, high: int) -> Tensor:
    """Return those of some rows that are from `low` to before `high`, counted from `low`."""
    return rows[torch.logical_and(rows >= low, rows < high)] - low


def _signed(number: int) -> int:
    """Return the int64 that has the bits of a uint64."""
    return number - (1 << 64) if number >> 63 else number


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift the 64 bits of each number right, zeros coming in."""
    return torch.bitwise_right_shift(x, bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = torch.bitwise_xor(x, _shift(x, 30)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
    x = torch.bitwise_xor(x, _shift(x, 27)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
    return torch.bitwise_xor(x, _shift(x, 31))


def uniform(seeds: Tensor, positions: Tensor) -> Tensor:
    """Return one number in [0, 1), float64, for each pair of seed and position, int64."""
    golden = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15
    bits = _mix(_mix(seeds + golden) + (positions + 1) * golden)
    return _shift(bits, 11).to(torch.float64) * 2.0**-53


def _place(cumulative: Tensor, point: Tensor) -> Tensor:
    """Return the first column [N, 1] whose cumulative probability [N, V] is above the point [N] in [0, 1) of the whole."""
    reached = cumulative <= point.unsqueeze(1) * cumulative[:, -1:]
    return reached.sum(1, keepdim=True).clamp_(max=cumulative.size(1) - 1)


def _plain(logits: Tensor, temperature: Tensor, point: Tensor) -> Tensor:
    return _place(torch.softmax(logits.to(torch.float64) / temperature, 1).cumsum(1), point)[:, 0]


def _ranked(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, point: Tensor) -> Tensor:
    ranked, order = (logits.to(torch.float64) / temperature).sort(dim=1, descending=True, stable=True)
    beyond = torch.arange(logits.size(1)) >= top_k
    probabilities = torch.softmax(ranked.masked_fill(beyond, -float("inf")), 1)
    before = probabilities.cumsum(1) - probabilities
    keep = torch.logical_or(before < top_p, top_p >= 1.0)
    keep[:, 0] = True
    rank = _place(probabilities.masked_fill(keep.logical_not(), 0.0).cumsum(1), point)
    return order.gather(1, rank)[:, 0]


def draw(logits: Tensor, draws: Draws, ahead: int) -> Tensor:
    """Draw one token per row.

    Args:
        logits: float32 [N, vocabulary], finite.
        draws: Of the N rows.
        ahead: Steps from the draws' positions to those that count.

    Returns:
        Token ids int64 [N].
    """
    count = logits.size(0)
    if draws.greedy.size(0) == count:
        return logits.argmax(1)
    tokens = torch.empty(count, dtype=torch.int64)
    if draws.greedy.size(0) > 0:
        tokens[draws.greedy] = logits[draws.greedy].argmax(1)
    point = uniform(draws.seeds, draws.positions + ahead)
    if draws.plain.size(0) > 0:
        rows = draws.plain
        tokens[rows] = _plain(logits[rows], draws.temperature[rows], point[rows])
    if draws.ranked.size(0) > 0:
        rows = draws.ranked
        tokens[rows] = _ranked(logits[rows], draws.temperature[rows], draws.top_k[rows], draws.top_p[rows], point[rows])
    return tokens


def log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the natural logarithm, float64 [N], of the probability that logits [N, V] give to tokens [N] (before temperature, top-k and top-p)."""
    return torch.log_softmax(logits.to(torch.float64), 1).gather(1, tokens.unsqueeze(1))[:, 0]
