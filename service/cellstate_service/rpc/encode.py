"""From the engine's plain data to the contract's messages."""

import math

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from cellstate.v1 import types_pb2
from cellstate_service.engine.outbox import Emitted
from cellstate_service.engine.request import Finish, Finished, Form
from cellstate_service.models.loading import LoadedModel

_REASONS = {
    Finish.INPUT_CONSUMED: types_pb2.FINISH_REASON_INPUT_CONSUMED,
    Finish.MAX_STEPS: types_pb2.FINISH_REASON_MAX_STEPS,
    Finish.STOP_SEQUENCE: types_pb2.FINISH_REASON_STOP_SEQUENCE,
    Finish.END_TOKEN: types_pb2.FINISH_REASON_END_TOKEN,
    Finish.STOP_DIRECTIVE: types_pb2.FINISH_REASON_STOP_DIRECTIVE,
}


def encode_tensor(array: NDArray[np.float32]) -> types_pb2.Tensor:
    """Return float32 values in their shape."""
    return types_pb2.Tensor(dtype=types_pb2.DATA_TYPE_FLOAT32, shape=array.shape, data=array.astype("<f4", copy=False).tobytes())


def encode_time(seconds: float) -> Timestamp:
    """Return seconds since the epoch, to the microsecond."""
    stamp = Timestamp()
    stamp.FromNanoseconds(math.floor(seconds * 1e6) * 1000)
    return stamp


def encode_output(emitted: Emitted, form: Form, model: LoadedModel) -> types_pb2.Output:
    """Return outputs of contiguous steps in their form."""
    output = types_pb2.Output(first_position=emitted.first_position, position=emitted.position, log_probabilities=emitted.log_probabilities)
    if form is Form.TEXT:
        output.values.text = "".join(emitted.text)
    elif form is Form.TOKENS:
        output.values.tokens.ids.extend(emitted.values)  # type: ignore[arg-type]
    else:
        rows = np.concatenate(emitted.values)
        output.values.tensor.CopyFrom(encode_tensor(rows))
        labels = getattr(model.manifest.output, "labels", ())
        if labels:
            output.labels.extend(labels[index] for index in rows.argmax(1))
    return output


def encode_nothing(finished: Finished) -> types_pb2.Output:
    """Return the answer to a chunk that emits nothing: its positions."""
    return types_pb2.Output(first_position=finished.position - finished.consumed_steps, position=finished.position)


def encode_completion(finished: Finished, *, consumed_before: int = 0) -> types_pb2.Completion:
    """Return how a program ended; `consumed_before` counts the inputs of its earlier chunks."""
    completion = types_pb2.Completion(
        reason=_REASONS[finished.reason],
        position=finished.position,
        consumed_steps=finished.consumed_steps + consumed_before,
        generated_steps=finished.generated_steps,
        queue_wait_s=max(0.0, finished.queue_wait_s),
        run_s=max(0.0, finished.run_s),
    )
    if finished.seed is not None:
        completion.seed = finished.seed
    if isinstance(finished.stop_sequence, str):
        completion.stop_sequence.text = finished.stop_sequence
    elif finished.stop_sequence is not None:
        completion.stop_sequence.tokens.ids.extend(finished.stop_sequence)
    return completion
