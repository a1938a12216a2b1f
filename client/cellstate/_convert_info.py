"""Conversions of models, sessions and times between the contract's messages and `info.py`."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from cellstate._convert import dtype_name, from_enum, from_sequence, to_tensor
from cellstate.errors import ErrorDetails, InvalidInput
from cellstate.info import CellKind, Durability, GenerationDefaults, Mode, ModelInfo, SessionInfo, StateSignature, ValueKind, ValueSignature
from cellstate.v1 import model_pb2, session_pb2, types_pb2

_MAX_DURATION_S = 315_576_000_000  # of google.protobuf.Duration


def from_model(model: model_pb2.Model) -> ModelInfo:
    """Convert a model."""
    start = from_sequence(model.start)
    return ModelInfo(
        name=model.name,
        description=model.description,
        version=model.version,
        cell=from_enum(CellKind, model_pb2.CellKind, model.cell),
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        proj_size=model.proj_size,
        parameters=model.parameters,
        input=_from_signature(model.input),
        output=_from_signature(model.output),
        state=tuple(StateSignature(state.name, dtype_name(state.dtype), tuple(state.shape)) for state in model.state),
        state_bytes=model.state_bytes,
        modes=tuple(from_enum(Mode, model_pb2.Mode, mode) for mode in model.modes),
        generates=model.generates,
        start=start,
        defaults=_from_defaults(model.defaults) if model.HasField("defaults") else None,
        digest=model.digest,
        numerics_id=model.numerics_id,
        batch_invariant=model.batch_invariant,
        batch_invariant_reason=model.batch_invariant_reason,
        dtype=dtype_name(model.dtype),
        load_time=from_timestamp(model.load_time) if model.HasField("load_time") else None,
    )


def from_session(session: session_pb2.Session) -> SessionInfo:
    """Convert a session."""
    return SessionInfo(
        name=session.name,
        uid=session.uid,
        model=session.model,
        position=session.position,
        seed=session.seed if session.HasField("seed") else None,
        durability=from_enum(Durability, session_pb2.Durability, session.durability),
        labels=dict(session.labels),
        owner=session.owner,
        model_digest=session.model_digest,
        numerics_id=session.numerics_id,
        state_bytes=session.state_bytes,
        state_digest=session.state_digest,
        busy=session.busy,
        create_time=from_timestamp(session.create_time) if session.HasField("create_time") else None,
        use_time=from_timestamp(session.use_time) if session.HasField("use_time") else None,
        expire_time=from_timestamp(session.expire_time) if session.HasField("expire_time") else None,
        idle_ttl_s=session.idle_ttl.seconds + session.idle_ttl.nanos / 1e9 if session.HasField("idle_ttl") else None,
        safe_position=session.safe_position if session.HasField("safe_position") else None,
    )


def to_initial_state(state: Mapping[str, Any] | None) -> session_pb2.InitialState | None:
    """Convert state tensors by name, [layers, width] each."""
    if state is None:
        return None
    tensors = [types_pb2.NamedTensor(name=name, tensor=to_tensor(np.asarray(value))) for name, value in state.items()]
    return session_pb2.InitialState(tensors=tensors)


def to_duration(seconds: float, field: str = "session.ttl") -> Duration:
    """Convert seconds.

    Raises:
        InvalidInput: Not a finite number, or more than ten thousand years.
    """
    if not abs(seconds) <= _MAX_DURATION_S:  # nan compares with nothing
        raise InvalidInput(f"{seconds} is no length of time in seconds; left out, it is the server's default", ErrorDetails(field=field))
    nanoseconds = round(seconds * 1e9)
    return Duration(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)


def to_timestamp(time: datetime, field: str = "expire_time") -> Timestamp:
    """Convert a time that has a time zone.

    Raises:
        InvalidInput: It has none.
    """
    if time.tzinfo is None:
        raise InvalidInput("a time without a time zone is ambiguous: give one, for example datetime.now(UTC) + timedelta(hours=1)", ErrorDetails(field=field))
    timestamp = Timestamp()
    timestamp.FromDatetime(time.astimezone(UTC).replace(tzinfo=None))
    return timestamp


def from_timestamp(timestamp: Timestamp) -> datetime:
    """Return the time in UTC."""
    return timestamp.ToDatetime().replace(tzinfo=UTC)


def _from_signature(signature: model_pb2.ValueSignature) -> ValueSignature:
    kind = from_enum(ValueKind, model_pb2.ValueSignature.Kind, signature.kind)
    return ValueSignature(kind, signature.size, signature.text, tuple(signature.names))


def _from_defaults(defaults: model_pb2.GenerationDefaults) -> GenerationDefaults:
    sampling = defaults.sampling
    return GenerationDefaults(
        max_steps=defaults.max_steps,
        max_steps_limit=defaults.max_steps_limit,
        temperature=sampling.temperature if sampling.HasField("temperature") else None,
        top_k=sampling.top_k if sampling.HasField("top_k") else None,
        top_p=sampling.top_p if sampling.HasField("top_p") else None,
    )
