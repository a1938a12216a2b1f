"""The sampler draws the next token. Counter-based: a draw is a pure function of the logits, the seed and the position, whatever else is in the batch.

Top-k: Fan, Lewis & Dauphin 2018. Top-p (nucleus): Holtzman et al. 2020. The counter's hash is the finalizer of SplitMix64 (Steele, Lea & Flood 2014).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellstate_service.engine.request import Sampling

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Draw:
    """What one row draws with: its settings, seed and position."""

    sampling: Sampling
    seed: int
    position: int


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(seeds: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """Return one number in [0, 1) for each pair of seed and position."""
    seed = np.array(seeds, dtype=np.uint64)
    position = np.array(positions, dtype=np.uint64)
    bits = _mix(_mix(seed + _GOLDEN) + (position + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _cumulate(logits: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor | None]:
    """Return cumulative probabilities float64 [rows, V] and, where a row filters by rank, the token ids in their order (most probable first)."""
    temperature = torch.tensor([draw.sampling.temperature for draw in draws], dtype=torch.float64).unsqueeze(1)
    scaled = logits.double() / temperature
    if all(draw.sampling.top_k == 0 and draw.sampling.top_p >= 1.0 for draw in draws):
        return torch.softmax(scaled, 1).cumsum(1), None
    ranked, order = scaled.sort(dim=1, descending=True, stable=True)
    size = logits.shape[1]
    top_k = torch.tensor([draw.sampling.top_k or size for draw in draws]).unsqueeze(1)
    probabilities = torch.softmax(ranked.masked_fill(torch.arange(size) >= top_k, -torch.inf), 1)
    top_p = torch.tensor([draw.sampling.top_p for draw in draws], dtype=torch.float64).unsqueeze(1)
    before = probabilities.cumsum(1) - probabilities
    keep = (before < top_p) | (top_p >= 1.0)
    keep[:, 0] = True
    return probabilities.masked_fill(~keep, 0.0).cumsum(1), order


def _sample(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    cumulative, order = _cumulate(logits, draws)
    point = torch.from_numpy(uniform([draw.seed for draw in draws], [draw.position for draw in draws])).unsqueeze(1) * cumulative[:, -1:]
    rank = (cumulative <= point).sum(1, keepdim=True).clamp_(max=cumulative.shape[1] - 1)
    tokens = rank if order is None else order.gather(1, rank)
    return [int(token) for token in tokens[:, 0].tolist()]


def draw_tokens(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Draw one token per row.

    Rows are drawn in three groups (greedy, plain, filtered by rank), so that a row's arithmetic does not depend on the others' settings.

    Args:
        logits: float32 [rows, vocabulary], finite.
        draws: One per row. Temperature 0 takes the most probable token, the lowest id among equals.

    Returns:
        Token ids [rows].
    """
    tokens = [0] * len(draws)
    greedy: list[int] = []
    plain: list[int] = []
    filtered: list[int] = []
    for row, draw in enumerate(draws):
        settings = draw.sampling
        group = greedy if settings.temperature == 0 else plain if settings.top_k == 0 and settings.top_p >= 1.0 else filtered
        group.append(row)
    if greedy:
        for row, token in zip(greedy, logits[greedy].argmax(1).tolist(), strict=True):
            tokens[row] = int(token)
    for group in (plain, filtered):
        if group:
            chosen = logits if len(group) == len(draws) else logits[group]
            for row, token in zip(group, _sample(chosen, [draws[row] for row in group]), strict=True):
                tokens[row] = token
    return tokens


def log_probabilities(logits: Tensor, tokens: Sequence[int]) -> list[float]:
    """Return the natural logarithm of the probability that each row of logits [rows, V] gives to its token (before temperature, top-k and top-p)."""
    chosen = torch.tensor(tokens).unsqueeze(1)
    return [float(value) for value in torch.log_softmax(logits.double(), 1).gather(1, chosen)[:, 0].tolist()]
