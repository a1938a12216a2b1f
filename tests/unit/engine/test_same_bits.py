"""The same bits, whatever the batch: what a session gets alone it gets among others, in any slot, however it is cut and moved, and whoever comes and goes.

Row counts lie around the edges of kernels, widths are mostly no multiples of a vector.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cellstate_service.engine import scheduler
from cellstate_service.engine.core import EngineCore
from cellstate_service.engine.request import Emit, Form, Generation, Outputs, Request, Sampling
from cellstate_service.engine.resident import Resident
from cellstate_service.engine.runner import Runner
from cellstate_service.engine.state_pool import WorkingSet
from cellstate_service.models import linear
from cellstate_service.models.loading import LoadedModel, load_model
from tests.models_on_disk import write_recurrent
from tests.unit.engine.asking import outbox, resident_of, run, taken
from tests.unit.engine.conftest import FakeClock, new_core

ROWS = (1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 256)
MOST = max(ROWS)
NARROW, WIDE = (1, 8, 32, 33, 50, 65, 100, 128), (300, 650, 1000)
CHEAP_STEP_S = 2e-5
"""Makes the engine take several steps of generation at once."""
COSTLY_STEP_S = 1.5e-2
"""Makes it divide the rows of a batch among its threads."""
CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


@dataclass(frozen=True)
class Kind:
    """Which model."""

    cell: str
    hidden_size: int
    num_layers: int = 1
    proj_size: int = 0
    dtype: str = "float32"
    input_kind: str = "tokens"


narrow_kinds = st.builds(
    Kind,
    cell=st.sampled_from(CELLS),
    hidden_size=st.sampled_from(NARROW),
    num_layers=st.integers(1, 3),
    dtype=st.sampled_from(["float32", "float32", "bfloat16"]),
    input_kind=st.sampled_from(["tokens", "numeric"]),
)
wide_kinds = st.builds(Kind, cell=st.sampled_from(["lstm", "gru"]), hidden_size=st.sampled_from(WIDE), dtype=st.sampled_from(["float32", "bfloat16"]))
projected_kinds = st.builds(
    Kind, cell=st.just("lstm"), hidden_size=st.sampled_from([65, 128]), proj_size=st.sampled_from([7, 33, 64]), num_layers=st.integers(1, 2)
)
kinds = st.one_of(narrow_kinds, wide_kinds, projected_kinds)
Load = Callable[[Kind], LoadedModel]


@pytest.fixture(autouse=True, scope="module")
def small_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "PART_ROWS", 1)
        yield


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Return a model of each kind, made once."""
    made: dict[Kind, LoadedModel] = {}

    def load(kind: Kind) -> LoadedModel:
        if kind not in made:
            parts: dict[str, Any] = {"cell": kind.cell, "hidden_size": kind.hidden_size, "num_layers": kind.num_layers, "input_kind": kind.input_kind}
            folder: Path = write_recurrent(tmp_path_factory.mktemp("bits") / "model", proj_size=kind.proj_size, **parts)
            made[kind] = load_model(folder, kind.dtype)  # type: ignore[arg-type]
        return made[kind]

    return load


def promised(model: LoadedModel) -> bool:
    """Whether this machine's kernels keep the promise for a model, as the self-check says; float32 keeps it wherever the packed operators exist."""
    assert model.batch_invariant or model.network.dtype != "float32" or not linear.packing_available(), model.batch_invariant_reason
    return model.batch_invariant


