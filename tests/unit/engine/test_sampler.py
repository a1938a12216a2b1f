"""The sampler's laws: what is drawn, how often, and that nothing else in the batch matters."""

import itertools
import math
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellstate_service.engine import sampler
from cellstate_service.engine.request import Sampling
from cellstate_service.engine.sampler import Draw, gather_draws
from tests import oracle

DRAWS = 4000
LOGITS = [2.0, -1.0, 0.5, 1.9, -3.0, 0.0, 1.0]

samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1e-6, 0.3, 1.0, 7.0, 100.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 1000]),
    top_p=st.sampled_from([1e-9, 0.25, 0.9, 1.0]),
)
seeds = st.integers(0, 2**64 - 1)


def signed(numbers: Iterable[int]) -> torch.Tensor:
    return torch.tensor([number - (1 << 64) if number >> 63 else number for number in numbers])


def uniform(seeds: Iterable[int], positions: Iterable[int]) -> list[float]:
    return [float(number) for number in sampler.uniform(signed(seeds), signed(positions))]


def draw_tokens(logits: torch.Tensor, draws: list[Draw]) -> list[int]:
    return [int(token) for token in sampler.draw(logits, gather_draws(draws, logits.shape[1]), 0)]


def log_probabilities(logits: torch.Tensor, tokens: list[int]) -> list[float]:
    return [float(log) for log in sampler.log_probabilities(logits, torch.tensor(tokens))]


def drawn(logits: list[float], sampling: Sampling, count: int = DRAWS) -> list[int]:
    """Tokens that one output draws at `count` positions."""
    return draw_tokens(torch.tensor([logits]).expand(count, -1), [Draw(sampling, 11, position) for position in range(count)])


def softmax(logits: list[float], temperature: float = 1.0) -> list[float]:
    weights = [math.exp((logit - max(logits)) / temperature) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def agrees(tokens: list[int], expected: list[float]) -> None:
    """Chi-square of the counts against probabilities, at one in a million."""
    cells = [(tokens.count(token), len(tokens) * probability) for token, probability in enumerate(expected) if probability > 0]
    assert all(count == 0 for token, count in enumerate(map(tokens.count, range(len(expected)))) if expected[token] == 0)
    freedom = len(cells) - 1
    assert sum((count - mean) ** 2 / mean for count, mean in cells) < freedom + 5 * math.sqrt(2 * freedom) + 15


def test_temperature_zero_takes_the_most_probable_and_the_lowest_id_among_equals() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [5.0, 5.0, 5.0], [-2.0, -3.0, -1.0]])
    assert draw_tokens(logits, [Draw(Sampling(temperature=0), seed, 0) for seed in range(3)]) == [1, 0, 2]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tokens_come_as_often_as_the_softmax_says(temperature: float) -> None:
    agrees(drawn(LOGITS, Sampling(temperature)), softmax(LOGITS, temperature))


@pytest.mark.parametrize("top_k", [1, 3, 7, 99])
def test_top_k_keeps_the_k_most_probable(top_k: int) -> None:
    kept = sorted(range(7), key=lambda token: -LOGITS[token])[:top_k]
    agrees(drawn(LOGITS, Sampling(top_k=top_k)), _renormalized(kept))


@pytest.mark.parametrize(("top_p", "size"), [(1e-9, 1), (0.3, 1), (0.7, 2), (0.88, 4), (1.0, 7)])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, size: int) -> None:
    order = sorted(range(7), key=lambda token: -LOGITS[token])
    probabilities = softmax(LOGITS)
    sums = [sum(probabilities[token] for token in order[: count + 1]) for count in range(7)]
    assert next((count + 1 for count in range(7) if sums[count] >= top_p), 7) == size
    agrees(drawn(LOGITS, Sampling(top_p=top_p)), _renormalized(order[:size]))


def test_top_p_counts_what_top_k_left() -> None:
    """Of the first two, the first has more than half."""
    assert set(drawn(LOGITS, Sampling(top_k=2, top_p=0.5))) == {0}
    assert set(drawn(LOGITS, Sampling(top_k=2, top_p=0.6))) == {0, 3}


