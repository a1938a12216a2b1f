"""Batching ablation in process: the same step function under three ways of batching requests of mixed lengths.

A closed population of callers: each asks for a sequence of so many steps, and asks anew as soon as it is answered. Lengths are log-normal. Compared are

- none: one request after the other, in the order of arrival;
- request-level: what waits makes up a batch, which runs as long as its longest request (shorter ones are padded) and is answered at its end;
- step-level: every step takes all requests that have a step left; they join and leave between two steps.

Rates count the steps that were asked for, not padding.
"""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.figures import percentile
from benchmarks.peers.steppers import STEPPERS
from benchmarks.places import MODELS
from benchmarks.run import Run
from benchmarks.samples import Sample

MEDIAN_STEPS, SIGMA, LONGEST = 40.0, 1.0, 1000
_RANDOM_SEED = 3


@dataclass(slots=True)
class Asked:
    """A request: steps left, and when it was made."""

    steps: int
    left: int
    since_s: float


class Population:
    """Callers that ask, wait, and ask anew. Requests that wait are in the order of arrival.

    Args:
        callers: Their number.
        seconds: For how long they ask.
    """

    def __init__(self, callers: int, seconds: float) -> None:
        self._lengths = _lengths()
        self.began_s = time.perf_counter()
        self._until_s = self.began_s + seconds
        self.waiting = [self._ask() for _ in range(callers)]
        self.steps = 0
        self.latencies_s: list[float] = []

    @property
    def asking(self) -> bool:
        """The time is not over."""
        return time.perf_counter() < self._until_s

    def answer(self, asked: Asked) -> None:
        """Answer a request; its caller asks anew."""
        self.steps += asked.steps
        self.latencies_s.append(time.perf_counter() - asked.since_s)
        self.waiting.append(self._ask())

    def _ask(self) -> Asked:
        steps = next(self._lengths)
        return Asked(steps, steps, time.perf_counter())

    def figures(self) -> dict[str, float]:
        """Return rates and latencies."""
        seconds = time.perf_counter() - self.began_s
        latencies_s = self.latencies_s
        return {
            "rate": self.steps / seconds,
            "requests_per_s": len(latencies_s) / seconds,
            "mean_ms": 1e3 * sum(latencies_s) / max(1, len(latencies_s)),
            "p99_ms": 1e3 * percentile(latencies_s, 0.99),
        }


def _lengths() -> Iterator[int]:
    generator = random.Random(_RANDOM_SEED)  # noqa: S311 (reproducible lengths)
    while True:
        yield min(LONGEST, max(1, round(MEDIAN_STEPS * generator.lognormvariate(0.0, SIGMA))))


class Stepping:
    """The step that all three share, with state for each row."""

    def __init__(self, folder: Path) -> None:
        self._step = STEPPERS["packed"](folder)

    def run(self, rows: int, steps: int) -> None:
        """Step the same rows so many times from a fresh state."""
        h, c, tokens = self._step.zeros(rows), self._step.zeros(rows), torch.zeros(rows, dtype=torch.int64)
        for _ in range(steps):
            logits, h, c = self._step(tokens, h, c)
            tokens = logits.argmax(1)

    def pool(self, slots: int) -> "Pool":
        """Return state for rows that come and go."""
        return Pool(self._step.zeros(slots), self._step.zeros(slots), torch.zeros(slots, dtype=torch.int64), self._step)


@dataclass(slots=True)
class Pool:
    """State [layers, slots, hidden] and the next token of each slot."""

    h: torch.Tensor
    c: torch.Tensor
    tokens: torch.Tensor
    step: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]

    def clear(self, slot: int) -> None:
        """Begin a sequence in a slot."""
        self.h[:, slot], self.c[:, slot], self.tokens[slot] = 0, 0, 0

    def advance(self, slots: list[int]) -> None:
        """Take a step of these slots: gather, compute, scatter."""
        index = torch.tensor(slots)
        logits, h, c = self.step(self.tokens[index], self.h[:, index], self.c[:, index])
        self.h[:, index], self.c[:, index], self.tokens[index] = h, c, logits.argmax(1)


def unbatched(population: Population, stepping: Stepping, rows: int) -> None:
    """Serve one request after the other."""
    del rows
    while population.asking:
        asked = population.waiting.pop(0)
        stepping.run(1, asked.steps)
        population.answer(asked)


def request_level(population: Population, stepping: Stepping, rows: int) -> None:
    """Serve batches of whole requests."""
    while population.asking:
        batch, population.waiting[:] = population.waiting[:rows], population.waiting[rows:]
        stepping.run(len(batch), max(asked.steps for asked in batch))
        for asked in batch:
            population.answer(asked)


def step_level(population: Population, stepping: Stepping, rows: int) -> None:
    """Serve the next step of all requests that run."""
    pool, running, free = stepping.pool(rows), dict[int, Asked](), list(range(rows))
    while population.asking:
        while free and population.waiting:
            slot = free.pop()
            running[slot] = population.waiting.pop(0)
            pool.clear(slot)
        pool.advance(list(running))
        for slot, asked in list(running.items()):
            asked.left -= 1
            if not asked.left:
                del running[slot]
                free.append(slot)
                population.answer(asked)


WAYS = {"none": unbatched, "request-level": request_level, "step-level": step_level}


def measure(run: Run) -> None:
    """Measure the three ways in turns, with room for half of the callers in a batch, so that requests also wait."""
    options = run.options
    model, rows = options.models[0], max(1, options.callers // 2)
    seconds = 4 * options.measure_s
    torch.set_num_threads(1)
    with run.item("batching ablation", options.rounds * len(WAYS)), torch.inference_mode():
        stepping = Stepping(MODELS / model)
        for turn in range(options.rounds):
            for way, serve in WAYS.items():
                run.now(way)
                population = Population(options.callers, seconds)
                serve(population, stepping, rows)
                run.record(Sample("ablation", model, way, "", options.callers, turn, population.figures()))
