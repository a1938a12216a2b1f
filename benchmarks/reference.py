"""The reference models: seeded, so that every run has the same weights. They are model folders of this project; other servers read the same files."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn


@dataclass(frozen=True, slots=True)
class Reference:
    """Sizes of a token model: embedding, stacked LSTM layers, head."""

    name: str
    vocabulary: int
    embedding: int
    hidden: int
    layers: int

    @property
    def manifest(self) -> str:
        """The text of its model.yaml."""
        return f"""format: 1
name: {self.name}
description: Seeded LSTM with {self.layers} x {self.hidden} units, for measuring.
kind: recurrent
cell: lstm
num_layers: {self.layers}
hidden_size: {self.hidden}
input: {{kind: tokens, vocabulary_size: {self.vocabulary}, embedding_dim: {self.embedding}}}
output: {{kind: tokens, vocabulary_size: {self.vocabulary}}}
start: 0
dtype: float32
"""


REFERENCES = {model.name: model for model in (Reference("ref", 256, 512, 512, 2), Reference("small", 64, 64, 128, 1))}
SEED = 0


def make_tensors(model: Reference) -> dict[str, torch.Tensor]:
    """Return the weights by the names of a model folder. The order in which the parts are made is part of the seed's meaning."""
    torch.manual_seed(SEED)
    embedding = nn.Embedding(model.vocabulary, model.embedding)
    rnn = nn.LSTM(model.embedding, model.hidden, num_layers=model.layers)
    head = nn.Linear(model.hidden, model.vocabulary)
    parts = {"embedding": embedding, "rnn": rnn, "head": head}
    return {f"{part}.{name}": tensor.detach().contiguous() for part, module in parts.items() for name, tensor in module.state_dict().items()}


def write_models(folder: Path) -> None:
    """Write all reference models as sub-folders, where they are not there yet."""
    for model in REFERENCES.values():
        at = folder / model.name
        if (at / "model.yaml").exists() and (at / "model.yaml").read_text() == model.manifest:
            continue
        at.mkdir(parents=True, exist_ok=True)
        save_file(make_tensors(model), at / "weights.safetensors")
        (at / "model.yaml").write_text(model.manifest)