def some_inputs(model: LoadedModel, steps: int, rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = model.manifest.input.size
    tokens = model.manifest.input.kind == "tokens"
    return torch.randint(size, (steps, rows), generator=generator) if tokens else torch.randn(steps, rows, size, generator=generator)


def working(rows: list[Tensor]) -> WorkingSet:
    return WorkingSet(rows, [], [], torch.empty(0, dtype=torch.int64))


# -- kernels: rows of a batch, steps of a chunk


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds, st.sampled_from(ROWS), st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4]))
def test_a_row_has_the_bits_that_it_has_alone(load: Load, kind: Kind, rows: int, seed: int, threads: int) -> None:
    model = load(kind)
    if not promised(model):
        return
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.rand(rows, spec.width, generator=generator) * 2 - 1 for spec in model.network.state for _ in range(spec.layers)]
    columns.append(torch.zeros(rows, model.network.output_size))
    inputs = some_inputs(model, 1, rows, seed)
    stepping = Runner(model.network)
    together = stepping.consume(working(columns), inputs, every=False, parts=min(threads, rows)).rows
    for row in {0, rows // 2, rows - 1, seed % rows}:
        alone = stepping.consume(working([column[row : row + 1] for column in columns]), inputs[:, row : row + 1], every=False).rows
        for column, (one, all_rows) in enumerate(zip(alone, together, strict=True)):
            assert torch.equal(one[0], all_rows[row]), f"column {column} of row {row}"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds, st.sampled_from([1, 2, 3, 8, 17, 33]), st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from([1, 2, 4]))
def test_a_chunk_has_the_bits_of_its_steps(load: Load, kind: Kind, rows: int, cuts: list[int], threads: int) -> None:
    model = load(kind)
    if not promised(model):
        return
    stepping, inputs = Runner(model.network), some_inputs(model, sum(cuts), rows)
    start = [*model.network.flatten(model.network.initial_state(rows)), torch.zeros(rows, model.network.output_size)]
    one_by_one, in_chunks, at, outputs = start, start, 0, []
    for cut in cuts:
        taken_at_once = stepping.consume(working(in_chunks), inputs[at : at + cut], every=True, parts=min(threads, rows))
        in_chunks = taken_at_once.rows
        for step in range(cut):
            single = stepping.consume(working(one_by_one), inputs[at + step : at + step + 1], every=False)
            one_by_one = single.rows
            outputs.append(torch.equal(single.outputs[0], taken_at_once.outputs[step]))
        at += cut
    assert all(outputs)
    assert all(torch.equal(left, right) for left, right in zip(one_by_one, in_chunks, strict=True))


# -- sessions: whole engines


parts = st.one_of(
    st.tuples(st.just("consume"), st.lists(st.integers(1, 12), min_size=1, max_size=4), st.sampled_from(list(Emit))),
    st.tuples(st.just("generate"), st.integers(1, 30), st.sampled_from([Sampling(0.0), Sampling(0.8), Sampling(1.2, top_k=5), Sampling(1.0, top_p=0.7)])),
)
Part = tuple[Any, ...]


@dataclass
class Caller:
    """One session: what it asks for, and what it was told."""

    model: LoadedModel
    seed: int
    parts: list[Part]

    def requests(self, box: Any, *, cut: bool) -> list[Request]:
        """Return its requests: chunks as they are cut, or each part as one."""
        made: list[Request] = []
        for number, (kind, size, how) in enumerate(self.parts):
            if kind == "generate":
                made.append(Request(box, generation=Generation(size), form=self.form, sampling=how))
                continue
            inputs = some_inputs(self.model, sum(size), 1, seed=self.seed + number)[:, 0].numpy()
            pieces = np.split(inputs, np.cumsum(size)[:-1]) if cut and how is not Emit.LAST else [inputs]
            made += [Request(box, inputs=piece, emit=how, form=self.raw) for piece in pieces]
        return made

    @property
    def form(self) -> Form:
        return Form.TOKENS if self.model.manifest.input.kind == "tokens" else Form.VALUES

    @property
    def raw(self) -> Form:
        return Form.LOGITS if self.model.manifest.input.kind == "tokens" else Form.VALUES


def told(core: EngineCore, box: Any) -> list[tuple[int, bytes]]:
    """Position and bytes of everything that was emitted, step by step."""
    events = [event for event in taken(core, box) if isinstance(event, Outputs)]
    return [(event.first_position + index, np.asarray(value).tobytes()) for event in events for index, value in enumerate(event.values)]


