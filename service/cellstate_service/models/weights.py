"""Weights from a safetensors file: checked float32 tensors by name. Nothing is unpickled, and nothing stays mapped to the file."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from cellstate_service.models.errors import ModelError

Shapes = Mapping[str, tuple[int, ...]]

_NAMED = 8


def read_tensors(data: bytes, shapes: Shapes, path: Path) -> dict[str, Tensor]:
    """Return exactly the tensors that `shapes` names, as float32.

    Args:
        data: Content of a safetensors file.
        shapes: Name and shape of every tensor expected.
        path: Where `data` came from; only named in errors.

    Raises:
        ModelError: It is no intact safetensors file, a tensor is missing, superfluous, of another shape or no float, or holds NaN or infinity.
    """
    try:
        stored = load(data)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ModelError(path, "", f"no intact safetensors file ({str(error) or type(error).__name__})") from None
    _check_names(set(stored), set(shapes), path)
    return {name: _checked(stored[name], name, shape, path) for name, shape in shapes.items()}


def _check_names(stored: set[str], expected: set[str], path: Path) -> None:
    faults = [
        f"{word} {', '.join(sorted(names)[:_NAMED])}{f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''}"
        for word, names in (("missing", expected - stored), ("superfluous", stored - expected))
        if names
    ]
    if faults:
        raise ModelError(path, "tensors", "; ".join(faults))


def _checked(tensor: Tensor, name: str, shape: tuple[int, ...], path: Path) -> Tensor:
    """Return one tensor as float32, or raise what is wrong with it."""
    if tuple(tensor.shape) != shape:
        raise ModelError(path, name, f"shape {list(tensor.shape)}, the manifest asks for {list(shape)}")
    if not tensor.dtype.is_floating_point:
        raise ModelError(path, name, f"{str(tensor.dtype).removeprefix('torch.')}, a float dtype is needed")
    values = tensor.to(torch.float32)
    finite = torch.isfinite(values)
    if not finite.all():
        first = (~finite).nonzero()[0].tolist()
        raise ModelError(path, name, f"{values[tuple(first)].item()} at {first}, finite values are needed")
    return values
