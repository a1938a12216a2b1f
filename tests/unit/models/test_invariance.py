"""The same bits, whatever the batch: exact equality of each row alone and in every batch from 1 to 64."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cellstate_service.models import linear
from cellstate_service.models.loading import LoadedModel, load_model
from cellstate_service.models.manifest import Dtype
from cellstate_service.models.networks import Network, StateSpec
from cellstate_service.models.numerics import check_numerics
from tests.models_on_disk import write_feed_forward, write_recurrent

ROWS = 64
WIDTHS = (33, 50, 65, 100, 300)

pytestmark = pytest.mark.skipif(not linear.packing_available(), reason="this torch build lacks the packed operators, so equal bits are not promised")


def rows_of(network: Network, inputs: Tensor, state: Mapping[str, Tensor], rows: slice) -> Tensor:
    """Step some rows; returns [rows, values]: outputs and all new state of each row side by side."""
    outputs, new = network.step(inputs[rows], {name: tensor[:, rows] for name, tensor in state.items()})
    return torch.cat([outputs, *(tensor.transpose(0, 1).flatten(1) for tensor in new.values())], dim=1)


@torch.inference_mode()
def assert_same_bits_in_every_batch(model: LoadedModel) -> None:
    generator = torch.Generator().manual_seed(3)
    network, size = model.network, model.manifest.input.size
    tokens = model.manifest.input.kind == "tokens"
    inputs = torch.randint(size, (ROWS,), generator=generator) if tokens else torch.randn(ROWS, size, generator=generator)
    state = {spec.name: torch.rand(spec.layers, ROWS, spec.width, generator=generator) * 2 - 1 for spec in network.state}
    alone = torch.cat([rows_of(network, inputs, state, slice(row, row + 1)) for row in range(ROWS)])
    for batch in range(1, ROWS + 1):
        assert torch.equal(rows_of(network, inputs, state, slice(batch)), alone[:batch]), f"batch of {batch}"
        assert torch.equal(rows_of(network, inputs, state, slice(ROWS - batch, ROWS)), alone[ROWS - batch :]), f"last {batch} rows"
    assert model.batch_invariant
    assert model.batch_invariant_reason == ""


@pytest.mark.parametrize("hidden_size", WIDTHS)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_awkward_widths(tmp_path: Path, cell: str, hidden_size: int) -> None:
    assert_same_bits_in_every_batch(load_model(write_recurrent(tmp_path / "model", cell=cell, hidden_size=hidden_size, num_layers=2)))


@pytest.mark.parametrize("hidden_size", [1, 3, 8, 32, 128])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_small_and_round_widths(tmp_path: Path, cell: str, hidden_size: int) -> None:
    assert_same_bits_in_every_batch(load_model(write_recurrent(tmp_path / "model", cell=cell, hidden_size=hidden_size, input_kind="numeric")))


def test_projection(tmp_path: Path) -> None:
    assert_same_bits_in_every_batch(load_model(write_recurrent(tmp_path / "model", hidden_size=65, proj_size=33, num_layers=2)))


@pytest.mark.parametrize("outputs", [1, 3, 33])
@pytest.mark.parametrize("activation", ["none", "sigmoid", "softmax"])
def test_numeric_heads(tmp_path: Path, outputs: int, activation: str) -> None:
    output = {"kind": "numeric", "features": outputs, "activation": activation}
    assert_same_bits_in_every_batch(load_model(write_recurrent(tmp_path / "model", input_kind="numeric", outputs=outputs, output=output)))


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "gelu"])
def test_feed_forward(tmp_path: Path, activation: str) -> None:
    assert_same_bits_in_every_batch(load_model(write_feed_forward(tmp_path / "model", hidden_sizes=(33, 1, 100), activation=activation)))


class Neighbourly:
    """A program whose rows depend on their batch, or on how a sequence is cut into chunks."""

    def __init__(self, *, rows: bool) -> None:
        self._rows = rows

    def advance(self, inputs: Tensor, state: list[Tensor]) -> tuple[Tensor, list[list[Tensor]]]:
        steps, rows = inputs.shape[:2]
        disturbed = inputs + (rows // 17 if self._rows else steps // 3)
        return disturbed.flatten(0, 1), [state] * steps

    def head(self, hidden: Tensor) -> Tensor:
        return hidden


@pytest.mark.parametrize(
    ("rows", "reason"),
    [(True, "outputs of a row computed alone and in a batch of 17 differ"), (False, "5 steps of 1 rows taken at once and one by one differ")],
)
def test_self_check_withdraws_the_promise(rows: bool, reason: str) -> None:
    found = check_numerics(Network(Neighbourly(rows=rows), (StateSpec("h", 1, 2),), 2), None, 2)
    assert not found.batch_invariant
    assert found.reason == reason


def test_several_threads_make_no_promise(load_recurrent: Callable[..., LoadedModel]) -> None:
    torch.set_num_threads(2)
    model = load_recurrent()
    assert not model.batch_invariant
    assert model.batch_invariant_reason == "2 threads may share a row of a large batch; one thread keeps the bits"
    assert "/threads-2/" in model.numerics_id


def test_numerics_id_says_what_values_depend_on(load_recurrent: Callable[..., LoadedModel]) -> None:
    parts = load_recurrent().numerics_id.split("/")
    assert parts[0] == f"torch-{torch.__version__}"
    assert parts[1] == torch.backends.cpu.get_cpu_capability().lower()
    assert parts[2:5] == ["float32", "threads-1", "onednn-packed64"]
    assert parts[5].startswith("probe-")


def test_numerics_id_is_the_same_each_time_and_another_with_other_weights(load_recurrent: Callable[..., LoadedModel]) -> None:
    assert load_recurrent().numerics_id == load_recurrent().numerics_id != load_recurrent(seed=9).numerics_id


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("hidden_size", [33, 128])
def test_fallback_is_named_and_right_and_keeps_the_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden_size: int, dtype: Dtype) -> None:
    folder = write_recurrent(tmp_path / "model", num_layers=2, hidden_size=hidden_size)
    packed = load_model(folder, dtype).network
    monkeypatch.setattr(linear, "packing_available", lambda dtype: False)
    fallback = load_model(folder, dtype)
    assert f"/{dtype}/threads-1/aten-tiled16/" in fallback.numerics_id
    tokens, state = torch.arange(9), packed.initial_state(9)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    torch.testing.assert_close(fallback.network.step(tokens, state)[0], packed.step(tokens, state)[0], rtol=0, atol=tolerance)
    assert_same_bits_in_every_batch(fallback)
