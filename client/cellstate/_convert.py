"""Conversions between Python's values and the contract's messages; nothing else builds a `Sequence` or a `Tensor`.

Models, sessions and times are in `_convert_info.py`.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np

from cellstate.errors import ErrorDetails, InvalidInput
from cellstate.inputs import Array, Tokens, Values
from cellstate.outputs import Completion, Emit, FinishReason, Form, Output
from cellstate.v1 import types_pb2

_DTYPES: dict[int, str] = {
    types_pb2.DATA_TYPE_FLOAT32: "<f4",
    types_pb2.DATA_TYPE_FLOAT64: "<f8",
    types_pb2.DATA_TYPE_FLOAT16: "<f2",
    types_pb2.DATA_TYPE_INT32: "<i4",
    types_pb2.DATA_TYPE_INT64: "<i8",
    types_pb2.DATA_TYPE_UINT8: "|u1",
}
_FLOATS: dict[int, tuple[Any, str]] = {
    2: (types_pb2.DATA_TYPE_FLOAT16, "<f2"),
    4: (types_pb2.DATA_TYPE_FLOAT32, "<f4"),
    8: (types_pb2.DATA_TYPE_FLOAT64, "<f8"),
}
_MAX_TOKEN_ID = 2**32 - 1
_CHUNK_BYTES = 512 * 1024
_CHUNK_IDS = 64 * 1024

E = TypeVar("E", bound=StrEnum)


def to_sequence(value: Any, *, one_step: bool = False, field: str = "input") -> types_pb2.Sequence:
    """Convert an input.

    Args:
        value: Text; integers, which are token ids; floating-point numbers, which are numeric values; or what `tokens` and `values` made.
        one_step: A vector is the features of one step, rather than steps of one feature.
        field: What an error calls it.

    Raises:
        InvalidInput: A shape or a token id that no model takes.
        TypeError: Neither text nor numbers.
    """
    if isinstance(value, str):
        return types_pb2.Sequence(text=value)
    if isinstance(value, Tokens):
        return types_pb2.Sequence(tokens=_to_token_ids(value.array, field))
    if isinstance(value, Values):
        return types_pb2.Sequence(tensor=to_tensor(_time_first(value.array, field, one_step=one_step)))
    array = _to_array(value, field)
    if array.dtype.kind in "iu":
        return types_pb2.Sequence(tokens=_to_token_ids(array, field))
    return types_pb2.Sequence(tensor=to_tensor(_time_first(array, field, one_step=one_step)))


def to_tensor(array: Array) -> types_pb2.Tensor:
    """Convert numbers of any real dtype to raw little-endian row-major bytes; integers become floating-point numbers that hold them (64-bit ones may round)."""
    if array.dtype.kind == "f":
        dtype, code = _FLOATS.get(array.dtype.itemsize, _FLOATS[8])
    elif array.dtype.kind in "iu":
        dtype, code = _FLOATS[4] if array.dtype.itemsize <= 2 else _FLOATS[8]
    else:
        raise TypeError(f"numbers are needed, not an array of {array.dtype}")
    return types_pb2.Tensor(dtype=dtype, shape=array.shape, data=array.astype(code, order="C", copy=False).tobytes())


def from_tensor(tensor: types_pb2.Tensor) -> Array:
    """Return the tensor as an array in the machine's byte order that the caller may change."""
    code = _DTYPES.get(tensor.dtype)
    if code is None:
        raise ValueError(f"the server answered a tensor of dtype {tensor.dtype}, which this client does not know: upgrade it")
    array = np.frombuffer(tensor.data, code).reshape(tuple(tensor.shape))
    return array.astype(array.dtype.newbyteorder("="))


def split(value: Any) -> Iterable[Any] | None:
    """Return the chunks of a whole sequence, or None where `value` is an iterable of chunks.

    Large arrays are cut so that each message stays well below size limits; text is never cut, since a tokenizer may join across the cut.
    """
    if isinstance(value, str | int | float | Tokens | Values | np.generic):
        return [value] if not isinstance(value, Tokens | Values) else [type(value)(part) for part in _cut(value.array)]
    if hasattr(value, "__array__"):
        return _cut(np.asarray(value))
    if isinstance(value, Sequence) and not any(isinstance(item, str | Tokens | Values) or hasattr(item, "__array__") for item in value[:1]):
        return _cut(_to_array(value, "input"))
    return None


def from_sequence(sequence: types_pb2.Sequence) -> str | Array | None:
    """Return text, int64 [T] or float [T, features]; None where nothing is set."""
    match sequence.WhichOneof("value"):
        case "text":
            return sequence.text
        case "tokens":
            return np.asarray(sequence.tokens.ids, dtype=np.int64)
        case "tensor":
            return from_tensor(sequence.tensor)
    return None


def from_output(output: types_pb2.Output, form: Form | None = None) -> Output:
    """Convert an output; `form` is what was asked for, and tells logits from values."""
    told = {"text": Form.TEXT, "tokens": Form.TOKENS, "tensor": Form.LOGITS if form is Form.LOGITS else Form.VALUES}
    kind = output.values.WhichOneof("value")
    return Output(
        form=told[kind] if kind else None,
        data=from_sequence(output.values),
        first_position=output.first_position,
        position=output.position,
        log_probabilities=np.asarray(output.log_probabilities, dtype=np.float32) if output.log_probabilities else None,
        labels=tuple(output.labels),
    )


