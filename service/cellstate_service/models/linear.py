"""Matrix products whose rows have the same bits whatever the batch.

A weight is packed once for oneDNN, the way torch's own compiler does it, and always for many rows: packed for one row, a batch of one would take another kernel
and round differently. Where this torch build lacks the operators, `TiledProduct` is the named fallback: slower for few rows, with the same promise.

Every product is computed to a multiple of 32 columns and cut to its width afterwards. Elementwise functions round differently in the tail of a vector than in
its body, and a contiguous `[N, 33]` tensor has its tail in another row for every N. A cut tensor is strided, so that each row is walked by itself; an uncut one
has no tail.

The products are modules that TorchScript compiles as parts of a network: their `forward` uses what it can express.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

PACKING_ROWS = 64
TILE_ROWS = 16
COLUMNS = 32


class Product(nn.Module):
    """Maps inputs [N, …] to `x · Wᵀ + b` as a fresh contiguous float32 [N, width rounded up to 32], which the caller may overwrite.

    Attributes:
        width: Columns that count; those behind them are zero.
    """

    width: int

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Return the padded product."""
        raise NotImplementedError


class PackedProduct(Product):
    """A product with a weight that is prepacked for oneDNN.

    Args:
        weight: [width, inputs], float32.
        bias: [width] or None.
        dtype: float32, or bfloat16: weight and input are rounded to it; the sums are float32 within the kernel and the result is rounded to it as well.
    """

    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(weight.shape[0])
        self.dtype = dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(_pad_rows(weight).to(dtype), PACKING_ROWS)
        self.bias = None if bias is None else _pad_rows(bias).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs] to [N, width rounded up to 32]."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, "none", [], "")
        return product.to(torch.float32)


class TiledProduct(Product):
    """The same product by `torch.nn.functional.linear`, where the packed operators do not exist: rows go through one kernel, 16 at a time.

    A batch is filled up to a multiple of 16 rows, so that few rows cost as much as 16 do.
    """

    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(weight.shape[0])
        self.dtype = dtype
        self.rows: int = TILE_ROWS
        self.weight = _pad_rows(weight).to(dtype)
        self.bias = None if bias is None else _pad_rows(bias).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs] to [N, width rounded up to 32]."""
        count = x.size(0)
        filled = torch.zeros(count + -count % self.rows, x.size(1), dtype=self.dtype)
        filled[:count] = x
        tiles: list[Tensor] = []
        for tile in torch.split(filled, self.rows):
            tiles.append(functional.linear(tile, self.weight, self.bias))  # noqa: PERF401 (TorchScript)
        return torch.cat(tiles)[:count].to(torch.float32)


class TabulatedProduct(Product):
    """The product of an embedding, computed once for every token: a step only looks rows up.

    Args:
        product: The product behind the embedding.
        embedding: [vocabulary, inputs], float32.
    """

    def __init__(self, product: Product, embedding: Tensor) -> None:
        super().__init__(product.width)
        self.table: Tensor = product(embedding)

    def forward(self, x: Tensor) -> Tensor:
        """Map token ids int64 [N] to [N, width rounded up to 32]."""
        rows: Tensor = self.table.index_select(0, x)
        return rows


class EmbeddedProduct(Product):
    """The product behind an embedding that is too large to tabulate."""

    def __init__(self, product: Product, embedding: Tensor) -> None:
        super().__init__(product.width)
        self.product = product
        self.embedding = embedding

    def forward(self, x: Tensor) -> Tensor:
        """Map token ids int64 [N] to [N, width rounded up to 32]."""
        product: Tensor = self.product(self.embedding.index_select(0, x))
        return product


@cache
def packing_available(dtype: torch.dtype = torch.float32) -> bool:
    """Tell whether this torch build has the packed operators and they run on this machine in a dtype."""
    try:
        PackedProduct(torch.ones(1, 1), None, dtype)(torch.ones(1, 1))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return True


def kernel_name(dtype: torch.dtype = torch.float32) -> str:
    """Return the name of the kernel that `prepare_product` takes here."""
    return f"onednn-packed{PACKING_ROWS}" if packing_available(dtype) else f"aten-tiled{TILE_ROWS}"


def prepare_product(weight: Tensor, bias: Tensor | None, dtype: torch.dtype = torch.float32) -> Product:
    """Return the product of a weight [width, inputs] and a bias [width], both float32, computed in `dtype` by the best kernel there is."""
    return PackedProduct(weight, bias, dtype) if packing_available(dtype) else TiledProduct(weight, bias, dtype)


def columns(values: Tensor, first: int, count: int) -> Tensor:
    """Return `count` columns of contiguous [N, columns] as a view: the cheapest way to make one, of which a step makes many."""
    return values.as_strided([values.size(0), count], [values.size(1), 1], values.storage_offset() + first)


def cut(values: Tensor, width: int) -> Tensor:
    """Return the first `width` columns of [N, columns], as a view where some are cut off."""
    return values if values.size(1) == width else values[:, :width]


def _pad_rows(values: Tensor) -> Tensor:
    """Return contiguous `values` with rows of zeros up to a multiple of 32."""
    missing = -values.shape[0] % COLUMNS
    return torch.cat([values, values.new_zeros(missing, *values.shape[1:])]) if missing else values.contiguous()
