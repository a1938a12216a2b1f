"""Networks: what a model computes, put together from a manifest and checked tensors, and compiled so that a call runs without the interpreter's lock.

A network owns no state. It is called under `torch.inference_mode()` by the one thread that its engine runs. State travels as a list of tensors `[B, width]`,
one for each layer of each `StateSpec`, in their order (`flatten` and `by_name` go between that and tensors by name).
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cellstate_service.models.cells import CELLS, Cell
from cellstate_service.models.linear import EmbeddedProduct, Product, TabulatedProduct, cut, prepare_product
from cellstate_service.models.manifest import FeedForwardManifest, Manifest, RecurrentManifest
from cellstate_service.models.sections import NumericInput, NumericOutput, TokensInput, TokensOutput

MAX_TABLE_BYTES = 64 << 20
"""An embedding's product is computed for all tokens at load where the table is not larger than this."""

Tensors = Mapping[str, Tensor]
Values = TokensInput | NumericInput | TokensOutput | NumericOutput
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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


class Program(Protocol):
    """What a network computes: a module that TorchScript compiled, or anything that is called in the same way."""

    def advance(self, inputs: Tensor, state: list[Tensor]) -> tuple[Tensor, list[list[Tensor]]]:
        """Take T steps for each row.

        Args:
            inputs: Token ids int64 [T, B], or float32 [T, B, features] in model units.
            state: In the order of the specifications, each float32 [B, width]. Never changed.

        Returns:
            What the head takes, [T × B, hidden], and the state after each of the T steps.
        """
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Map [N, hidden] to outputs float32 [N, output_size] (logits, or values in model units)."""
        ...


@dataclass(frozen=True, slots=True)
class Network:
    """A program with the names of its state.

    Attributes:
        program: What it computes.
        state: The state tensors; empty where there is no state.
        output_size: Columns of the outputs.
        dtype: What its matrix products are computed in: "float32" or "bfloat16".
    """

    program: Program
    state: tuple[StateSpec, ...]
    output_size: int
    dtype: str = "float32"

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        """Return zeros [layers, rows, width] for each state tensor."""
        return {spec.name: torch.zeros(spec.layers, rows, spec.width) for spec in self.state}

    def step(self, inputs: Tensor, state: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        """Take one step for each row, with state by name. The engine calls the program instead.

        Args:
            inputs: Token ids int64 [B], or float32 [B, features] in model units.
            state: By name, float32 [layers, B, width]. Never changed.

        Returns:
            Outputs float32 [B, output_size] and the new state by name.
        """
        hidden, states = self.program.advance(inputs.unsqueeze(0), self.flatten(state))
        return self.program.head(hidden), self.by_name(states[-1])

    def flatten(self, state: Tensors) -> list[Tensor]:
        """Return state by name, each [layers, B, width], as the list that the program takes."""
        return [state[spec.name][layer] for spec in self.state for layer in range(spec.layers)]

    def by_name(self, state: list[Tensor]) -> dict[str, Tensor]:
        """Return a program's list of state as contiguous tensors [layers, B, width] by name."""
        rest = iter(state)
        return {spec.name: torch.stack([next(rest) for _ in range(spec.layers)]) for spec in self.state}


class Normalize(nn.Module):
    """The first thing a step does: model units to normalized ones. Token ids and numbers without a normalization pass."""

    mean: Tensor | None
    scale: Tensor | None

    def __init__(self, values: TokensInput | NumericInput) -> None:
        super().__init__()
        self.mean, self.scale = _units(values)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs [N] or [N, features] to the same shape."""
        mean, scale = self.mean, self.scale
        if mean is not None and scale is not None:
            return torch.sub(inputs, mean).div_(scale)
        return inputs


class Head(nn.Module):
    """The last layer: logits of a vocabulary, or numeric values with their activation and units."""

    mean: Tensor | None
    scale: Tensor | None

    def __init__(self, product: Product, output: TokensOutput | NumericOutput) -> None:
        super().__init__()
        self.product = product
        self.activation: str = output.activation if isinstance(output, NumericOutput) else "none"
        self.mean, self.scale = _units(output)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [N, hidden] to outputs [N, output_size], rows possibly strided."""
        values = self.product(hidden)
        if self.activation == "sigmoid":
            values.sigmoid_()
        values = cut(values, self.product.width)
        if self.activation == "softmax":
            return values.softmax(dim=1)
        mean, scale = self.mean, self.scale
        if mean is not None and scale is not None:
            values.mul_(scale).add_(mean)
        return values


class RecurrentProgram(nn.Module):
    """Embedding or normalization, then stacked cells, then a head. Each layer takes all steps of a chunk before the next one does."""

    def __init__(self, manifest: RecurrentManifest, tensors: Tensors) -> None:
        super().__init__()
        self.normalize = Normalize(manifest.input)
        self.layers = nn.ModuleList(_cell(manifest, tensors, layer) for layer in range(manifest.num_layers))
        self.output = Head(_product(manifest, tensors, "head"), manifest.output)
        self.depth: int = manifest.num_layers
        self.tensors: int = len(CELLS[manifest.cell].STATE)

    def forward(self, inputs: Tensor, state: list[Tensor]) -> tuple[Tensor, list[list[Tensor]]]:
        """See `Program.advance`."""
        return self.advance(inputs, state)

    @torch.jit.export
    def advance(self, inputs: Tensor, state: list[Tensor]) -> tuple[Tensor, list[list[Tensor]]]:
        """See `Program.advance`."""
        steps, rows = inputs.size(0), inputs.size(1)
        after: list[list[Tensor]] = []
        for _ in range(steps):
            after.append(state[:])  # noqa: PERF401 (TorchScript)
        x = self.normalize(inputs[0] if steps == 1 else inputs.flatten(0, 1))
        for layer, cell in enumerate(self.layers):
            gates = cell.from_input(x)  # type: ignore[operator]
            of_layer = [state[index * self.depth + layer] for index in range(self.tensors)]
            hidden: list[Tensor] = []
            for step in range(steps):
                of_layer = cell(gates if steps == 1 else gates[step * rows : (step + 1) * rows], of_layer)
                for index in range(self.tensors):
                    after[step][index * self.depth + layer] = of_layer[index]
                hidden.append(of_layer[0])
            x = hidden[0] if steps == 1 else torch.cat(hidden)
        return x, after

    @torch.jit.export
    def head(self, hidden: Tensor) -> Tensor:
        """See `Program.head`."""
        outputs: Tensor = self.output(hidden)
        return outputs


