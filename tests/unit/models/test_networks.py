"""Embeddings, normalization, heads and feed-forward networks against torch.nn, and what a step must not do."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cellstate_service.models import networks
from cellstate_service.models.loading import LoadedModel, load_model
from tests.models_on_disk import write_feed_forward, write_recurrent

Load = Callable[..., LoadedModel]
ROWS = 9


def linear(tensors: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


@torch.inference_mode()
def test_token_model_equals_embedding_lstm_and_linear(tmp_path: Path) -> None:
    folder = write_recurrent(tmp_path / "model", vocabulary_size=65, num_layers=2, hidden_size=24)
    tensors = load_file(folder / "weights.safetensors")
    module = nn.LSTM(8, 24, 2)
    module.load_state_dict({name.removeprefix("rnn."): tensor for name, tensor in tensors.items() if name.startswith("rnn.")})
    tokens = torch.randint(65, (20, ROWS), generator=torch.Generator().manual_seed(0))
    expected = linear(tensors, "head", module(tensors["embedding.weight"][tokens])[0])
    network = load_model(folder).network
    state = network.initial_state(ROWS)
    for step, logits in zip(tokens, expected, strict=True):
        outputs, state = network.step(step, state)
        assert outputs.shape == (ROWS, network.output_size) == (ROWS, 65)
        torch.testing.assert_close(outputs, logits, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_large_embedding_gives_the_bits_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_recurrent(tmp_path / "model", vocabulary_size=65, hidden_size=33)
    tokens = torch.arange(ROWS)
    tabulated = load_model(folder).network
    monkeypatch.setattr(networks, "MAX_TABLE_BYTES", 0)
    embedded = load_model(folder).network
    state = tabulated.initial_state(ROWS)
    assert torch.equal(tabulated.step(tokens, state)[0], embedded.step(tokens, state)[0])


@torch.inference_mode()
def test_numeric_values_are_normalized_and_denormalized(tmp_path: Path) -> None:
    folder = write_recurrent(tmp_path / "model", cell="rnn_tanh", input_kind="numeric", features=3)
    tensors = load_file(folder / "weights.safetensors")
    x = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(0)) * 10
    mean, scale = torch.tensor([0.5, 0.75, 1.0]), torch.tensor([1.5, 2.0, 2.5])
    hidden = torch.tanh(
        nn.functional.linear((x - mean) / scale, tensors["rnn.weight_ih_l0"], tensors["rnn.bias_ih_l0"]) + tensors["rnn.bias_hh_l0"],
    )
    network = load_model(folder).network
    torch.testing.assert_close(network.step(x, network.initial_state(ROWS))[0], linear(tensors, "head", hidden) * scale + mean, rtol=0, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_output_activation(load_recurrent: Load, tmp_path: Path, activation: str) -> None:
    output = {"kind": "numeric", "features": 3}
    plain = load_recurrent(output_kind="numeric", outputs=3, output=output).network
    active = load_recurrent(output_kind="numeric", outputs=3, output=output | {"activation": activation}).network
    tokens, state = torch.arange(ROWS), plain.initial_state(ROWS)
    raw = plain.step(tokens, state)[0]
    expected = raw.softmax(1) if activation == "softmax" else raw.sigmoid()
    torch.testing.assert_close(active.step(tokens, state)[0], expected, rtol=0, atol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("hidden_sizes", [(), (16,), (33, 65, 7)])
@pytest.mark.parametrize(("activation", "module"), [("relu", nn.ReLU), ("tanh", nn.Tanh), ("sigmoid", nn.Sigmoid), ("gelu", nn.GELU)])
def test_feed_forward_equals_sequential(tmp_path: Path, hidden_sizes: tuple[int, ...], activation: str, module: type[nn.Module]) -> None:
    plain = {"input": {"kind": "numeric", "features": 4}, "output": {"kind": "numeric", "features": 3}}
    folder = write_feed_forward(tmp_path / "model", hidden_sizes=hidden_sizes, activation=activation, **plain)
    tensors = load_file(folder / "weights.safetensors")
    layers: list[nn.Module] = []
    names = [*(f"layers.{index}" for index in range(len(hidden_sizes))), "head"]
    for name in names:
        layer = nn.Linear(*reversed(tensors[f"{name}.weight"].shape))
        layer.load_state_dict({part: tensors[f"{name}.{part}"] for part in ("weight", "bias")})
        layers += [layer, module()]
    x = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0))
    network = load_model(folder).network
    outputs, state = network.step(x, {})
    assert state == network.initial_state(ROWS) == {}
    torch.testing.assert_close(outputs, nn.Sequential(*layers[:-1])(x), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_feed_forward_takes_tokens(tmp_path: Path) -> None:
    folder = write_feed_forward(tmp_path / "model", features=8, input={"kind": "tokens", "vocabulary_size": 5, "embedding_dim": 8})
    weights = folder / "weights.safetensors"
    tensors = load_file(weights) | {"embedding.weight": torch.randn(5, 8)}
    save_file(tensors, weights)
    network = load_model(folder).network
    hidden = linear(tensors, "layers.0", tensors["embedding.weight"]).relu()
    scale, mean = torch.tensor([1.5, 2.0, 2.5]), torch.tensor([0.5, 0.75, 1.0])
    torch.testing.assert_close(network.step(torch.arange(5), {})[0], linear(tensors, "head", hidden) * scale + mean, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_dropout_is_inert(load_recurrent: Load) -> None:
    tokens = torch.arange(ROWS)
    kept, dropped = (load_recurrent(num_layers=2, dropout=dropout).network for dropout in (0.0, 0.9))
    assert torch.equal(kept.step(tokens, kept.initial_state(ROWS))[0], dropped.step(tokens, dropped.initial_state(ROWS))[0])


@torch.inference_mode()
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
@pytest.mark.parametrize("hidden_size", [32, 33])
@pytest.mark.parametrize("input_kind", ["tokens", "numeric"])
def test_step_changes_nothing_it_is_given(load_recurrent: Load, cell: str, hidden_size: int, input_kind: str) -> None:
    network = load_recurrent(cell=cell, hidden_size=hidden_size, num_layers=2, input_kind=input_kind).network
    inputs = torch.arange(ROWS) if input_kind == "tokens" else torch.randn(ROWS, 1)
    state = {spec.name: torch.rand(spec.layers, ROWS, spec.width) for spec in network.state}
    before, given = {name: tensor.clone() for name, tensor in state.items()}, inputs.clone()
    first, new = network.step(inputs, state)
    kept = {name: tensor.clone() for name, tensor in new.items()}
    second, _ = network.step(inputs, state)
    assert torch.equal(inputs, given)
    assert torch.equal(first, second)
    for name, tensor in before.items():
        assert torch.equal(state[name], tensor)
        assert torch.equal(new[name], kept[name])
        assert new[name].is_contiguous()


@torch.inference_mode()
def test_state_is_paired_by_name(load_recurrent: Load) -> None:
    network = load_recurrent().network
    state = {spec.name: torch.rand(spec.layers, ROWS, spec.width) for spec in network.state}
    reversed_state = dict(reversed(state.items()))
    assert torch.equal(network.step(torch.arange(ROWS), state)[0], network.step(torch.arange(ROWS), reversed_state)[0])


@torch.inference_mode()
def test_not_a_number_stays_in_its_row(load_recurrent: Load) -> None:
    network = load_recurrent(num_layers=2, hidden_size=33, cell="lstm").network
    state = {spec.name: torch.rand(spec.layers, ROWS, spec.width) for spec in network.state}
    clean, _ = network.step(torch.arange(ROWS), state)
    state["h"][0, 4, 7] = float("nan")
    outputs, new = network.step(torch.arange(ROWS), state)
    others = [row for row in range(ROWS) if row != 4]
    assert outputs[4].isnan().all()
    assert torch.equal(outputs[others], clean[others])
    assert all(tensor[:, others].isfinite().all() for tensor in new.values())
