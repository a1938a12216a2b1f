"""What a session had to get: a plain loop over the model's own cell, one row and one step at a time, in a process of its own.

The cell is the server's (`cellstate_service.models`), for the bits of a float32 product depend on how it is computed, and the server promises those of the row
alone; nothing else of the server is used. Draws are written here anew, in numpy: a number in [0, 1) that seed and position decide (`tests/oracle.py`), laid
over the cumulative probabilities.
"""

import itertools
import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cellstate_service.models.loading import LoadedModel, load_model
from tests.crash.records import Draws, Exchange, Transcript, Verdict
from tests.oracle import uniform

NICENESS = 10
TOLD = 3
"""Differences of one session that are told."""


class Cell:
    """One session's state, position and last output."""

    def __init__(self, model: LoadedModel, seed: int) -> None:
        assert model.batch_invariant, model.batch_invariant_reason
        self._model = model
        self._program = model.network.program
        self._state = model.network.flatten(model.network.initial_state(1))
        self.seed = seed
        self.position = 0
        self.last: NDArray[np.float32] | None = None
        self.tail = ""

    @property
    def tokens(self) -> bool:
        return self._model.manifest.output.kind == "tokens"

    def take(self, value: Any) -> NDArray[np.float32]:
        """Take one step and return its output."""
        given = torch.tensor([[int(value)]]) if self.tokens else torch.tensor(np.array(value, dtype=np.float32).reshape(1, 1, -1))
        hidden, states = self._program.advance(given, self._state)
        self._state = states[-1]
        self.last = self._program.head(hidden)[0].numpy().copy()
        self.position += 1
        return self.last

    def begin(self) -> None:
        """Feed the start value, where no step was taken."""
        if self.last is None:
            self.tail = ""
            self.take(self._model.start_value)

    def draw(self, draws: Draws) -> int:
        """Return the token that the last output draws here."""
        assert self.last is not None
        seed = self.seed if draws.seed is None else draws.seed
        return draw(self.last, draws, uniform(seed, self.position))

    def text(self, token: int) -> str:
        assert self._model.tokenizer is not None
        return self._model.tokenizer.decode([token])


def draw(logits: NDArray[np.float32], draws: Draws, point: float) -> int:
    """Return one token. Temperature and top-p travel as float32."""
    temperature, top_p = float(np.float32(draws.temperature)), float(np.float32(draws.top_p))
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / temperature
    order = np.arange(len(scaled)) if not draws.top_k and top_p >= 1 else np.argsort(-scaled, kind="stable")
    weights = scaled[order][: draws.top_k or None]
    weights = np.exp(weights - weights.max())
    weights /= weights.sum()
    if top_p < 1:
        kept = int((weights.cumsum() - weights < top_p).sum())
        weights = weights[: max(kept, 1)]
    reached = weights.cumsum()
    return int(order[min(int((reached <= point * reached[-1]).sum()), len(reached) - 1)])


def outputs(cell: Cell, exchange: Exchange) -> Iterator[tuple[int, Any]]:
    """Yield what an exchange emits: the position before each step that emits, and its value. Moves the cell."""
    for number, chunk in enumerate(exchange.chunks):
        for index, value in enumerate(chunk):
            cell.take(value)
            cell.tail = ""
            last = index == len(chunk) - 1 and (exchange.emit == "last" or number == len(exchange.chunks) - 1)
            if exchange.emit == "all" or (exchange.emit in {"last", "end"} and last):
                yield cell.position - 1, _answered(cell, exchange)
    if exchange.steps is None:
        return
    cell.begin()
    for _ in range(_limit(exchange)):
        value = cell.draw(exchange.draws or Draws()) if cell.tokens else cell.last
        cell.take(value)
        if cell.tokens and exchange.form == "text":
            yield cell.position - 1, cell.text(value)
        else:
            yield cell.position - 1, value
        if exchange.stops:
            cell.tail += cell.text(value)
            if cell.tail.endswith(exchange.stops):
                return


