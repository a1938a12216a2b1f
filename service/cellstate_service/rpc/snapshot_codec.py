"""The portable form of a snapshot: the contract's SnapshotEnvelope around a serialized Snapshot, versioned and checksummed."""

import functools
import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from cellstate.v1 import session_pb2, snapshot_pb2, types_pb2
from cellstate_service.engine.journal import KeptJournal
from cellstate_service.engine.resident import ResidentState
from cellstate_service.errors import DataLoss, InvalidInput, Precondition, Reason
from cellstate_service.rpc.decode import MAX_STATE_TENSORS, decode_tensor
from cellstate_service.rpc.encode import FLOAT32, encode_time
from cellstate_service.rpc.journal_codec import bytes_field, decode_entry, encode_entry
from cellstate_service.sessions.session import Durability
from cellstate_service.sessions.snapshots import Snapshot

DURABILITIES = {
    Durability.MEMORY: session_pb2.DURABILITY_MEMORY,
    Durability.PERIODIC: session_pb2.DURABILITY_PERIODIC,
    Durability.SYNC: session_pb2.DURABILITY_SYNC,
}
_DURABILITY_OF = {number: durability for durability, number in DURABILITIES.items()}
MAGIC = "cellstate snapshot"
FORMAT_VERSION = 1
_KEPT_REQUESTS = snapshot_pb2.Snapshot.KEPT_REQUESTS_FIELD_NUMBER
_PAYLOAD, _SHA256 = snapshot_pb2.SnapshotEnvelope.PAYLOAD_FIELD_NUMBER, snapshot_pb2.SnapshotEnvelope.SHA256_FIELD_NUMBER
_ENVELOPE = snapshot_pb2.SnapshotEnvelope(magic=MAGIC, format_version=FORMAT_VERSION).SerializeToString()


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Return a snapshot as a file.

    Sessions are saved by the thousand. So only small messages are made; what stands around a model's tensors is made once, and values are put between.
    """
    state = snapshot.state
    frame = _frame(tuple(sorted((name, tensor.shape) for name, tensor in state.tensors.items())))
    message = snapshot_pb2.Snapshot(session=_session(snapshot), rolled_back=state.rolled_back)
    if state.journal is not None:
        message.acknowledged_position = state.journal.acknowledged
    payload = b"".join([message.SerializeToString(deterministic=True), frame.schema, *_anchor(state, frame), *_kept_requests(state.journal)])
    digest = hashlib.sha256(payload).digest()
    return b"".join((_ENVELOPE, bytes_field(_PAYLOAD, len(payload)), payload, bytes_field(_SHA256, len(digest)), digest))


def _session(snapshot: Snapshot) -> session_pb2.Session:
    session = session_pb2.Session(
        name=snapshot.name,
        uid=snapshot.uid,
        model=snapshot.model,
        model_digest=snapshot.model_digest,
        position=snapshot.state.position,
        seed=snapshot.state.seed,
        durability=DURABILITIES[snapshot.durability],
        labels=dict(snapshot.labels),
        create_time=encode_time(snapshot.created_s),
        use_time=encode_time(snapshot.used_s),
        expire_time=None if snapshot.expires_s is None else encode_time(snapshot.expires_s),
        numerics_id=snapshot.numerics_id,
    )
    if snapshot.idle_ttl_s is not None:
        session.idle_ttl.FromNanoseconds(int(snapshot.idle_ttl_s * 1e9))
    return session


class _Frame(NamedTuple):
    """What stands around the tensors of a model's state, serialized.

    Attributes:
        schema: The snapshot's field of their names and shapes.
        heads: What precedes each tensor's values in an anchor, by name.
    """

    schema: bytes
    heads: Mapping[str, bytes]


@functools.lru_cache(maxsize=256)
def _frame(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> _Frame:
    schema = snapshot_pb2.Snapshot(state_schema=[types_pb2.NamedTensor(name=name, tensor=_tensor(shape)) for name, shape in shapes])
    heads = {}
    for name, shape in shapes:
        named, tensor = types_pb2.NamedTensor(name=name).SerializeToString(), _tensor_head(shape)
        size = len(tensor) + FLOAT32.itemsize * math.prod(shape)
        inner = bytes_field(types_pb2.NamedTensor.TENSOR_FIELD_NUMBER, size)
        heads[name] = b"".join((bytes_field(snapshot_pb2.Anchor.STATE_FIELD_NUMBER, len(named) + len(inner) + size), named, inner, tensor))
    return _Frame(schema.SerializeToString(deterministic=True), heads)


@functools.lru_cache(maxsize=256)
def _tensor_head(shape: tuple[int, ...]) -> bytes:
    """Return what precedes a tensor's values in it."""
    return _tensor(shape).SerializeToString() + bytes_field(types_pb2.Tensor.DATA_FIELD_NUMBER, FLOAT32.itemsize * math.prod(shape))


