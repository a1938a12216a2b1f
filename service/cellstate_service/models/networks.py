"""Networks: what a model computes in one step, put together from a manifest and checked tensors.

A network owns no state. It is called under `torch.inference_mode()` by the one thread that its engine runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from cellstate_service.models.cells import CELLS, Cell, LayerProducts
from cellstate_service.models.linear import EmbeddedProduct, Product, TabulatedProduct, cut, prepare_product
from cellstate_service.models.manifest import FeedForwardManifest, Manifest, RecurrentManifest
from cellstate_service.models.sections import NumericInput, NumericOutput, TokensInput, TokensOutput

MAX_TABLE_BYTES = 64 << 20
"""An embedding's product is computed for all tokens at load where the table is not larger than this."""

Tensors = Mapping[str, Tensor]
Values = TokensInput | NumericInput | TokensOutput | NumericOutput
Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class StateSpec:
    """A state tensor of one session: float32 [layers, width].

    Attributes:
        name: For example "h".
        layers: Layers of cells.
        width: Values for each layer.
    """

    name: str
    layers: int
    width: int


class Network(Protocol):
    """Anything with named state tensors and a step."""

    @property
    def state(self) -> tuple[StateSpec, ...]:
        """The state tensors; empty where there is no state."""
        ...

    @property
    def output_size(self) -> int:
        """Columns of the outputs."""
        ...

    def step(self, inputs: Tensor, state: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        """Take one step for each row.

        Args:
            inputs: Token ids int64 [B], or float32 [B, features] in model units.
            state: By name, float32 [layers, B, width]. Never changed.

        Returns:
            Outputs float32 [B, output_size], rows possibly strided (logits, or values in model units), and the new state by name.
        """
        ...

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        """Return zeros [layers, rows, width] for each state tensor."""
        ...


class _Stateful:
    """State tensors by specification."""

    def __init__(self, state: tuple[StateSpec, ...], output_size: int) -> None:
        self.state = state
        self.output_size = output_size

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        """Return zeros [layers, rows, width] for each state tensor."""
        return {spec.name: torch.zeros(spec.layers, rows, spec.width) for spec in self.state}


class Normalize:
    """The first thing a step does: model units to normalized ones. Token ids and numbers without a normalization pass."""

    def __init__(self, values: TokensInput | NumericInput) -> None:
        self._units = _units(values)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Map inputs [B] or [B, features] to the same shape."""
        if self._units is None:
            return inputs
        mean, scale = self._units
        return torch.sub(inputs, mean).div_(scale)


class RecurrentNetwork(_Stateful):
    """Embedding or normalization, then stacked cells, then a head."""

    def __init__(self, manifest: RecurrentManifest, tensors: Tensors) -> None:
        self._cell: Cell = CELLS[manifest.cell]
        widths = {"h": manifest.proj_size or manifest.hidden_size, "c": manifest.hidden_size}
        super().__init__(tuple(StateSpec(name, manifest.num_layers, widths[name]) for name in self._cell.state), manifest.output.size)
        self._normalize = Normalize(manifest.input)
        self._layers = [_layer_products(manifest, tensors, layer) for layer in range(manifest.num_layers)]
        self._head = Head(_product(tensors, "head.weight", "head.bias"), manifest.output)

    def step(self, inputs: Tensor, state: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        """Take one step for each row; see `Network.step`."""
        x = self._normalize(inputs)
        new: list[tuple[Tensor, ...]] = []
        for layer, products in enumerate(self._layers):
            new.append(self._cell.step(x, tuple(state[name][layer] for name in self._cell.state), products))
            x = new[-1][0]
        return self._head(x), {name: torch.stack(layers) for name, layers in zip(self._cell.state, zip(*new, strict=True), strict=True)}


class FeedForwardNetwork(_Stateful):
    """Embedding or normalization, then hidden layers with an activation, then a head."""

    def __init__(self, manifest: FeedForwardManifest, tensors: Tensors) -> None:
        super().__init__((), manifest.output.size)
        self._normalize = Normalize(manifest.input)
        names = (*(f"layers.{index}" for index in range(len(manifest.hidden_sizes))), "head")
        *self._layers, head = (_product(tensors, f"{name}.weight", f"{name}.bias", first=name == names[0]) for name in names)
        self._activate = ACTIVATIONS[manifest.activation]
        self._head = Head(head, manifest.output)

    def step(self, inputs: Tensor, state: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        """Map each row; see `Network.step`."""
        x = self._normalize(inputs)
        for product in self._layers:
            x = cut(self._activate(product.padded(x)), product.width)
        return self._head(x), {}


class Head:
    """The last layer: logits of a vocabulary, or numeric values with their activation and units."""

    def __init__(self, product: Product, output: TokensOutput | NumericOutput) -> None:
        self._product = product
        self._activation = output.activation if isinstance(output, NumericOutput) else "none"
        self._units = _units(output)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Map [B, hidden] to outputs [B, output_size]."""
        values = self._product.padded(hidden)
        if self._activation == "sigmoid":
            values.sigmoid_()
        values = cut(values, self._product.width)
        if self._activation == "softmax":
            return values.softmax(dim=1)
        if self._units:
            mean, scale = self._units
            return values.mul_(scale).add_(mean)
        return values


ACTIVATIONS: Mapping[str, Activation] = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "gelu": functional.gelu}


