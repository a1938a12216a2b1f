"""What goes in, with its two escapes `tokens` and `values`. No protobuf in here.

How an input is read, without asking the server: text is text; integers are token ids; floating-point numbers are numeric values.
`tokens(...)` and `values(...)` say it outright, for integers that are numeric features for example.
"""

from collections.abc import AsyncIterable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids, one per step. Made by `tokens`."""

    array: Array


@dataclass(frozen=True, eq=False)
class Values:
    """Numeric values: [T, features], [T] where the model has one feature, or a scalar. Made by `values`."""

    array: Array


Input: TypeAlias = str | int | float | np.generic | Array | Sequence[int] | Sequence[float] | Sequence[Sequence[float]] | Tokens | Values
"""One value or a whole sequence. A scalar is one step. [T] is T steps of a model with one feature; only in `one_to_one` it is the features of one step.
[T, features] is T steps, so that one step of several features is [1, features]."""

Chunks: TypeAlias = Input | Iterable[Input]
"""A whole sequence, or an iterable of its chunks: each item is one or more steps. How a sequence is cut never changes the values that come out."""

AsyncChunks: TypeAlias = Chunks | AsyncIterable[Input]
"""As `Chunks`, or an asynchronous iterable of chunks."""


def tokens(ids: Any) -> Tokens:
    """Say that `ids` are token ids: an integer, or an array or sequence of integers."""
    return Tokens(np.asarray(ids))


def values(array: Any) -> Values:
    """Say that `array` holds numeric values, even where its dtype is an integer: a scalar, [T] or [T, features]."""
    return Values(np.asarray(array))