def _tensor(shape: tuple[int, ...]) -> types_pb2.Tensor:
    return types_pb2.Tensor(dtype=types_pb2.DATA_TYPE_FLOAT32, shape=shape)


def _anchor(state: ResidentState, frame: _Frame) -> list[bytes]:
    """Return the parts of the field of a state at its position."""
    anchor = snapshot_pb2.Anchor(
        position=state.position,
        sampling=types_pb2.Sampling(seed=state.seed),
        stop_tail=types_pb2.TokenIds(ids=state.tail_tokens),
        text_context=types_pb2.TokenIds(ids=state.text_context),
        text_pending=types_pb2.TokenIds(ids=state.text_pending),
        stop_text_tail=state.tail_text,
    )
    parts = [anchor.SerializeToString(deterministic=True)]
    for name, head in frame.heads.items():
        parts += (head, _values(state.tensors[name]))
    if state.last_output is not None:
        head, values = _tensor_head(state.last_output.shape), _values(state.last_output)
        parts += (bytes_field(snapshot_pb2.Anchor.LAST_OUTPUT_FIELD_NUMBER, len(head) + len(values)), head, values)
    return [bytes_field(snapshot_pb2.Snapshot.ANCHORS_FIELD_NUMBER, sum(map(len, parts))), *parts]


def _values(tensor: NDArray[np.float32]) -> bytes:
    return tensor.astype(FLOAT32, copy=False).tobytes()


def _kept_requests(journal: KeptJournal | None) -> Iterator[bytes]:
    """Yield the serialized fields of a journal's requests, which follow a snapshot's other fields."""
    for entry in () if journal is None else journal.entries:
        data = encode_entry(entry)
        yield bytes_field(_KEPT_REQUESTS, len(data))
        yield data


def decode_snapshot(data: bytes) -> Snapshot:
    """Return the snapshot that a file holds.

    Raises:
        DataLoss: It is torn, or its checksum fails.
        InvalidInput: It is no snapshot at all.
        Precondition: Its format version is not known.
    """
    envelope = snapshot_pb2.SnapshotEnvelope()
    try:
        envelope.ParseFromString(data)
    except DecodeError as error:
        raise DataLoss("data: the snapshot is torn or is none: export it again", field="data") from error
    if envelope.magic != MAGIC:
        raise InvalidInput("data: is not a cellstate snapshot", field="data")
    if envelope.format_version != FORMAT_VERSION:
        raise Precondition(f"data: format version {envelope.format_version}, this server reads {FORMAT_VERSION}", Reason.SNAPSHOT_MISMATCH, field="data")
    if hashlib.sha256(envelope.payload).digest() != envelope.sha256:
        raise DataLoss("data: the checksum fails, so the snapshot is torn: export it again", field="data")
    message = snapshot_pb2.Snapshot()
    try:
        message.ParseFromString(envelope.payload)
        return _snapshot(message)
    except (DecodeError, InvalidInput, LookupError, ValueError) as error:
        raise DataLoss(f"data: the snapshot cannot be read: {error}", field="data") from error


def _snapshot(message: snapshot_pb2.Snapshot) -> Snapshot:
    if len(message.anchors[-1].state) > MAX_STATE_TENSORS:
        raise InvalidInput(f"{len(message.anchors[-1].state)} state tensors, at most {MAX_STATE_TENSORS} are taken")
    session, anchor = message.session, message.anchors[-1]
    journal = None
    if message.HasField("acknowledged_position"):
        journal = KeptJournal(message.acknowledged_position, tuple(map(decode_entry, message.kept_requests)))
    state = ResidentState(
        position=anchor.position,
        seed=anchor.sampling.seed,
        tensors={named.name: decode_tensor(named.tensor, f"state[{named.name}]") for named in anchor.state},
        last_output=decode_tensor(anchor.last_output, "last_output") if anchor.HasField("last_output") else None,
        tail_tokens=tuple(anchor.stop_tail.ids),
        tail_text=anchor.stop_text_tail,
        text_context=tuple(anchor.text_context.ids),
        text_pending=tuple(anchor.text_pending.ids),
        journal=journal,
        rolled_back=message.rolled_back,
    )
    idle_ttl_s = session.idle_ttl.ToNanoseconds() / 1e9 if session.HasField("idle_ttl") else None
    return Snapshot(
        name=session.name,
        uid=session.uid,
        model=session.model,
        model_digest=session.model_digest,
        numerics_id=session.numerics_id,
        state=state,
        durability=_DURABILITY_OF.get(session.durability, Durability.MEMORY),
        idle_ttl_s=idle_ttl_s,
        expires_s=session.expire_time.ToNanoseconds() / 1e9 if session.HasField("expire_time") else None,
        created_s=session.create_time.ToNanoseconds() / 1e9,
        used_s=session.use_time.ToNanoseconds() / 1e9,
        labels=dict(session.labels),
    )
