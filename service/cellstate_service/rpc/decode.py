"""From the contract's messages to the engine's plain data, checked against a model: every error names the field and the bound."""

import asyncio
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellstate.v1 import inference_pb2, types_pb2
from cellstate_service.engine.request import Emit, Form, Generation, Inputs, Sampling
from cellstate_service.errors import InvalidInput, Reason
from cellstate_service.models.errors import TextNotEncodable
from cellstate_service.models.loading import LoadedModel
from cellstate_service.sessions.calling import CallTarget

DTYPES: dict[int, np.dtype[Any]] = {
    types_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    types_pb2.DATA_TYPE_FLOAT64: np.dtype("<f8"),
    types_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    types_pb2.DATA_TYPE_BFLOAT16: np.dtype("<u2"),
    types_pb2.DATA_TYPE_INT32: np.dtype("<i4"),
    types_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
    types_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
}
MAX_DIMENSIONS = 4
MAX_STATE_TENSORS = 64
MAX_TEMPERATURE = 100.0
MAX_STOP_SEQUENCES = 16
MAX_STOP_LENGTH = 256
LONG_TEXT = 10_000

_EMITS: dict[int, Emit] = {types_pb2.EMIT_NONE: Emit.NONE, types_pb2.EMIT_LAST: Emit.LAST, types_pb2.EMIT_ALL: Emit.ALL}
_FORMS: dict[int, Form] = {
    types_pb2.OUTPUT_FORM_TEXT: Form.TEXT,
    types_pb2.OUTPUT_FORM_TOKENS: Form.TOKENS,
    types_pb2.OUTPUT_FORM_VALUES: Form.VALUES,
    types_pb2.OUTPUT_FORM_LOGITS: Form.LOGITS,
}


@dataclass(frozen=True, slots=True)
class InputLimits:
    """Bounds of one message.

    Attributes:
        max_steps: Steps of input.
        max_output_bytes: Bytes of outputs that a unary answer may carry.
        max_programs: Programs of one Run.
        max_channels: Channels of one stream.
    """

    max_steps: int = 100_000
    max_output_bytes: int = 4 << 20
    max_programs: int = 1024
    max_channels: int = 1024


def decode_target(target: inference_pb2.Target, field: str = "target") -> CallTarget:
    """Return what a call runs on."""
    kind = target.WhichOneof("target")
    if kind == "model":
        return CallTarget(model=target.model)
    if kind == "session":
        reference = target.session
        if not reference.name:
            raise InvalidInput(f"{field}.session.name: empty; name a session", field=f"{field}.session.name")
        acknowledged = reference.acknowledged_position if reference.HasField("acknowledged_position") else None
        position = reference.position if reference.HasField("position") else None
        return CallTarget("", reference.name, reference.uid, reference.stream_token, reference.take_over, acknowledged, position)
    raise InvalidInput(f"{field}: name a model or a session", field=field)


def decode_tensor(tensor: types_pb2.Tensor, field: str) -> NDArray[np.float32]:
    """Return a tensor as float32 in its shape.

    Raises:
        InvalidInput: Unknown dtype, a shape that does not fit the data, NaN or infinity.
    """
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise InvalidInput(f"{field}.dtype: {tensor.dtype} is no known data type; FLOAT32 is the usual one", Reason.INVALID_TENSOR, field=f"{field}.dtype")
    if not 1 <= len(tensor.shape) <= MAX_DIMENSIONS:
        message = f"{field}.shape: {len(tensor.shape)} sizes, 1 to {MAX_DIMENSIONS} are taken"
        raise InvalidInput(message, Reason.INVALID_TENSOR, field=f"{field}.shape")
    shape = tuple(tensor.shape)
    if any(size < 0 for size in shape):
        raise InvalidInput(f"{field}.shape: {list(shape)} has a size below 0", Reason.INVALID_TENSOR, field=f"{field}.shape")
    wanted = math.prod(shape) * dtype.itemsize
    if wanted != len(tensor.data):
        message = f"{field}.data: {len(tensor.data)} bytes, but shape {list(shape)} of {dtype.itemsize}-byte elements takes {wanted}"
        raise InvalidInput(message, Reason.INVALID_TENSOR, field=f"{field}.data")
    array: NDArray[Any] = np.frombuffer(tensor.data, dtype=dtype)
    try:
        array = array.reshape(shape)
    except ValueError as error:  # sizes beside a zero whose product is beyond what can be addressed
        raise InvalidInput(f"{field}.shape: {list(shape)} is too large", Reason.INVALID_TENSOR, field=f"{field}.shape") from error
    if tensor.dtype == types_pb2.DATA_TYPE_BFLOAT16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(values).all():
        raise InvalidInput(f"{field}.data: holds NaN, infinity, or a number beyond float32", Reason.NOT_FINITE, field=f"{field}.data")
    return values


