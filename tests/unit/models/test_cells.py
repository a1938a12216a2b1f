"""Each cell against its torch.nn counterpart, which is the oracle: same tensors, same names."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cellstate_service.models.loading import load_model
from cellstate_service.models.networks import Network
from tests.models_on_disk import write_recurrent

STEPS, ROWS, FEATURES = 200, 3, 5
CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def counterpart(folder: Path, cell: str, num_layers: int, hidden_size: int, *, bias: bool = True, proj_size: int = 0) -> nn.RNNBase:
    options = {"num_layers": num_layers, "bias": bias}
    if cell == "lstm":
        module: nn.RNNBase = nn.LSTM(FEATURES, hidden_size, proj_size=proj_size, **options)
    elif cell == "gru":
        module = nn.GRU(FEATURES, hidden_size, **options)
    else:
        module = nn.RNN(FEATURES, hidden_size, nonlinearity=cell.removeprefix("rnn_"), **options)
    tensors = load_file(folder / "weights.safetensors")
    module.load_state_dict({name.removeprefix("rnn."): tensor for name, tensor in tensors.items() if name.startswith("rnn.")})
    return module


@torch.inference_mode()
def run(network: Network, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the last layer's h after each step, and the final state."""
    state, hidden = network.initial_state(inputs.shape[1]), []
    for step in inputs:
        _, state = network.step(step, state)
        hidden.append(state["h"][-1])
    return torch.stack(hidden), state


@torch.inference_mode()
def assert_equal_to_torch(folder: Path, module: nn.RNNBase) -> None:
    inputs = torch.randn(STEPS, ROWS, FEATURES, generator=torch.Generator().manual_seed(1))
    expected, final = module(inputs)
    hidden, state = run(load_model(folder).network, inputs)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-5)
    finals = dict(zip(("h", "c"), final if isinstance(final, tuple) else (final,), strict=False))
    assert state.keys() == finals.keys()
    for name, tensor in finals.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_cell_equals_torch(tmp_path: Path, cell: str, num_layers: int, bias: bool) -> None:
    options = {"cell": cell, "num_layers": num_layers, "hidden_size": 33, "bias": bias}
    folder = write_recurrent(tmp_path / "model", input_kind="numeric", input={"kind": "numeric", "features": FEATURES}, features=FEATURES, **options)
    assert_equal_to_torch(folder, counterpart(folder, **options))


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_projected_lstm_equals_torch(tmp_path: Path, num_layers: int) -> None:
    options = {"cell": "lstm", "num_layers": num_layers, "hidden_size": 32, "proj_size": 7}
    folder = write_recurrent(tmp_path / "model", input_kind="numeric", input={"kind": "numeric", "features": FEATURES}, features=FEATURES, **options)
    assert_equal_to_torch(folder, counterpart(folder, **options))
    h, c = load_model(folder).network.state
    assert (h.name, h.layers, h.width, c.name, c.layers, c.width) == ("h", num_layers, 7, "c", num_layers, 32)
