"""Random model folders on disk, for tests of anything that loads models.

    folder = write_recurrent(tmp_path / "tiny", cell="gru", hidden_size=33)
    folder = write_recurrent(tmp_path / "series", input_kind="numeric", features=2)
    folder = write_feed_forward(tmp_path / "flowers", hidden_sizes=[16], features=4, outputs=3, labels=["a", "b", "c"])

Every folder is a function of its arguments and seed. Extra keyword arguments go into the manifest as they are and win over what is made up here; `None` takes a
key out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

CHARACTERS = "\n !',-.:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}

Kind = Literal["tokens", "numeric"]


def write_recurrent(
    folder: Path,
    *,
    cell: str = "lstm",
    num_layers: int = 1,
    hidden_size: int = 16,
    bias: bool = True,
    proj_size: int = 0,
    input_kind: Kind = "tokens",
    output_kind: Kind | None = None,
    characters: str = CHARACTERS,
    vocabulary_size: int | None = None,
    embedding_dim: int = 8,
    features: int = 1,
    outputs: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **manifest: Any,
) -> Path:
    """Write a recurrent model and return its folder.

    A token model has a characters tokenizer over `characters` and starts from its first, unless `vocabulary_size` is given: then it has no text. A numeric one
    takes `features` values and gives `outputs` (as many, unless told otherwise) in a normalization that is not trivial.
    """
    output_kind = output_kind or input_kind
    has_text = vocabulary_size is None and "tokens" in {input_kind, output_kind}
    size = vocabulary_size or len(characters)
    outputs = size if output_kind == "tokens" else outputs or features
    values: dict[str, Any] = {
        "kind": "recurrent",
        "cell": cell,
        "num_layers": num_layers,
        "hidden_size": hidden_size,
        "bias": bias,
        "proj_size": proj_size,
        "input": {"kind": "tokens", "vocabulary_size": size, "embedding_dim": embedding_dim} if input_kind == "tokens" else _numeric(features),
        "output": {"kind": "tokens", "vocabulary_size": size} if output_kind == "tokens" else _numeric(outputs),
    }
    if has_text:
        values["tokenizer"] = {"kind": "characters", "characters": characters}
    if input_kind == "tokens":
        values["start"] = characters[0] if has_text else 0
    inputs = embedding_dim if input_kind == "tokens" else features
    tensors = recurrent_tensors(cell, num_layers, inputs, hidden_size, bias=bias, proj_size=proj_size, seed=seed)
    random = torch.Generator().manual_seed(seed + 1)
    if input_kind == "tokens":
        tensors["embedding.weight"] = torch.randn(size, embedding_dim, generator=random)
    tensors |= _linear("head", outputs, proj_size or hidden_size, random)
    return write_model(folder, values | manifest, tensors, dtype=dtype)


def write_feed_forward(
    folder: Path,
    *,
    hidden_sizes: Sequence[int] = (16,),
    activation: str = "relu",
    features: int = 4,
    outputs: int = 3,
    labels: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **manifest: Any,
) -> Path:
    """Write a feed-forward model from numeric values to numeric values, or to probabilities of `labels`, and return its folder."""
    outputs = len(labels) or outputs
    classes = {"kind": "numeric", "features": outputs, "activation": "softmax", "labels": list(labels)}
    values: dict[str, Any] = {
        "kind": "feed_forward",
        "hidden_sizes": list(hidden_sizes),
        "activation": activation,
        "input": _numeric(features),
        "output": classes if labels else _numeric(outputs),
    }
    random = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    width = features
    for index, hidden in enumerate(hidden_sizes):
        tensors |= _linear(f"layers.{index}", hidden, width, random)
        width = hidden
    return write_model(folder, values | manifest, tensors | _linear("head", outputs, width, random), dtype=dtype)


def write_model(folder: Path, manifest: dict[str, Any], tensors: dict[str, Tensor], *, dtype: torch.dtype = torch.float32) -> Path:
    """Write a manifest (format, name and description are filled in) and tensors, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"format": 1, "name": folder.name, "description": "Random weights, for tests."} | manifest
    text = yaml.safe_dump({key: value for key, value in values.items() if value is not None}, sort_keys=False)
    (folder / "model.yaml").write_text(text, encoding="utf-8")
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, folder / "weights.safetensors")
    return folder


def recurrent_tensors(cell: str, num_layers: int, inputs: int, hidden_size: int, *, bias: bool = True, proj_size: int = 0, seed: int = 0) -> dict[str, Tensor]:
    """Return the `rnn.` tensors of stacked cells, uniform as `torch.nn` initialises them."""
    random = torch.Generator().manual_seed(seed)
    rows, width, bound = GATES[cell] * hidden_size, proj_size or hidden_size, hidden_size**-0.5
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(num_layers):
        shapes |= {f"weight_ih_l{layer}": (rows, width if layer else inputs), f"weight_hh_l{layer}": (rows, width)}
        if bias:
            shapes |= {f"bias_ih_l{layer}": (rows,), f"bias_hh_l{layer}": (rows,)}
        if proj_size:
            shapes[f"weight_hr_l{layer}"] = (proj_size, hidden_size)
    return {f"rnn.{name}": (torch.rand(shape, generator=random) * 2 - 1) * bound for name, shape in shapes.items()}


def _linear(name: str, outputs: int, inputs: int, random: torch.Generator) -> dict[str, Tensor]:
    bound = 2 * inputs**-0.5
    return {f"{name}.{part}": (torch.rand(shape, generator=random) * 2 - 1) * bound for part, shape in (("weight", (outputs, inputs)), ("bias", (outputs,)))}


def _numeric(features: int) -> dict[str, Any]:
    normalization = {"mean": [0.5 + 0.25 * index for index in range(features)], "scale": [1.5 + 0.5 * index for index in range(features)]}
    return {"kind": "numeric", "features": features, "normalization": normalization}
