"""Recurrent cells: one step of one layer, for a batch of rows.

A cell holds its matrix products. Its input product is a part of its own (`from_input`), so that a whole chunk's is one matrix product with the bits of the
products of single steps; `forward` takes what it gave, and the layer's state tensors, and returns the new ones, the layer's output `h` first. State is never
changed; what the products return is fresh and is overwritten. Gate order and the two biases are those of `torch.nn`, so that its weights load without renaming.
TorchScript compiles the cells as parts of a network.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cellstate_service.models.linear import Product, columns, cut


class Cell(nn.Module):
    """One layer.

    Args:
        from_input: W_ih · x + b_ih, [N, gates × hidden].
        from_hidden: W_hh · h + b_hh, [N, gates × hidden].
        projection: W_hr · h, [N, projected]; LSTM only.

    Attributes:
        STATE: Names of its state tensors, in the order that `forward` takes and returns them.
        GATES: Rows of its weights, in multiples of the hidden size.
    """

    STATE: tuple[str, ...] = ("h",)
    GATES = 1

    def __init__(self, from_input: Product, from_hidden: Product, projection: Product | None = None) -> None:
        super().__init__()
        self.from_input = from_input
        self.from_hidden = from_hidden
        self.projection = projection
        self.width: int = from_hidden.width

    def forward(self, gates: Tensor, state: list[Tensor]) -> list[Tensor]:
        """Take one step.

        Args:
            gates: What `from_input` gave for the rows, [B, width rounded up to 32]. Overwritten.
            state: By `STATE`, each [B, its width].

        Returns:
            The new state; h is contiguous.
        """
        raise NotImplementedError


class LSTM(Cell):
    """Long short-term memory: Hochreiter & Schmidhuber 1997; forget gate: Gers, Schmidhuber & Cummins 2000; projection: Sak, Senior & Beaufays 2014.

    Gate order i, f, g, o as in `torch.nn.LSTM`. State: h [B, hidden, or projected] and c [B, hidden].
    """

    STATE = ("h", "c")
    GATES = 4

    def forward(self, gates: Tensor, state: list[Tensor]) -> list[Tensor]:
        """Take one step; see `Cell`."""
        h, c = state
        size = self.width // 4
        # 1. The gates, from the input and the hidden state.
        gates.add_(self.from_hidden(h))
        columns(gates, 0, 2 * size).sigmoid_()
        input_gate, forget_gate = columns(gates, 0, size), columns(gates, size, size)
        candidate, output_gate = columns(gates, 2 * size, size), columns(gates, 3 * size, size)
        # 2. The forget gate: what stays of the cell state.
        kept = forget_gate.mul_(c)
        # 3. The input gate: what the candidate adds.
        added = input_gate.mul_(candidate.tanh_())
        # 4. The cell update. In place, so that it stays strided: see `models/linear.py` on tails.
        new_c = added.add_(kept)
        # 5. The hidden update, by the output gate.
        new_h = torch.tanh(new_c).mul_(output_gate.sigmoid_())
        if self.projection is not None:
            new_h = cut(self.projection(new_h), self.projection.width).contiguous()
        return [new_h, new_c]


class GRU(Cell):
    """Gated recurrent unit: Cho et al. 2014, with the reset gate applied after the recurrent product, as cuDNN and `torch.nn.GRU` do.

    Gate order r, z, n. State: h [B, hidden].
    """

    GATES = 3

    def forward(self, gates: Tensor, state: list[Tensor]) -> list[Tensor]:
        """Take one step; see `Cell`."""
        h, size = state[0], self.width // 3
        of_hidden = self.from_hidden(h)
        columns(gates, 0, 2 * size).add_(columns(of_hidden, 0, 2 * size)).sigmoid_()
        reset, update = columns(gates, 0, size), columns(gates, size, size)
        candidate = columns(gates, 2 * size, size).add_(columns(of_hidden, 2 * size, size).mul_(reset)).tanh_()
        # (1 - update) · candidate + update · h
        return [torch.sub(h, candidate).mul_(update).add_(candidate)]


class TanhRNN(Cell):
    """Plain recurrent network with tanh: Elman 1990, as `torch.nn.RNN`. State: h [B, hidden]."""

    def forward(self, gates: Tensor, state: list[Tensor]) -> list[Tensor]:
        """Take one step; see `Cell`."""
        return [cut(gates.add_(self.from_hidden(state[0])), self.width).tanh_().contiguous()]


class ReluRNN(Cell):
    """Plain recurrent network with a rectifier: Le, Jaitly & Hinton 2015, as `torch.nn.RNN`. State: h [B, hidden]."""

    def forward(self, gates: Tensor, state: list[Tensor]) -> list[Tensor]:
        """Take one step; see `Cell`."""
        return [cut(gates.add_(self.from_hidden(state[0])), self.width).relu_().contiguous()]


CELLS: Mapping[str, type[Cell]] = {"lstm": LSTM, "gru": GRU, "rnn_tanh": TanhRNN, "rnn_relu": ReluRNN}
