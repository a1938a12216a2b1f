"""The Session message, to and from the plain data of `sessions/`."""

from cellstate.v1 import session_pb2
from cellstate_service.errors import InvalidInput
from cellstate_service.rpc.encode import encode_time
from cellstate_service.rpc.snapshot_codec import DURABILITIES
from cellstate_service.sessions.manager import SessionChange
from cellstate_service.sessions.session import Durability, Expiration, SessionFacts, SessionSpec

_ASKED: dict[int, Durability | None] = {session_pb2.DURABILITY_UNSPECIFIED: None} | {number: durability for durability, number in DURABILITIES.items()}
MAX_PATHS = 16
_UPDATABLE = ("ttl", "expire_time", "durability", "labels")


def encode_session(facts: SessionFacts) -> session_pb2.Session:
    """Return a session's message, without the digest of its state."""
    message = session_pb2.Session(
        name=facts.name,
        uid=facts.uid,
        model=facts.model,
        model_digest=facts.model_digest,
        owner=facts.owner,
        position=facts.position,
        seed=facts.seed,
        durability=DURABILITIES[facts.durability],
        create_time=encode_time(facts.created_s),
        use_time=encode_time(facts.used_s),
        expire_time=encode_time(facts.expires_s),
        labels=facts.labels,
        busy=facts.busy,
        state_bytes=facts.state_bytes,
        numerics_id=facts.numerics_id,
        safe_position=facts.safe_position,
    )
    if facts.idle_ttl_s is not None:
        message.idle_ttl.FromNanoseconds(int(facts.idle_ttl_s * 1e9))
    return message


def _durability(message: session_pb2.Session, field: str) -> Durability | None:
    if message.durability not in _ASKED:
        raise InvalidInput(f"{field}.durability: {message.durability} is not known", field=f"{field}.durability")
    return _ASKED[message.durability]


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
