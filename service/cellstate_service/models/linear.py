"""Matrix products whose rows have the same bits whatever the batch.

A weight is packed once for oneDNN, the way torch's own compiler does it, and always for many rows: packed for one row, a batch of one would take another kernel
and round differently. Where this torch build lacks the operators, `AtenProduct` is the named fallback; it is right, but does not promise equal bits.

Every product is computed to a multiple of 32 columns and cut to its width afterwards. Elementwise functions round differently in the tail of a vector than in
its body, and a contiguous `[B, 33]` tensor has its tail in another row for every B. A cut tensor is strided, so that each row is walked by itself; an uncut one
has no tail.
"""

from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

PACKING_ROWS = 64
COLUMNS = 32


class Product(Protocol):
    """Maps inputs to `x · Wᵀ + b`, as a fresh tensor that the caller may overwrite."""

    @property
    def width(self) -> int:
        """Columns of the product."""
        ...

    def padded(self, x: Tensor) -> Tensor:
        """Map inputs to contiguous [B, width rounded up to 32]; the columns behind `width` are zero."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Map inputs to [B, width], which may be a strided view."""
        ...


class PackedProduct:
    """A product with a weight that is prepacked for oneDNN.

    Args:
        weight: [width, inputs], float32.
        bias: [width] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.width = weight.shape[0]
        self._weight = torch.ops.mkldnn._reorder_linear_weight(_pad_rows(weight), PACKING_ROWS)
        self._bias = None if bias is None else _pad_rows(bias)

    def padded(self, x: Tensor) -> Tensor:
        """Map [B, inputs] to [B, width rounded up to 32]."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return product

    def __call__(self, x: Tensor) -> Tensor:
        """Map [B, inputs] to [B, width]."""
        return cut(self.padded(x), self.width)


class AtenProduct:
    """The same product by `torch.nn.functional.linear`, where the packed operators do not exist."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.width = weight.shape[0]
        self._weight = _pad_rows(weight)
        self._bias = None if bias is None else _pad_rows(bias)

    def padded(self, x: Tensor) -> Tensor:
        """Map [B, inputs] to [B, width rounded up to 32]."""
        return functional.linear(x, self._weight, self._bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Map [B, inputs] to [B, width]."""
        return cut(self.padded(x), self.width)


class TabulatedProduct:
    """The product of an embedding, computed once for every token: a step only looks rows up.

    Args:
        product: The product behind the embedding.
        embedding: [vocabulary, inputs], float32.
    """

    def __init__(self, product: Product, embedding: Tensor) -> None:
        self.width = product.width
        self._table = product.padded(embedding)

    def padded(self, x: Tensor) -> Tensor:
        """Map token ids [B] to [B, width rounded up to 32]."""
        return self._table.index_select(0, x)

    def __call__(self, x: Tensor) -> Tensor:
        """Map token ids [B] to [B, width]."""
        return cut(self.padded(x), self.width)


class EmbeddedProduct:
    """The product behind an embedding that is too large to tabulate."""

    def __init__(self, product: Product, embedding: Tensor) -> None:
        self.width = product.width
        self._product = product
        self._embedding = embedding

    def padded(self, x: Tensor) -> Tensor:
        """Map token ids [B] to [B, width rounded up to 32]."""
        return self._product.padded(self._embedding.index_select(0, x))

    def __call__(self, x: Tensor) -> Tensor:
        """Map token ids [B] to [B, width]."""
        return cut(self.padded(x), self.width)


@cache
def packing_available() -> bool:
    """Tell whether this torch build has the packed operators and they run."""
    try:
        PackedProduct(torch.ones(1, 1), None).padded(torch.ones(1, 1))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return True


def kernel_name() -> str:
    """Return the name of the kernel that `prepare_product` takes here."""
    return f"onednn-packed{PACKING_ROWS}" if packing_available() else "aten-linear"


def prepare_product(weight: Tensor, bias: Tensor | None) -> Product:
    """Return the product of a weight [width, inputs] and a bias [width], by the best kernel there is."""
    return PackedProduct(weight, bias) if packing_available() else AtenProduct(weight, bias)


def cut(values: Tensor, width: int) -> Tensor:
    """Return the first `width` columns of [B, columns], as a view where some are cut off."""
    return values if values.shape[1] == width else values[:, :width]


def _pad_rows(values: Tensor) -> Tensor:
    """Return contiguous `values` with rows of zeros up to a multiple of 32."""
    missing = -values.shape[0] % COLUMNS
    return torch.cat([values, values.new_zeros(missing, *values.shape[1:])]) if missing else values.contiguous()
