"""One batched step of a reference model by plain torch, in the ways that people write it. Imported by the servers measured beside ours."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

PACKING_ROWS = 32


class CellStepper:
    """`torch.lstm_cell` for each layer.

    Args:
        folder: A model folder with `weights.safetensors`.
    """

    def __init__(self, folder: Path) -> None:
        self.weights = load_file(folder / "weights.safetensors")
        self.layers = sum(name.startswith("rnn.weight_hh_l") for name in self.weights)
        self.hidden = self.weights["rnn.weight_hh_l0"].shape[1]
        self.vocabulary = len(self.weights["head.weight"])
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        self._cells: list[Any] = [[self.weights[f"rnn.{name}_l{layer}"] for name in names] for layer in range(self.layers)]

    def zeros(self, rows: int) -> Tensor:
        """Return h or c of fresh sequences, [layers, rows, hidden]."""
        return torch.zeros(self.layers, rows, self.hidden)

    def __call__(self, tokens: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map tokens int64 [B] and state [layers, B, hidden] to logits [B, vocabulary] and the new state."""
        x = functional.embedding(tokens, self.weights["embedding.weight"])
        hs, cs = [], []
        for layer, cell in enumerate(self._cells):
            x, new_c = torch.lstm_cell(x, (h[layer], c[layer]), *cell)
            hs.append(x)
            cs.append(new_c)
        return functional.linear(x, self.weights["head.weight"], self.weights["head.bias"]), torch.stack(hs), torch.stack(cs)


class PackedStepper(CellStepper):
    """One product for each layer, [x, h] by both weights together, prepacked for oneDNN."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        reorder = torch.ops.mkldnn._reorder_linear_weight
        for layer in range(self.layers):
            ih, hh, bias_ih, bias_hh = self._cells[layer]
            self._cells[layer] = reorder(torch.cat([ih, hh], 1).contiguous(), PACKING_ROWS), bias_ih + bias_hh
        self._head = reorder(self.weights["head.weight"].contiguous(), PACKING_ROWS)

    def __call__(self, tokens: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map tokens int64 [B] and state [layers, B, hidden] to logits [B, vocabulary] and the new state."""
        product = torch.ops.mkldnn._linear_pointwise
        x = functional.embedding(tokens, self.weights["embedding.weight"])
        hs, cs = [], []
        for layer, (weight, bias) in enumerate(self._cells):
            i, f, g, o = product(torch.cat([x, h[layer]], 1), weight, bias, "none", [], "").chunk(4, 1)
            cs.append(torch.sigmoid(f) * c[layer] + torch.sigmoid(i) * torch.tanh(g))
            x = torch.sigmoid(o) * torch.tanh(cs[-1])
            hs.append(x)
        return product(x, self._head, self.weights["head.bias"], "none", [], ""), torch.stack(hs), torch.stack(cs)


STEPPERS = {"cell": CellStepper, "packed": PackedStepper}
