"""Recurrent cells as pure functions: one step of one layer, for a batch of rows.

Each takes its input, its state tensors and its products, and returns its new state tensors, the layer's output `h` first. Given tensors are never changed; what
the products return is fresh and is overwritten. The input product and the recurrent product stay separate, so that a chunk's input product can be computed at
once with the same bits. Gate order and the two biases are those of `torch.nn`, so that its weights load without renaming.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cellstate_service.models.linear import Product


@dataclass(frozen=True, slots=True)
class LayerProducts:
    """The matrix products of one layer.

    Attributes:
        from_input: W_ih · x + b_ih, [B, gates × hidden].
        from_hidden: W_hh · h + b_hh, [B, gates × hidden].
        projection: W_hr · h, [B, projected]; LSTM only.
    """

    from_input: Product
    from_hidden: Product
    projection: Product | None = None


def lstm(x: Tensor, state: tuple[Tensor, ...], products: LayerProducts) -> tuple[Tensor, ...]:
    """Take one step of a long short-term memory.

    Hochreiter & Schmidhuber 1997; forget gate: Gers, Schmidhuber & Cummins 2000; projection: Sak, Senior & Beaufays 2014. Gate order i, f, g, o as in
    `torch.nn.LSTM`.

    Args:
        x: [B, inputs].
        state: h [B, hidden, or projected] and c [B, hidden].
        products: The layer's.

    Returns:
        The new h and c.
    """
    h, c = state
    # 1. The gates, from the input and the hidden state.
    gates = products.from_input(x).add_(products.from_hidden(h))
    input_gate, forget_gate, candidate, output_gate = gates.chunk(4, dim=1)
    # 2. The forget gate: what stays of the cell state.
    kept = forget_gate.sigmoid_().mul_(c)
    # 3. The input gate: what the candidate adds.
    added = input_gate.sigmoid_().mul_(candidate.tanh_())
    # 4. The cell update.
    new_c = added.add_(kept)
    # 5. The hidden update, by the output gate.
    new_h = torch.tanh(new_c).mul_(output_gate.sigmoid_())
    return (products.projection(new_h) if products.projection else new_h), new_c


def gru(x: Tensor, state: tuple[Tensor, ...], products: LayerProducts) -> tuple[Tensor, ...]:
    """Take one step of a gated recurrent unit.

    Cho et al. 2014, with the reset gate applied after the recurrent product, as cuDNN and `torch.nn.GRU` do; gate order r, z, n.

    Args:
        x: [B, inputs].
        state: h [B, hidden].
        products: The layer's.

    Returns:
        The new h.
    """
    (h,) = state
    reset_x, update_x, candidate_x = products.from_input(x).chunk(3, dim=1)
    reset_h, update_h, candidate_h = products.from_hidden(h).chunk(3, dim=1)
    reset = reset_x.add_(reset_h).sigmoid_()
    update = update_x.add_(update_h).sigmoid_()
    candidate = candidate_x.add_(candidate_h.mul_(reset)).tanh_()
    # (1 - update) · candidate + update · h
    return (torch.sub(h, candidate).mul_(update).add_(candidate),)


def rnn_tanh(x: Tensor, state: tuple[Tensor, ...], products: LayerProducts) -> tuple[Tensor, ...]:
    """Take one step of a plain recurrent network with tanh (Elman 1990), as `torch.nn.RNN`: h [B, hidden] to the new h."""
    return (products.from_input(x).add_(products.from_hidden(state[0])).tanh_(),)


def rnn_relu(x: Tensor, state: tuple[Tensor, ...], products: LayerProducts) -> tuple[Tensor, ...]:
    """Take one step of a plain recurrent network with a rectifier (Le, Jaitly & Hinton 2015), as `torch.nn.RNN`: h [B, hidden] to the new h."""
    return (products.from_input(x).add_(products.from_hidden(state[0])).relu_(),)


Step = Callable[[Tensor, tuple[Tensor, ...], LayerProducts], tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Cell:
    """What a network needs to know of a cell.

    Attributes:
        step: Takes one step of one layer.
        state: Names of its state tensors, in the order that `step` takes and returns them.
        gates: Rows of its weights, in multiples of the hidden size.
    """

    step: Step
    state: tuple[str, ...]
    gates: int


CELLS: Mapping[str, Cell] = {
    "lstm": Cell(lstm, ("h", "c"), 4),
    "gru": Cell(gru, ("h",), 3),
    "rnn_tanh": Cell(rnn_tanh, ("h",), 1),
    "rnn_relu": Cell(rnn_relu, ("h",), 1),
}