def check(cell: Cell, exchange: Exchange) -> Iterator[str]:
    """Yield what is wrong with the answers to an exchange: all of them where it was done, else those that came."""
    got = list(_steps(exchange))
    taken = 0
    generated_from = cell.position + sum(map(len, exchange.chunks))
    generated_from += cell.last is None and not exchange.chunks  # the start value takes a step
    for index, (position, value) in enumerate(itertools.islice(outputs(cell, exchange), None if exchange.done else len(got))):
        taken += 1
        if index >= len(got):
            yield f"{exchange.kind}: the output of step {position} is missing"
            return
        if got[index][0] != position:
            yield f"{exchange.kind}: an output of step {got[index][0]} came in place of that of step {position}"
            return
        if not _same(got[index][1], value):
            yield f"{exchange.kind}: step {position} expected {_shown(value)}, got {_shown(got[index][1])}"
            return
    if len(got) > taken:
        yield f"{exchange.kind}: {len(got) - taken} outputs too many, from step {got[taken][0]} on"
    if exchange.done:
        yield from _check_end(cell, exchange, cell.position - generated_from)


def verdict(transcript: Transcript, model: LoadedModel) -> Verdict:
    """Check a session. After its first difference nothing that follows can be right, so that is not looked at."""
    cell = Cell(model, transcript.seed)
    with torch.inference_mode():
        for number, exchange in enumerate(transcript.exchanges):
            found = list(itertools.islice(check(cell, exchange), TOLD))
            if found:
                return Verdict(cell.position, [f"exchange {number}, {each}" for each in found])
    return Verdict(cell.position, [])


class Checker:
    """Checks transcripts in processes of their own, which yield to the servers."""

    def __init__(self, models: Path, processes: int = 1) -> None:
        self._pool = ProcessPoolExecutor(processes, get_context("spawn"), _prepare, (str(models),))

    async def check(self, transcript: Transcript, loop: Any) -> Verdict:
        return await loop.run_in_executor(self._pool, _checked, transcript)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


_folder: list[Path] = []


def _prepare(models: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    torch.set_num_threads(1)
    _folder.append(Path(models))


@cache
def _loaded(name: str) -> LoadedModel:
    return load_model(_folder[0] / name)


def _checked(transcript: Transcript) -> Verdict:
    return verdict(transcript, _loaded(transcript.model))


def _limit(exchange: Exchange) -> int:
    """Return how many steps are generated unless a stop sequence ends it: where a directive stopped it, as many as that says."""
    stopped = exchange.reason == "stop_directive" and exchange.generated is not None
    return min(exchange.steps or 0, exchange.generated or 0) if stopped else exchange.steps or 0


def _check_end(cell: Cell, exchange: Exchange, generated: int) -> Iterator[str]:
    reason = None
    if exchange.steps is not None:
        stopped = bool(exchange.stops) and cell.tail.endswith(exchange.stops)
        whole = generated == exchange.steps and exchange.reason != "stop_directive"  # a stop may take effect at the last step
        reason = "stop_sequence" if stopped else "max_steps" if whole else "stop_directive"
    told: Mapping[str, tuple[Any, Any]] = {
        "position": (cell.position, exchange.position),
        "reason": (reason, exchange.reason),
        "generated steps": (generated if exchange.steps is not None else None, exchange.generated),
    }
    for name, (expected, got) in told.items():
        if expected is not None and got is not None and expected != got:
            yield f"{exchange.kind}: it ended with {name} {got}, expected {expected}"


def _answered(cell: Cell, exchange: Exchange) -> Any:
    if exchange.form in {"values", "logits"}:
        return cell.last
    token = cell.draw(exchange.draws or Draws())
    return cell.text(token) if exchange.form == "text" else token


def _steps(exchange: Exchange) -> Iterator[tuple[int, Any]]:
    """Yield what came step by step, each with its position. Every token of these models is one character of text."""
    for first, after, data in exchange.pieces:
        if data is not None:
            last = after if first + len(data) == after else -1  # values that do not fill their message are no steps at all
            yield from ((first + index if last == after else last, value) for index, value in enumerate(data))


def _same(got: Any, expected: Any) -> bool:
    if isinstance(expected, np.ndarray):
        got = np.asarray(got)
        return got.dtype == np.float32 and got.shape == expected.shape and got.tobytes() == expected.tobytes()
    return bool(got == expected)


def _shown(value: Any) -> str:
    return value.tobytes().hex() + f" ({value[:3]}…)" if isinstance(value, np.ndarray) else repr(value)
