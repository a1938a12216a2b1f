"""The Session message, to and from the plain data of `sessions/`."""

from cellstate.v1 import session_pb2
from cellstate_service.errors import InvalidInput
from cellstate_service.rpc.encode import encode_time
from cellstate_service.sessions.manager import SessionChange
from cellstate_service.sessions.session import Durability, Expiration, Session, SessionSpec

_DURABILITIES = {
    session_pb2.DURABILITY_UNSPECIFIED: None,
    session_pb2.DURABILITY_MEMORY: Durability.MEMORY,
    session_pb2.DURABILITY_PERIODIC: Durability.PERIODIC,
    session_pb2.DURABILITY_SYNC: Durability.SYNC,
}
_NUMBERS = {durability: number for number, durability in _DURABILITIES.items() if durability is not None}
MAX_PATHS = 16
_UPDATABLE = ("ttl", "expire_time", "durability", "labels")


def encode_session(session: Session) -> session_pb2.Session:
    """Return a session's message, without the digest of its state."""
    model = session.engine.model
    message = session_pb2.Session(
        name=session.name,
        uid=session.uid,
        model=model.name,
        model_digest=model.digest,
        owner=session.owner,
        position=session.resident.position,
        seed=session.resident.seed,
        durability=_NUMBERS[session.durability],
        create_time=encode_time(session.created_s),
        use_time=encode_time(session.used_s),
        expire_time=encode_time(session.expires_s),
        labels=session.labels,
        busy=session.call is not None,
        state_bytes=model.state_bytes,
        numerics_id=model.numerics_id,
    )
    if session.idle_ttl_s is not None:
        message.idle_ttl.FromNanoseconds(int(session.idle_ttl_s * 1e9))
    return message


def _durability(message: session_pb2.Session, field: str) -> Durability | None:
    if message.durability not in _DURABILITIES:
        raise InvalidInput(f"{field}.durability: {message.durability} is not known", field=f"{field}.durability")
    return _DURABILITIES[message.durability]


def _expiration(message: session_pb2.Session, field: str) -> Expiration:
    """Return the expiry asked for; a duration or time that protobuf itself calls invalid is refused."""
    try:
        if message.HasField("ttl"):
            return Expiration(ttl_s=message.ttl.ToNanoseconds() / 1e9)
        if message.HasField("expire_time"):
            return Expiration(at_s=message.expire_time.ToNanoseconds() / 1e9)
    except ValueError as error:
        raise InvalidInput(f"{field}.{message.WhichOneof('expiration')}: {error}", field=f"{field}.{message.WhichOneof('expiration')}") from error
    return Expiration()


def decode_spec(message: session_pb2.Session, field: str) -> SessionSpec:
    """Return what is asked of a new session."""
    return SessionSpec(
        name=message.name,
        model=message.model,
        seed=message.seed if message.HasField("seed") else None,
        durability=_durability(message, field),
        expiration=_expiration(message, field),
        labels=dict(message.labels),
    )


def decode_change(request: session_pb2.UpdateSessionRequest) -> SessionChange:
    """Return what an update changes: the paths of its mask, or without one the parts that are set.

    Raises:
        InvalidInput: A path that cannot be changed, or that has no value.
    """
    session = request.session
    if len(request.update_mask.paths) > MAX_PATHS:
        raise InvalidInput(f"update_mask: {len(request.update_mask.paths)} paths, at most {MAX_PATHS} are taken", field="update_mask")
    paths = set(request.update_mask.paths)
    if unknown := sorted(paths - set(_UPDATABLE)):
        raise InvalidInput(f"update_mask: {unknown[0]!r} cannot be changed; {', '.join(_UPDATABLE)} can", field="update_mask")
    expiring = session.WhichOneof("expiration")
    if not paths:
        paths = {name for name, given in (("durability", session.durability), ("labels", session.labels), (expiring, expiring)) if name and given}
    asked = paths & {"ttl", "expire_time"}
    if asked and asked != {expiring}:
        raise InvalidInput(f"session.{min(asked)}: the mask names it, so give it a value", field=f"session.{min(asked)}")
    return SessionChange(
        expiration=_expiration(session, "session") if asked else None,
        durability=_durability(session, "session") if "durability" in paths else None,
        labels=dict(session.labels) if "labels" in paths else None,
    )
