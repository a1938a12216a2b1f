"""What the tests of the engine share: one thread for torch, a clock that stands still, and a core over a tiny real model."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cellstate_service.engine.core import EngineCore, StepLimits
from cellstate_service.engine.processors import Processors
from cellstate_service.engine.state_pool import StatePool
from cellstate_service.models.loading import LoadedModel, load_model
from cellstate_service.models.networks import Program
from cellstate_service.observability.metrics import Metrics
from tests.models_on_disk import write_recurrent


class Breakable:
    """A program whose next calls raise, each where it is told to."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.breaks: set[str] = set()

    def advance(self, inputs: Tensor, state: list[Tensor]) -> tuple[Tensor, list[list[Tensor]]]:
        self._maybe("advance")
        return self._program.advance(inputs, state)

    def head(self, hidden: Tensor) -> Tensor:
        self._maybe("head")
        return self._program.head(hidden)

    def _maybe(self, where: str) -> None:
        if where in self.breaks:
            self.breaks.remove(where)
            raise RuntimeError("injected")


def breakable(model: LoadedModel) -> tuple[LoadedModel, Breakable]:
    program = Breakable(model.network.program)
    return replace(model, network=replace(model.network, program=program)), program


class FakeClock:
    """Stands still unless told. Every reading of the processor's time costs some."""

    def __init__(self, cost_s: float = 0.0) -> None:
        self.time_s = 100.0
        self.cost_s = cost_s
        self._used_s = 0.0

    def now(self) -> float:
        return self.time_s

    def monotonic(self) -> float:
        return self.time_s

    def thread_time(self) -> float:
        self._used_s += self.cost_s
        return self._used_s


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="session")
def tokens_model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(write_recurrent(tmp_path_factory.mktemp("engine") / "tokens", characters="abcdefg", hidden_size=8, embedding_dim=4, seed=3))


@pytest.fixture(scope="session")
def numeric_model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(write_recurrent(tmp_path_factory.mktemp("engine") / "numbers", cell="gru", input_kind="numeric", hidden_size=8, seed=4))


def new_core(model: LoadedModel, clock: Any, *, max_batch_rows: int = 8, slots: int = 16, threads: int = 1) -> EngineCore:
    pool = StatePool(model.network.state, model.network.output_size, slots)
    return EngineCore(model, pool, StepLimits(max_batch_rows), Processors(threads, clock), Metrics().for_model(model.name), clock)