def _renormalized(kept: list[int]) -> list[float]:
    probabilities = softmax(LOGITS)
    total = sum(probabilities[token] for token in kept)
    return [probability / total if token in kept else 0.0 for token, probability in enumerate(probabilities)]


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_among_equals_the_lowest_ids_are_kept(top_k: int) -> None:
    assert set(drawn([1.0, 2.0, 2.0, 2.0, 0.0], Sampling(top_k=top_k))) == set(range(1, top_k + 1))


@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=70), samplings, seeds, st.integers(0, 2**40))
def test_a_draw_is_what_the_oracle_draws(logits: list[float], sampling: Sampling, seed: int, position: int) -> None:
    (token,) = draw_tokens(torch.tensor([logits]), [Draw(sampling, seed, position)])
    try:
        top_p = min(1.0, sampling.top_p)
        assert token == oracle.draw(logits, oracle.Sampling(sampling.temperature, sampling.top_k, top_p), seed, position)
    except oracle.NearTie:
        assert 0 <= token < len(logits)


@given(st.data(), st.sampled_from([1, 2, 7, 33, 65, 300]), st.integers(1, 20))
def test_a_draw_does_not_depend_on_the_batch(data: st.DataObject, vocabulary: int, rows: int) -> None:
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(rows)) * 5
    draws = [Draw(data.draw(samplings), data.draw(seeds), data.draw(st.integers(0, 1000))) for _ in range(rows)]
    together = draw_tokens(logits, draws)
    assert together == [draw_tokens(logits[row : row + 1], [draws[row]])[0] for row in range(rows)]
    order = data.draw(st.permutations(range(rows)))
    assert draw_tokens(logits[list(order)], [draws[row] for row in order]) == [together[row] for row in order]
    logs = log_probabilities(logits, together)
    assert logs == [log_probabilities(logits[row : row + 1], [together[row]])[0] for row in range(rows)]


def test_logits_are_not_changed() -> None:
    logits = torch.randn(6, 20)
    before = logits.clone()
    draw_tokens(logits, [Draw(Sampling(0.5, top_k=row, top_p=0.5 + row / 10), row, row) for row in range(6)])
    log_probabilities(logits, [0] * 6)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("top_k", [0, 3])
def test_temperatures_near_zero_draw_as_greedy_and_the_highest_draws_all(top_k: int) -> None:
    assert set(drawn(LOGITS, Sampling(1e-6, top_k=top_k))) == {0}
    assert len(set(drawn(LOGITS, Sampling(100.0, top_k=top_k)))) == (top_k or 7)


def test_impossible_tokens_are_never_drawn() -> None:
    """As far below as float32 goes, and far above."""
    logits = [0.0, -3e38, 1.0, -1e30, -3e38]
    for sampling in (Sampling(), Sampling(100.0), Sampling(top_k=5), Sampling(top_p=0.999999), Sampling(1e-6)):
        assert set(drawn(logits, sampling)) <= {0, 2}
    assert set(drawn([3e38, 3e38, -3e38], Sampling())) == {0, 1}


def test_a_vocabulary_of_one() -> None:
    for sampling in (Sampling(), Sampling(0), Sampling(0.1, top_k=1, top_p=0.1), Sampling(100.0, top_k=9)):
        assert set(drawn([-7.0], sampling, 50)) == {0}
    assert log_probabilities(torch.tensor([[-7.0]]), [0]) == [0.0]


def test_log_probabilities_are_natural_and_before_temperature() -> None:
    logs = log_probabilities(torch.tensor([LOGITS, LOGITS]), [0, 4])
    assert logs == pytest.approx([math.log(softmax(LOGITS)[0]), math.log(softmax(LOGITS)[4])])


@given(seeds, st.integers(0, 2**63))
def test_a_number_is_a_pure_function_of_seed_and_position(seed: int, position: int) -> None:
    (number,) = uniform([seed], [position])
    assert 0 <= number < 1
    assert number == uniform([5, seed, 6], [1, position, 2])[1] == oracle.uniform(seed, position)


def test_numbers_are_even_over_positions_and_over_seeds() -> None:
    for numbers in (uniform([3] * DRAWS, range(DRAWS)), uniform(range(DRAWS), [3] * DRAWS)):
        agrees([int(number * 16) for number in numbers], [1 / 16] * 16)
        steps = [int((later - earlier) % 1 * 16) for earlier, later in itertools.pairwise(numbers)]
        agrees(steps, [1 / 16] * 16)