def from_completion(completion: types_pb2.Completion) -> Completion:
    """Convert a completion."""
    return Completion(
        reason=from_enum(FinishReason, types_pb2.FinishReason, completion.reason),
        position=completion.position,
        consumed_steps=completion.consumed_steps,
        generated_steps=completion.generated_steps,
        stop_sequence=from_sequence(completion.stop_sequence),
        seed=completion.seed if completion.HasField("seed") else None,
        queue_wait_s=completion.queue_wait_s,
        run_s=completion.run_s,
        safe_position=completion.safe_position if completion.HasField("safe_position") else None,
    )


def to_enum(kind: type[E], wire: Any, value: E | str, field: str) -> Any:
    """Return the number of an option given as enum or by name.

    Raises:
        InvalidInput: No such option.
    """
    allowed = [member.value for member in kind if member.value != "unknown"]
    if value not in allowed:
        raise InvalidInput(f"{value!r} is none of {', '.join(allowed)}", ErrorDetails(field=field))
    return wire.Value(_prefix(wire) + str(value).upper())


def from_enum(kind: type[E], wire: Any, number: int) -> E:
    """Return the member for a number; `unknown` for one that a newer server may send."""
    entry = wire.DESCRIPTOR.values_by_number.get(number)
    name = entry.name.removeprefix(_prefix(wire)).lower() if entry is not None else "unknown"
    return kind(name) if name in {member.value for member in kind} else kind("unknown")


def read_as_tokens(value: Any, sequence: types_pb2.Sequence) -> bool:
    """Tell whether integers were taken for token ids without the caller's word for it."""
    return sequence.WhichOneof("value") == "tokens" and not isinstance(value, Tokens)


def draws(sequence: types_pb2.Sequence | None) -> bool:
    """Tell whether an input is of a token model, whose outputs are drawn."""
    return sequence is not None and sequence.WhichOneof("value") in ("text", "tokens")


def to_unsigned(value: Any, bits: int, field: str) -> Any:
    """Return an integer that fits an unsigned field, or None for None; what is no integer is left to raise `TypeError` where the message is made.

    Raises:
        InvalidInput: It does not fit.
    """
    if hasattr(value, "__index__") and not 0 <= value < 2**bits:
        raise InvalidInput(f"{value} is not 0 to {2**bits - 1}", ErrorDetails(field=field))
    return value


def to_stop(generation: types_pb2.Generation, stop: Any) -> None:
    """Add stop sequences: one, or several, of text or token ids."""
    for item in [stop] if isinstance(stop, str | Tokens) else stop or ():
        if isinstance(item, str):
            generation.stop_sequences.append(item)
        else:
            array = item.array if isinstance(item, Tokens) else _to_array(item, "stop")
            generation.stop_token_sequences.append(_to_token_ids(array, "stop"))


def to_emit(emit: Emit | str | None) -> Any:
    """Return the number of an `Emit`; unset for None."""
    return types_pb2.EMIT_UNSPECIFIED if emit is None else to_enum(Emit, types_pb2.Emit, emit, "emit")


def to_form(form: Form | str | None) -> Any:
    """Return the number of a `Form`; unset for None."""
    return types_pb2.OUTPUT_FORM_UNSPECIFIED if form is None else to_enum(Form, types_pb2.OutputForm, form, "output.form")


def dtype_name(number: int) -> str:
    """Return numpy's name of an element type; "bfloat16" and "unknown" for those that numpy does not have."""
    if number == types_pb2.DATA_TYPE_BFLOAT16:
        return "bfloat16"
    return np.dtype(_DTYPES[number]).name if number in _DTYPES else "unknown"


def _to_array(value: Any, field: str) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidInput(f"steps of different lengths: {error}", ErrorDetails(reason="INVALID_TENSOR", field=field)) from None
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{field}: text, integers (token ids) or floating-point numbers are needed, not {type(value).__name__} of {array.dtype}")
    return array


def _to_token_ids(array: Array, field: str) -> types_pb2.TokenIds:
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{field}: token ids are integers, not {array.dtype}")
    if array.ndim > 1:
        raise InvalidInput(
            f"token ids are [T], one per step, not {list(array.shape)}; numeric features go in values(...)", ErrorDetails("INVALID_TENSOR", field=field)
        )
    ids = array.reshape(-1).tolist()
    if ids and not 0 <= min(ids) <= max(ids) <= _MAX_TOKEN_ID:
        raise InvalidInput("token ids are 0 or larger and below the model's vocabulary size", ErrorDetails("TOKEN_OUT_OF_RANGE", field=field))
    return types_pb2.TokenIds(ids=ids)


def _time_first(array: Array, field: str, *, one_step: bool) -> Array:
    """Give a scalar and, for one step, a vector its time dimension."""
    if array.ndim > 2:
        raise InvalidInput(f"a sequence is [T, features], not {list(array.shape)}; use run for several sequences", ErrorDetails("INVALID_TENSOR", field=field))
    if array.ndim == 0:
        return array.reshape(1, 1)
    return array.reshape(1, -1) if one_step and array.ndim == 1 else array


def _cut(array: Array) -> list[Array]:
    """Cut along time into messages of bounded size."""
    if array.ndim == 0 or not array.size:
        return [array]
    steps = _CHUNK_IDS if array.ndim == 1 else max(1, _CHUNK_BYTES // (array.nbytes // len(array)))
    return [array[start : start + steps] for start in range(0, len(array), steps)]


def _prefix(wire: Any) -> str:
    """Return what the names of an enum's values begin with."""
    return str(wire.DESCRIPTOR.values_by_number[0].name.removesuffix("UNSPECIFIED"))