class FeedForwardProgram(nn.Module):
    """Embedding or normalization, then hidden layers with an activation, then a head. It has no state."""

    def __init__(self, manifest: FeedForwardManifest, tensors: Tensors) -> None:
        super().__init__()
        self.normalize = Normalize(manifest.input)
        names = (*(f"layers.{index}" for index in range(len(manifest.hidden_sizes))), "head")
        *layers, head = (_product(manifest, tensors, name, first=name == names[0]) for name in names)
        self.layers = nn.ModuleList(layers)
        self.activate = ACTIVATIONS[manifest.activation]()
        self.output = Head(head, manifest.output)

    def forward(self, inputs: Tensor, state: list[Tensor]) -> tuple[Tensor, list[list[Tensor]]]:
        """See `Program.advance`."""
        return self.advance(inputs, state)

    @torch.jit.export
    def advance(self, inputs: Tensor, state: list[Tensor]) -> tuple[Tensor, list[list[Tensor]]]:
        """See `Program.advance`."""
        x = self.normalize(inputs.flatten(0, 1))
        for product in self.layers:
            x = cut(self.activate(product(x)), product.width)  # type: ignore[arg-type]
        after: list[list[Tensor]] = []
        for _ in range(inputs.size(0)):
            after.append(state[:])  # noqa: PERF401 (TorchScript)
        return x, after

    @torch.jit.export
    def head(self, hidden: Tensor) -> Tensor:
        """See `Program.head`."""
        outputs: Tensor = self.output(hidden)
        return outputs


ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "gelu": nn.GELU}


def build_network(manifest: Manifest, tensors: Tensors) -> Network:
    """Return the network of a manifest; `tensors` are those of `tensor_shapes(manifest)`."""
    if not isinstance(manifest, RecurrentManifest):
        return Network(compile_module(FeedForwardProgram(manifest, tensors)), (), manifest.output.size, manifest.dtype)
    widths = {"h": manifest.proj_size or manifest.hidden_size, "c": manifest.hidden_size}
    specs = tuple(StateSpec(name, manifest.num_layers, widths[name]) for name in CELLS[manifest.cell].STATE)
    return Network(compile_module(RecurrentProgram(manifest, tensors)), specs, manifest.output.size, manifest.dtype)


def compile_module(module: nn.Module) -> Any:
    """Return a module compiled by TorchScript: one call of it is one stay outside of the interpreter's lock (docs/adr/0009)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
        return torch.jit.script(module.eval())


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
    rows, hidden = CELLS[manifest.cell].GATES * manifest.hidden_size, manifest.proj_size or manifest.hidden_size
    for layer in range(manifest.num_layers):
        shapes |= {f"rnn.weight_ih_l{layer}": (rows, hidden if layer else width), f"rnn.weight_hh_l{layer}": (rows, hidden)}
        if manifest.bias:
            shapes |= {f"rnn.bias_ih_l{layer}": (rows,), f"rnn.bias_hh_l{layer}": (rows,)}
        if manifest.proj_size:
            shapes[f"rnn.weight_hr_l{layer}"] = (manifest.proj_size, manifest.hidden_size)
    return shapes


def _cell(manifest: RecurrentManifest, tensors: Tensors, layer: int) -> Cell:
    return CELLS[manifest.cell](
        from_input=_product(manifest, tensors, f"rnn.weight_ih_l{layer}", f"rnn.bias_ih_l{layer}", first=layer == 0),
        from_hidden=_product(manifest, tensors, f"rnn.weight_hh_l{layer}", f"rnn.bias_hh_l{layer}"),
        projection=_product(manifest, tensors, f"rnn.weight_hr_l{layer}", "") if manifest.proj_size else None,
    )


def _product(manifest: Manifest, tensors: Tensors, weight: str, bias: str | None = None, *, first: bool = False) -> Product:
    """Return the product of named tensors, or of a layer by its name; a token model's first one takes token ids, with the same bits as behind the embedding."""
    weight, bias = (f"{weight}.weight", f"{weight}.bias") if bias is None else (weight, bias)
    product = prepare_product(tensors[weight], tensors.get(bias), DTYPES[manifest.dtype])
    embedding = tensors.get("embedding.weight")
    if not first or embedding is None:
        return product
    tabulated = 4 * len(embedding) * product.width <= MAX_TABLE_BYTES
    return TabulatedProduct(product, embedding) if tabulated else EmbeddedProduct(product, embedding)


def _units(values: Values) -> tuple[Tensor | None, Tensor | None]:
    """Return mean and scale [features] of numeric values that have a normalization."""
    if values.kind == "tokens" or values.normalization is None:
        return None, None
    return torch.tensor(values.normalization.mean, dtype=torch.float32), torch.tensor(values.normalization.scale, dtype=torch.float32)