def build_network(manifest: Manifest, tensors: Tensors) -> Network:
    """Return the network of a manifest; `tensors` are those of `tensor_shapes(manifest)`."""
    return RecurrentNetwork(manifest, tensors) if isinstance(manifest, RecurrentManifest) else FeedForwardNetwork(manifest, tensors)


def tensor_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor that a model must have."""
    shapes: dict[str, tuple[int, ...]] = {}
    width = manifest.input.size
    if isinstance(manifest.input, TokensInput):
        width = manifest.input.embedding_dim
        shapes["embedding.weight"] = (manifest.input.vocabulary_size, width)
    if isinstance(manifest, RecurrentManifest):
        shapes |= _cell_shapes(manifest, width)
        width = manifest.proj_size or manifest.hidden_size
    else:
        for index, hidden in enumerate(manifest.hidden_sizes):
            shapes |= {f"layers.{index}.weight": (hidden, width), f"layers.{index}.bias": (hidden,)}
            width = hidden
    return shapes | {"head.weight": (manifest.output.size, width), "head.bias": (manifest.output.size,)}


def _cell_shapes(manifest: RecurrentManifest, width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    rows, hidden = CELLS[manifest.cell].gates * manifest.hidden_size, manifest.proj_size or manifest.hidden_size
    for layer in range(manifest.num_layers):
        shapes |= {f"rnn.weight_ih_l{layer}": (rows, hidden if layer else width), f"rnn.weight_hh_l{layer}": (rows, hidden)}
        if manifest.bias:
            shapes |= {f"rnn.bias_ih_l{layer}": (rows,), f"rnn.bias_hh_l{layer}": (rows,)}
        if manifest.proj_size:
            shapes[f"rnn.weight_hr_l{layer}"] = (manifest.proj_size, manifest.hidden_size)
    return shapes


def _layer_products(manifest: RecurrentManifest, tensors: Tensors, layer: int) -> LayerProducts:
    return LayerProducts(
        from_input=_product(tensors, f"rnn.weight_ih_l{layer}", f"rnn.bias_ih_l{layer}", first=layer == 0),
        from_hidden=_product(tensors, f"rnn.weight_hh_l{layer}", f"rnn.bias_hh_l{layer}"),
        projection=_product(tensors, f"rnn.weight_hr_l{layer}") if manifest.proj_size else None,
    )


def _product(tensors: Tensors, weight: str, bias: str = "", *, first: bool = False) -> Product:
    """Return the product of named tensors; the first one of a token model takes token ids, with the same bits as behind the embedding."""
    product = prepare_product(tensors[weight], tensors.get(bias))
    embedding = tensors.get("embedding.weight")
    if not first or embedding is None:
        return product
    tabulated = 4 * len(embedding) * product.width <= MAX_TABLE_BYTES
    return TabulatedProduct(product, embedding) if tabulated else EmbeddedProduct(product, embedding)


def _units(values: Values) -> tuple[Tensor, Tensor] | None:
    """Return mean and scale [features] of numeric values that have a normalization."""
    if values.kind == "tokens" or values.normalization is None:
        return None
    return torch.tensor(values.normalization.mean, dtype=torch.float32), torch.tensor(values.normalization.scale, dtype=torch.float32)
