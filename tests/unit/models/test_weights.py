"""Weights are taken only if they are exactly what the manifest declares; every refusal names file and tensor."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cellstate_service.models.errors import ModelError
from cellstate_service.models.loading import load_model
from tests.models_on_disk import write_recurrent

Change = Callable[[dict[str, Tensor]], object]


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    beginning = f"{folder / 'weights.safetensors'}: "
    assert str(caught.value).startswith(beginning)
    return str(caught.value).removeprefix(beginning)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_recurrent(tmp_path / "model", input_kind="numeric", features=2)


def rewrite(folder: Path, change: Change) -> Path:
    path = folder / "weights.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("head.bias"), "tensors: missing head.bias"),
        (lambda t: t.update(extra=torch.ones(1)), "tensors: superfluous extra"),
        (lambda t: t.update(b=torch.ones(1), a=t.pop("head.bias")), "tensors: missing head.bias; superfluous a, b"),
        (lambda t: t.clear(), "tensors: missing head.bias, head.weight, rnn.bias_hh_l0, rnn.bias_ih_l0, rnn.weight_hh_l0, rnn.weight_ih_l0"),
        (lambda t: t.update({f"x{i}": torch.ones(1) for i in range(12)}), "tensors: superfluous x0, x1, x10, x11, x2, x3, x4, x5 and 4 more"),
        (lambda t: t.update({"head.bias": torch.ones(3)}), "head.bias: shape [3], the manifest asks for [2]"),
        (lambda t: t.update({"rnn.weight_ih_l0": torch.ones(2, 64)}), "rnn.weight_ih_l0: shape [2, 64], the manifest asks for [64, 2]"),
        (lambda t: t.update({"head.bias": torch.ones(2, dtype=torch.int64)}), "head.bias: int64, a float dtype is needed"),
        (lambda t: t["rnn.weight_hh_l0"].__setitem__((3, 5), float("nan")), "rnn.weight_hh_l0: nan at [3, 5], finite values are needed"),
        (lambda t: t["head.weight"].__setitem__((1, 0), float("-inf")), "head.weight: -inf at [1, 0], finite values are needed"),
        (lambda t: t.update({"head.bias": torch.full((2,), 1e300, dtype=torch.float64)}), "head.bias: inf at [0], finite values are needed"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder: Path, change: Change, message: str) -> None:
    assert refused(rewrite(folder, change)) == message


def test_biases_are_superfluous_without_bias(tmp_path: Path) -> None:
    folder = write_recurrent(tmp_path / "model", bias=False)
    path = folder / "model.yaml"
    path.write_text(path.read_text().replace("bias: false", "bias: true"))
    assert refused(folder) == "tensors: missing rnn.bias_hh_l0, rnn.bias_ih_l0"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_dtypes_are_converted(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = write_recurrent(tmp_path / "model", dtype=dtype)
    network = load_model(folder).network
    outputs, state = network.step(torch.arange(3), network.initial_state(3))
    rounded = rewrite(folder, lambda t: t.update({name: tensor.float() for name, tensor in t.items()}))
    again, _ = load_model(rounded).network.step(torch.arange(3), network.initial_state(3))
    assert outputs.dtype == state["h"].dtype == torch.float32
    assert torch.equal(outputs, again)


@pytest.mark.parametrize("keep", [0, 4, 8, 20, 200, -1])
def test_truncated_file_is_refused(folder: Path, keep: int) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert refused(folder).startswith("no intact safetensors file")


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 99_000_000) + b"{}",
        safetensors({"head.bias": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        safetensors({"head.bias": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}}, bytes(8)),
        safetensors({"head.bias": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, bytes(8)),
        safetensors({"head.bias": {"dtype": "Q5", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        safetensors([1, 2]),
        b"\x80\x04\x95 pickled, perhaps",
        bytes(100),
    ],
)
def test_hostile_file_is_refused(folder: Path, data: bytes) -> None:
    (folder / "weights.safetensors").write_bytes(data)
    assert refused(folder).startswith("no intact safetensors file")


def test_huge_declared_sizes_allocate_nothing(folder: Path) -> None:
    path = folder / "model.yaml"
    path.write_text(path.read_text().replace("hidden_size: 16", "hidden_size: 65536").replace("num_layers: 1", "num_layers: 64"))
    assert refused(folder).startswith("tensors: missing rnn.bias_hh_l1")


def test_missing_file_is_named(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    assert refused(folder) == "cannot be read (No such file or directory)"


def test_file_may_change_after_loading(folder: Path) -> None:
    network = load_model(folder).network
    before, _ = network.step(torch.ones(1, 2), network.initial_state(1))
    path = folder / "weights.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(network.step(torch.ones(1, 2), network.initial_state(1))[0], before)