def state_of(core: EngineCore, resident: Resident) -> tuple[Any, ...]:
    state = core.slots.read(resident)
    return state.position, {name: array.tobytes() for name, array in state.tensors.items()}, None if state.last_output is None else state.last_output.tobytes()


def alone(caller: Caller) -> tuple[list[tuple[int, bytes]], tuple[Any, ...]]:
    core, box = new_core(caller.model, FakeClock()), outbox()
    resident = resident_of(caller.model, caller.seed)
    for request in caller.requests(box, cut=False):
        core.accept(resident, request)
    run(core)
    return told(core, box), state_of(core, resident)


class Crowd:
    """Callers that share an engine, while others pass through it."""

    def __init__(self, model: LoadedModel, asked: list[list[Part]], most_rows: int, threads: int, step_s: float) -> None:
        self.model = model
        self.core = new_core(model, FakeClock(step_s), max_batch_rows=most_rows, slots=24, threads=threads)
        self.callers = [Caller(model, 100 * number, wanted) for number, wanted in enumerate(asked)]
        self.boxes = [outbox(window=7) for _ in asked]
        self.residents = [resident_of(model, caller.seed) for caller in self.callers]
        self.waiting = [caller.requests(box, cut=True) for caller, box in zip(self.callers, self.boxes, strict=True)]
        if model.start_value is None:
            self.waiting = [requests if requests[0].inputs is not None else [] for requests in self.waiting]
        self.passing: list[Resident] = []

    def step(self, number: int) -> None:
        self.core.step()

    def join(self, number: int) -> None:
        if self.waiting[number]:
            self.core.accept(self.residents[number], self.waiting[number].pop(0))

    def come(self, number: int) -> None:
        if len(self.passing) < 4:
            self.passing.append(resident_of(self.model, number))
            self.core.accept(self.passing[-1], Request(outbox(), inputs=some_inputs(self.model, 3, 1)[:, 0].numpy()))

    def go(self, number: int) -> None:
        if self.passing:
            self.core.release(self.passing.pop())

    def move(self, number: int) -> None:
        """What export, delete and import do."""
        resident = self.residents[number]
        if resident.slot is not None and not resident.requests:
            self.residents[number] = resident_of(self.model, self.callers[number].seed)
            self.core.slots.acquire(self.residents[number], self.core.slots.read(resident))
            self.core.release(resident)

    def read(self, number: int) -> None:
        """Take all that waits, as a caller that reads."""
        self.boxes[number].taken = self.boxes[number].sent
        if self.boxes[number].paused:
            self.core.make_ready(self.residents[number])

    def finish(self) -> None:
        for number, requests in enumerate(self.waiting):
            while requests:
                self.join(number)
        for _ in range(2000):
            if not any(resident.requests for resident in self.residents):
                return
            for number in range(len(self.callers)):
                self.read(number)
            self.core.step()
        raise AssertionError("work goes on without end")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    narrow_kinds,
    st.lists(st.lists(parts, min_size=1, max_size=4), min_size=2, max_size=9),
    st.integers(1, 9),
    st.sampled_from([(1, CHEAP_STEP_S), (1, COSTLY_STEP_S), (4, COSTLY_STEP_S)]),
    st.lists(st.tuples(st.sampled_from([Crowd.step, Crowd.step, Crowd.join, Crowd.come, Crowd.go, Crowd.move, Crowd.read]), st.integers(0, 8)), max_size=60),
)
def test_a_session_is_not_changed_by_who_comes_and_goes(
    load: Load, kind: Kind, asked: list[list[Part]], most_rows: int, computed: tuple[int, float], schedule: list[tuple[Callable[[Crowd, int], None], int]]
) -> None:
    model = load(kind)
    if not promised(model):
        return
    crowd = Crowd(model, asked, most_rows, *computed)
    for act, number in schedule:
        act(crowd, number % len(asked))
    crowd.finish()
    for caller, box, resident in zip(crowd.callers, crowd.boxes, crowd.residents, strict=True):
        if resident.position:
            assert (told(crowd.core, box), state_of(crowd.core, resident)) == alone(caller)
