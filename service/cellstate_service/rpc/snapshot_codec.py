"""The portable form of a snapshot: the contract's SnapshotEnvelope around a serialized Snapshot, versioned and checksummed."""

import hashlib
from collections.abc import Iterator

from google.protobuf.message import DecodeError

from cellstate.v1 import session_pb2, snapshot_pb2, types_pb2
from cellstate_service.engine.journal import KeptJournal
from cellstate_service.engine.resident import ResidentState
from cellstate_service.errors import DataLoss, InvalidInput, Precondition, Reason
from cellstate_service.rpc.decode import MAX_STATE_TENSORS, decode_tensor
from cellstate_service.rpc.encode import encode_tensor, encode_time
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


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Return a snapshot as a file."""
    state = snapshot.state
    anchor = snapshot_pb2.Anchor(
        position=state.position,
        state=[types_pb2.NamedTensor(name=name, tensor=encode_tensor(tensor)) for name, tensor in sorted(state.tensors.items())],
        sampling=types_pb2.Sampling(seed=state.seed),
        stop_tail=types_pb2.TokenIds(ids=state.tail_tokens),
        text_context=types_pb2.TokenIds(ids=state.text_context),
        text_pending=types_pb2.TokenIds(ids=state.text_pending),
        stop_text_tail=state.tail_text,
    )
    if state.last_output is not None:
        anchor.last_output.CopyFrom(encode_tensor(state.last_output))
    session = session_pb2.Session(
        name=snapshot.name,
        uid=snapshot.uid,
        model=snapshot.model,
        model_digest=snapshot.model_digest,
        position=state.position,
        seed=state.seed,
        durability=DURABILITIES[snapshot.durability],
        labels=dict(snapshot.labels),
        create_time=encode_time(snapshot.created_s),
        use_time=encode_time(snapshot.used_s),
        expire_time=None if snapshot.expires_s is None else encode_time(snapshot.expires_s),
        numerics_id=snapshot.numerics_id,
    )
    if snapshot.idle_ttl_s is not None:
        session.idle_ttl.FromNanoseconds(int(snapshot.idle_ttl_s * 1e9))
    message = snapshot_pb2.Snapshot(session=session, anchors=[anchor], state_schema=[_schema(tensor) for tensor in anchor.state], rolled_back=state.rolled_back)
    if state.journal is not None:
        message.acknowledged_position = state.journal.acknowledged
    payload = b"".join([message.SerializeToString(deterministic=True), *_kept_requests(state.journal)])
    envelope = snapshot_pb2.SnapshotEnvelope(magic=MAGIC, format_version=FORMAT_VERSION, payload=payload, sha256=hashlib.sha256(payload).digest())
    return envelope.SerializeToString(deterministic=True)


def _kept_requests(journal: KeptJournal | None) -> Iterator[bytes]:
    """Yield the serialized fields of a journal's requests, which follow a snapshot's other fields."""
    for entry in () if journal is None else journal.entries:
        data = encode_entry(entry)
        yield bytes_field(_KEPT_REQUESTS, len(data))
        yield data


def _schema(named: types_pb2.NamedTensor) -> types_pb2.NamedTensor:
    return types_pb2.NamedTensor(name=named.name, tensor=types_pb2.Tensor(dtype=named.tensor.dtype, shape=named.tensor.shape))


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
