"""Steps per second in process, without any server: ours beside what plain torch offers and beside the bare matrix products.

Everything runs on one torch thread in one process, and the subjects take many short turns, so that they meet the same machine.
"""

import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.peers.steppers import CellStepper
from benchmarks.places import MODELS
from benchmarks.run import Run
from benchmarks.samples import Sample
from cellstate_service.engine.runner import Runner
from cellstate_service.engine.state_pool import WorkingSet
from cellstate_service.models import linear
from cellstate_service.models.loading import load_model
from cellstate_service.models.manifest import Dtype

PACKING_ROWS = 64
# Length of a turn, and turns for each round of the run. A turn begins with calls that do not count.
SLICE_S, TURNS, WARM_CALLS = 0.05, 7, 2
Advance = Callable[[], None]


def ours(folder: Path, rows: int, dtype: Dtype | None = None) -> Advance:
    """Return what takes one step of `rows` sequences by this project's runner, as the engine calls it: working set carried, every row checked to be finite."""
    network = load_model(folder, dtype).network
    runner = Runner(network)
    tokens = (torch.arange(rows) % 32).unsqueeze(0)
    carried = [[*network.flatten(network.initial_state(rows)), torch.zeros(rows, network.output_size)]]

    def advance() -> None:
        carried[0] = runner.consume(WorkingSet(carried[0], [], [], tokens[0]), tokens, every=False).rows

    return advance


def ours_in_bfloat16(folder: Path, rows: int) -> Advance:
    """Return the same with the products in bfloat16."""
    return ours(folder, rows, "bfloat16")


def ours_without_packing(folder: Path, rows: int) -> Advance:
    """Return the same with the kernel that is taken where this torch has no packed products."""
    with mock.patch.object(linear, "packing_available", return_value=False):
        return ours(folder, rows)


def lstm_cell(folder: Path, rows: int) -> Advance:
    """Return a step by `torch.lstm_cell`."""
    step = CellStepper(folder)
    tokens = torch.arange(rows) % 32
    carried = [step.zeros(rows), step.zeros(rows)]

    def advance() -> None:
        _, carried[0], carried[1] = step(tokens, carried[0], carried[1])

    return advance


def nn_lstm(folder: Path, rows: int) -> Advance:
    """Return a step by `torch.nn.LSTM`, called with one time step."""
    weights = CellStepper(folder).weights
    vocabulary, embedding = weights["embedding.weight"].shape
    layers, hidden = sum(name.startswith("rnn.weight_hh_l") for name in weights), weights["rnn.weight_hh_l0"].shape[1]
    parts = nn.ModuleDict({"embedding": nn.Embedding(vocabulary, embedding), "rnn": nn.LSTM(embedding, hidden, layers), "head": nn.Linear(hidden, vocabulary)})
    parts.load_state_dict(weights)
    tokens = torch.arange(rows) % 32
    carried = [(torch.zeros(layers, rows, hidden), torch.zeros(layers, rows, hidden))]

    def advance() -> None:
        outputs, carried[0] = parts["rnn"](parts["embedding"](tokens).unsqueeze(0), carried[0])
        parts["head"](outputs[0])

    return advance


def products(folder: Path, rows: int) -> Advance:
    """Return the bare products of a step, prepacked: for each layer [x, h] by both weights together, and the head."""
    weights = CellStepper(folder).weights
    layers = sum(name.startswith("rnn.weight_hh_l") for name in weights)
    matrices = [torch.cat([weights[f"rnn.weight_ih_l{layer}"], weights[f"rnn.weight_hh_l{layer}"]], 1) for layer in range(layers)]
    return _multiply([*matrices, weights["head.weight"]], rows)


def tabulated_products(folder: Path, rows: int) -> Advance:
    """Return the bare products of a step that looks the first layer's input product up: h by its weight, in later layers also x by its own, and the head."""
    weights = CellStepper(folder).weights
    layers = sum(name.startswith("rnn.weight_hh_l") for name in weights)
    matrices = [weights[f"rnn.weight_{kind}_l{layer}"] for layer in range(layers) for kind in ("ih", "hh") if layer or kind == "hh"]
    return _multiply([*matrices, weights["head.weight"]], rows)


def _multiply(matrices: list[Tensor], rows: int) -> Advance:
    """Return what multiplies [rows, inputs] by each matrix [outputs, inputs], with a bias, all prepacked."""
    packed = [torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), PACKING_ROWS) for matrix in matrices]
    operands = [(torch.randn(rows, matrix.shape[1]), weight, torch.zeros(matrix.shape[0])) for matrix, weight in zip(matrices, packed, strict=True)]
    product = torch.ops.mkldnn._linear_pointwise

    def advance() -> None:
        for x, weight, bias in operands:
            product(x, weight, bias, "none", [], "")

    return advance


SUBJECTS: dict[str, Callable[[Path, int], Advance]] = {
    "cellstate": ours,
    "cellstate, bfloat16": ours_in_bfloat16,
    f"cellstate, aten-tiled{linear.TILE_ROWS}": ours_without_packing,
    "torch.lstm_cell": lstm_cell,
    "torch.nn.LSTM": nn_lstm,
    "bare products": products,
    "bare products, first layer tabulated": tabulated_products,
}


def steps_per_s(advance: Advance, rows: int, seconds: float) -> float:
    """Return row steps per second of calling `advance` for a while."""
    for _ in range(WARM_CALLS):
        advance()
    calls, began_s = 0, time.perf_counter()
    while time.perf_counter() - began_s < seconds:
        advance()
        calls += 1
    return calls * rows / (time.perf_counter() - began_s)


def measure(run: Run) -> None:
    """Measure all subjects at all sizes, in turns."""
    options = run.options
    rounds = TURNS * options.rounds
    torch.set_num_threads(1)
    with run.item("in process", len(options.models) * len(options.rows) * len(SUBJECTS) * rounds), torch.inference_mode():
        for model in options.models:
            for rows in options.rows:
                advances = {subject: make(MODELS / model, rows) for subject, make in SUBJECTS.items()}
                for turn in range(rounds):
                    for subject, advance in advances.items():
                        run.now(f"{model}, {rows} rows, {subject}")
                        run.record(Sample("inproc", model, subject, "", rows, turn, {"rate": steps_per_s(advance, rows, SLICE_S)}))