async def decode_inputs(sequence: types_pb2.Sequence, model: LoadedModel, limits: InputLimits, field: str) -> Inputs:
    """Return a sequence's steps: token ids int64 [T], or float32 [T, features] in model units; T is at least 1.

    Raises:
        InvalidInput: Another form than the model takes, or values out of their bounds.
    """
    kind = sequence.WhichOneof("value")
    if kind is None:
        raise InvalidInput(f"{field}: give text, tokens or a tensor", Reason.EMPTY_SEQUENCE, field=field)
    if model.manifest.input.kind == "numeric":
        if kind != "tensor":
            raise InvalidInput(
                f"{field}.{kind}: the model {model.name!r} takes numbers, so give a tensor", Reason.NOT_SUPPORTED_BY_MODEL, field=f"{field}.{kind}"
            )
        inputs: Inputs = _numeric(sequence.tensor, model, f"{field}.tensor")
    elif kind == "text":
        inputs = await _text(sequence.text, model, limits, f"{field}.text")
    elif kind == "tokens":
        ids = sequence.tokens.ids
        if len(ids) == 1 and ids[0] < model.manifest.input.size:  # a step of a closed loop: the quick way
            return np.array((ids[0],), dtype=np.int64)
        _check_steps(len(ids), limits, field)
        inputs = decode_tokens(sequence.tokens, model.manifest.input.size, f"{field}.tokens.ids")
    else:
        raise InvalidInput(
            f"{field}.tensor: the model {model.name!r} takes tokens, so give text or token ids", Reason.NOT_SUPPORTED_BY_MODEL, field=f"{field}.tensor"
        )
    if len(inputs) == 0:
        raise InvalidInput(f"{field}: has no steps; give at least one", Reason.EMPTY_SEQUENCE, field=field)
    _check_steps(len(inputs), limits, field)
    return inputs


def _check_steps(steps: int, limits: InputLimits, field: str) -> None:
    if steps > limits.max_steps:
        raise InvalidInput(f"{field}: {steps} steps, at most {limits.max_steps} are taken in one message; send chunks", field=field)


def decode_tokens(tokens: types_pb2.TokenIds, vocabulary: int, field: str) -> NDArray[np.int64]:
    """Return token ids int64 [T], each below the vocabulary size."""
    ids = np.fromiter(tokens.ids, dtype=np.int64, count=len(tokens.ids))
    if len(ids) and ids.max() >= vocabulary:
        at = int(np.argmax(ids >= vocabulary))
        raise InvalidInput(f"{field}[{at}]: {ids[at]} is not below the vocabulary size {vocabulary}", Reason.TOKEN_OUT_OF_RANGE, field=f"{field}[{at}]")
    return ids


def _numeric(tensor: types_pb2.Tensor, model: LoadedModel, field: str) -> NDArray[np.float32]:
    features = model.manifest.input.size
    shape = tuple(tensor.shape) if len(tensor.shape) <= MAX_DIMENSIONS else ()
    if not (len(shape) == 2 and shape[1] == features) and not (len(shape) == 1 and features == 1):
        raise InvalidInput(f"{field}.shape: {list(shape)[:8]} does not fit, the model takes [T, {features}]", Reason.INVALID_TENSOR, field=f"{field}.shape")
    return decode_tensor(tensor, field).reshape(-1, features)


async def _text(text: str, model: LoadedModel, limits: InputLimits, field: str) -> NDArray[np.int64]:
    if model.tokenizer is None:
        raise InvalidInput(f"{field}: the model {model.name!r} has no tokenizer, so give token ids", Reason.NOT_SUPPORTED_BY_MODEL, field=field)
    try:
        if len(text) > LONG_TEXT:
            return await asyncio.to_thread(model.tokenizer.encode, text)
        return model.tokenizer.encode(text)
    except TextNotEncodable as error:
        raise InvalidInput(f"{field}: {error}", Reason.TEXT_NOT_ENCODABLE, field=field) from error


def decode_emit(emit: int, default: Emit, field: str) -> Emit:
    """Return which outputs are answered."""
    if emit == types_pb2.EMIT_UNSPECIFIED:
        return default
    if emit not in _EMITS:
        raise InvalidInput(f"{field}: {emit} is not known; NONE, LAST or ALL", field=field)
    return _EMITS[emit]


