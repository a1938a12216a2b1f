"""From the engine's plain data to the contract's messages."""

from typing import Any

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from cellstate.v1 import types_pb2
from cellstate_service.engine.outbox import Emitted
from cellstate_service.engine.request import Finish, Finished, Form
from cellstate_service.models.loading import LoadedModel

FLOAT32 = np.dtype("<f4")
FINISH_REASONS = {
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
    stamp.FromNanoseconds(round(seconds * 1e6) * 1000)
    return stamp


def encode_output(emitted: Emitted, form: Form, model: LoadedModel) -> types_pb2.Output:
    """Return outputs of contiguous steps in their form."""
    output = types_pb2.Output()
    fill_output(output, emitted, form, model)
    return output


def fill_output(output: types_pb2.Output, emitted: Emitted, form: Form, model: LoadedModel) -> None:
    """Put outputs of contiguous steps, in their form, into a message that is empty: built in place, nothing is copied."""
    output.first_position = emitted.first_position
    output.position = emitted.position
    if emitted.log_probabilities:
        output.log_probabilities.extend(emitted.log_probabilities)
    if form is Form.TEXT:
        output.values.text = "".join(emitted.text)
    elif form is Form.TOKENS:
        output.values.tokens.ids.extend(emitted.values)  # type: ignore[arg-type]
    else:
        rows = _rows(emitted.values)
        tensor = output.values.tensor
        tensor.dtype = types_pb2.DATA_TYPE_FLOAT32
        tensor.shape.extend(rows.shape)
        tensor.data = rows.tobytes() if rows.dtype == FLOAT32 else rows.astype(FLOAT32).tobytes()
        labels = model.manifest.output.labels if form is Form.VALUES and model.manifest.output.kind == "numeric" else ()
        if labels:
            output.labels.extend(labels[index] for index in rows.argmax(1))


def _rows(blocks: Any) -> NDArray[np.float32]:
    """Return blocks of rows [n, width] as one array [T, width]."""
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def fill_nothing(output: types_pb2.Output, finished: Finished) -> None:
    """Put the answer to a chunk that emits nothing into an empty message: its positions."""
    output.first_position = finished.position - finished.consumed_steps
    output.position = finished.position


def encode_completion(finished: Finished, *, consumed_before: int = 0) -> types_pb2.Completion:
    """Return how a program ended; `consumed_before` counts the inputs of its earlier chunks."""
    completion = types_pb2.Completion()
    fill_completion(completion, finished, consumed_before=consumed_before)
    return completion


def fill_completion(completion: types_pb2.Completion, finished: Finished, *, consumed_before: int = 0) -> None:
    """Put how a program ended into an empty message."""
    completion.reason = FINISH_REASONS[finished.reason]
    completion.position = finished.position
    completion.consumed_steps = finished.consumed_steps + consumed_before
    completion.generated_steps = finished.generated_steps
    completion.queue_wait_s = max(0.0, finished.queue_wait_s)
    completion.run_s = max(0.0, finished.run_s)
    if finished.seed is not None:
        completion.seed = finished.seed
    if isinstance(finished.stop_sequence, str):
        completion.stop_sequence.text = finished.stop_sequence
    elif finished.stop_sequence is not None:
        completion.stop_sequence.tokens.ids.extend(finished.stop_sequence)
