"""The stored form of a session's journal: requests that may be sent again, with what they emitted, the same for any number of blocks of outputs.

A session that is saved often has the same requests in many snapshots, so the small part of each, which takes the time, is made once and kept with it.
"""

from collections.abc import Iterator

import numpy as np

from cellstate.v1 import snapshot_pb2, types_pb2
from cellstate_service.engine.journal import Entry
from cellstate_service.engine.request import Emit, Finish, Finished, Outputs
from cellstate_service.rpc.encode import FINISH_REASONS, FLOAT32, encode_completion

_EMITS = {Emit.NONE: types_pb2.EMIT_NONE, Emit.LAST: types_pb2.EMIT_LAST, Emit.ALL: types_pb2.EMIT_ALL}
_EMIT_OF = {number: emit for emit, number in _EMITS.items()}
_REASON_OF: dict[int, Finish] = {number: reason for reason, number in FINISH_REASONS.items()}


_VALUES = snapshot_pb2.KeptRequest.VALUES_FIELD_NUMBER


def bytes_field(number: int, size: int) -> bytes:
    """Return what precedes the content of a field of bytes, or of a message, with a number below 16: tag and size."""
    encoded = bytearray((number << 3 | 2,))
    while size > 0x7F:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes(encoded)


def encode_entry(entry: Entry) -> bytes:
    """Return a request of a journal as a serialized `KeptRequest`.

    Called on any thread; what the engine's thread drops of it meanwhile may be in it or not.
    """
    outputs, kept = entry.outputs, entry.stored
    if kept is not None and kept[0] is outputs:
        head = kept[1]
    else:
        head = _head(entry, outputs).SerializeToString(deterministic=True)
        if entry.finished is not None:
            entry.stored = (outputs, head)
    if not outputs or isinstance(outputs[0].values, list):
        return head
    values = b"".join([block.values.astype(FLOAT32, copy=False).tobytes() for block in outputs])  # type: ignore[union-attr]
    return b"".join((head, bytes_field(_VALUES, len(values)), values))


def _head(entry: Entry, blocks: list[Outputs]) -> snapshot_pb2.KeptRequest:
    """Return all of a request but the values of its outputs."""
    message = snapshot_pb2.KeptRequest(
        first_position=entry.first,
        content_digest=entry.digest,
        position=entry.position,
        consumed_steps=entry.consumed,
        generated_steps=entry.generated,
        forgotten_position=entry.forgotten,
        block_positions=[block.first_position for block in blocks],
        block_steps=[len(block.values) for block in blocks],
        consumed_blocks=sum(not block.generated for block in blocks),
        log_probabilities=[log for block in blocks for log in block.log_probabilities],
    )
    if blocks and isinstance(blocks[0].values, list):
        message.tokens.extend([token for block in blocks for token in block.values])
        if any(block.text for block in blocks):
            message.text = "".join([block.text for block in blocks])
            message.block_characters.extend([len(block.text) for block in blocks])
    elif blocks:
        message.width = blocks[0].values.shape[1]  # type: ignore[union-attr]
    if entry.finished is not None:
        message.completion.CopyFrom(encode_completion(entry.finished))
        message.emit, message.generates = _EMITS[entry.finished.emit], entry.finished.generates
    return message


def decode_entry(message: snapshot_pb2.KeptRequest) -> Entry:
    """Return the request that was encoded.

    Raises:
        KeyError, ValueError: The message does not fit itself.
    """
    return Entry(
        first=message.first_position,
        digest=message.content_digest,
        position=message.position,
        consumed=message.consumed_steps,
        generated=message.generated_steps,
        outputs=list(_blocks(message)),
        forgotten=message.forgotten_position,
        finished=_finished(message) if message.HasField("completion") else None,
    )


def _blocks(message: snapshot_pb2.KeptRequest) -> Iterator[Outputs]:
    steps = list(message.block_steps)
    characters, logs, text = list(message.block_characters) or [0] * len(steps), list(message.log_probabilities), message.text
    rows = np.frombuffer(message.values, dtype=FLOAT32).reshape(-1, message.width) if message.width else None
    tokens = list(message.tokens)
    if len(rows if rows is not None else tokens) != sum(steps) or (logs and len(logs) != sum(steps)):
        raise ValueError("a request's outputs are not as many as its blocks say")
    step = character = 0
    for number, (position, count, length) in enumerate(zip(message.block_positions, steps, characters, strict=True)):
        part = slice(step, step + count)
        values = tokens[part] if rows is None else rows[part].astype(np.float32)
        yield Outputs(position, values, text[character : character + length], logs[part], generated=number >= message.consumed_blocks)
        step, character = step + count, character + length


def _finished(message: snapshot_pb2.KeptRequest) -> Finished:
    completion = message.completion
    stop: str | tuple[int, ...] | None = None
    if completion.stop_sequence.HasField("text"):
        stop = completion.stop_sequence.text
    elif completion.stop_sequence.HasField("tokens"):
        stop = tuple(completion.stop_sequence.tokens.ids)
    return Finished(
        reason=_REASON_OF[completion.reason],
        position=completion.position,
        consumed_steps=completion.consumed_steps,
        generated_steps=completion.generated_steps,
        stop_sequence=stop,
        seed=completion.seed if completion.HasField("seed") else None,
        queue_wait_s=completion.queue_wait_s,
        run_s=completion.run_s,
        emit=_EMIT_OF[message.emit],
        generates=message.generates,
    )