def decode_form(options: types_pb2.OutputOptions, model: LoadedModel, field: str) -> Form:
    """Return the form of outputs, checked against what the model gives."""
    gives_tokens = model.manifest.output.kind == "tokens"
    if options.log_probabilities and not gives_tokens:
        raise _unsupported(f"{field}.log_probabilities", f"the model {model.name!r} gives numbers, which have no probabilities")
    if options.form == types_pb2.OUTPUT_FORM_UNSPECIFIED:
        if not gives_tokens:
            return Form.VALUES
        return Form.TOKENS if model.tokenizer is None else Form.TEXT
    form = _FORMS.get(options.form)
    if form is None:
        raise InvalidInput(f"{field}.form: {options.form} is not known", field=f"{field}.form")
    if gives_tokens and form is Form.VALUES:
        raise _unsupported(f"{field}.form", f"the model {model.name!r} gives tokens: ask for TEXT, TOKENS or LOGITS")
    if not gives_tokens and form is not Form.VALUES:
        raise _unsupported(f"{field}.form", f"the model {model.name!r} gives numbers: ask for VALUES")
    if form is Form.TEXT and model.tokenizer is None:
        raise _unsupported(f"{field}.form", f"the model {model.name!r} has no tokenizer: ask for TOKENS")
    return form


def decode_sampling(message: types_pb2.Sampling | None, model: LoadedModel, base: Sampling | None, field: str) -> Sampling:
    """Return how tokens are drawn: what the message sets, else what `base` says, else the manifest's defaults."""
    defaults = model.manifest.generation
    base = base or Sampling(defaults.temperature, defaults.top_k, defaults.top_p)
    if message is None:
        return base
    if model.manifest.output.kind != "tokens":
        if any(message.HasField(name) for name in ("temperature", "top_k", "top_p")):
            raise _unsupported(field, f"the model {model.name!r} gives numbers, nothing is drawn: leave sampling unset")
        return base  # a seed alone does no harm: client libraries send one without knowing the model
    temperature = message.temperature if message.HasField("temperature") else base.temperature
    top_p = message.top_p if message.HasField("top_p") else base.top_p
    if not 0 <= temperature <= MAX_TEMPERATURE:
        raise InvalidInput(f"{field}.temperature: {temperature:g} is not 0 to {MAX_TEMPERATURE:g}", field=f"{field}.temperature")
    if not 0 < top_p <= 1:
        raise InvalidInput(f"{field}.top_p: {top_p:g} is not above 0 and at most 1", field=f"{field}.top_p")
    return Sampling(
        temperature=temperature,
        top_k=min(message.top_k, model.manifest.output.size) if message.HasField("top_k") else base.top_k,
        top_p=top_p,
        seed=message.seed if message.HasField("seed") else base.seed,
    )


def decode_generation(message: types_pb2.Generation, model: LoadedModel, field: str) -> Generation:
    """Return what to generate, checked against what the model can."""
    if not model.generates:
        raise _unsupported(field, f"the outputs of the model {model.name!r} cannot be its next inputs, so it does not generate")
    defaults = model.manifest.generation
    max_steps = message.max_steps if message.HasField("max_steps") else defaults.max_steps
    if not 1 <= max_steps <= defaults.max_steps_limit:
        raise InvalidInput(f"{field}.max_steps: {max_steps} is not 1 to {defaults.max_steps_limit}", field=f"{field}.max_steps")
    texts, tokens = message.stop_sequences, message.stop_token_sequences
    if len(texts) + len(tokens) > MAX_STOP_SEQUENCES:
        raise InvalidInput(
            f"{field}.stop_sequences: {len(texts) + len(tokens)} are given, at most {MAX_STOP_SEQUENCES} are taken", field=f"{field}.stop_sequences"
        )
    if texts and model.tokenizer is None:
        raise _unsupported(f"{field}.stop_sequences", f"the model {model.name!r} has no tokenizer: use stop_token_sequences")
    if tokens and model.manifest.output.kind != "tokens":
        raise _unsupported(f"{field}.stop_token_sequences", f"the model {model.name!r} gives numbers")
    for index, text in enumerate(texts):
        if not 1 <= len(text.encode()) <= MAX_STOP_LENGTH:
            where = f"{field}.stop_sequences[{index}]"
            raise InvalidInput(f"{where}: is not 1 to {MAX_STOP_LENGTH} bytes long", field=where)
    stops = tuple(_stop_tokens(ids, model, f"{field}.stop_token_sequences[{index}]") for index, ids in enumerate(tokens))
    return Generation(max_steps, tuple(texts), stops)


def _stop_tokens(ids: types_pb2.TokenIds, model: LoadedModel, field: str) -> tuple[int, ...]:
    if not 1 <= len(ids.ids) <= MAX_STOP_LENGTH:
        raise InvalidInput(f"{field}: is not 1 to {MAX_STOP_LENGTH} ids long", field=field)
    return tuple(int(token) for token in decode_tokens(ids, model.manifest.output.size, f"{field}.ids"))


def _unsupported(field: str, text: str) -> InvalidInput:
    return InvalidInput(f"{field}: {text}", Reason.NOT_SUPPORTED_BY_MODEL, field=field)
