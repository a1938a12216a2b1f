"""The calls of `SessionService` and `ModelService`, ready to be made. Pure, as `_calls.py`."""

import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask

from cellstate._convert import to_enum, to_unsigned
from cellstate._convert_info import from_model, from_session, to_duration, to_initial_state, to_timestamp
from cellstate._exchange import Call
from cellstate._tracking import Tracked
from cellstate.errors import ErrorDetails, InvalidInput, SnapshotCorrupt
from cellstate.info import Durability, ModelInfo, SessionInfo
from cellstate.programs import SessionChanges, SessionOptions, check_options
from cellstate.v1 import model_pb2, session_pb2

T = TypeVar("T")

_IMPORT_CHUNK_BYTES = 256 * 1024
_PAGE_SIZE = 1000


@dataclass(frozen=True)
class Page(Generic[T]):
    """A page of a list, and the token of the next one; "" on the last."""

    items: list[T]
    next_token: str


def list_models(page_token: str, timeout_s: float | None) -> Call[Page[ModelInfo]]:
    """Read a page of models."""

    def decode(response: model_pb2.ListModelsResponse) -> Page[ModelInfo]:
        return Page([from_model(model) for model in response.models], response.next_page_token)

    return Call("models", "ListModels", decode, model_pb2.ListModelsRequest(page_size=_PAGE_SIZE, page_token=page_token), None, timeout_s, repeats=True)


def get_model(name: str, timeout_s: float | None) -> Call[ModelInfo]:
    """Read a model."""
    return Call("models", "GetModel", lambda response: from_model(response.model), model_pb2.GetModelRequest(name=name), None, timeout_s, repeats=True)


def create_session(model: str, options: SessionOptions, initial_state: Mapping[str, Any] | None) -> Call[SessionInfo]:
    """Create a session."""
    check_options(options, SessionOptions, "session")
    session = to_session(options)
    session.model = model
    request = session_pb2.CreateSessionRequest(session=session, initial_state=to_initial_state(initial_state), request_id=_request_id())
    return Call("sessions", "CreateSession", _session_of, request, repeats=True)


def get_session(name: str, timeout_s: float | None = None) -> Call[SessionInfo]:
    """Read a session."""
    return Call("sessions", "GetSession", _session_of, session_pb2.GetSessionRequest(name=name), None, timeout_s, repeats=True)


def list_sessions(filter: str, page_token: str) -> Call[Page[SessionInfo]]:  # noqa: A002 - the contract's word
    """Read a page of sessions."""

    def decode(response: session_pb2.ListSessionsResponse) -> Page[SessionInfo]:
        return Page([from_session(session) for session in response.sessions], response.next_page_token)

    return Call("sessions", "ListSessions", decode, session_pb2.ListSessionsRequest(page_size=_PAGE_SIZE, page_token=page_token, filter=filter), repeats=True)


def update_session(tracked: Tracked, changes: SessionChanges) -> Call[SessionInfo]:
    """Change what is given."""
    check_options(changes, SessionChanges, "update")
    session = to_session(changes)
    session.name = tracked.info.name
    paths = {"ttl_s": "ttl", "expire_time": "expire_time", "labels": "labels", "durability": "durability"}
    mask = FieldMask(paths=[path for key, path in paths.items() if changes.get(key) is not None])
    if not mask.paths:
        raise InvalidInput(f"nothing to change: give one of {', '.join(paths)}", ErrorDetails(field="update_mask"))
    return Call("sessions", "UpdateSession", _session_of, session_pb2.UpdateSessionRequest(session=session, update_mask=mask))


def delete_session(tracked: Tracked) -> Call[None]:
    """Delete a session."""
    request = session_pb2.DeleteSessionRequest(name=tracked.info.name, uid=tracked.info.uid, request_id=_request_id())
    return Call("sessions", "DeleteSession", lambda _: None, request, repeats=True)


def reset_session(tracked: Tracked, seed: int | None) -> Call[SessionInfo]:
    """Put a session back to its beginning."""
    request = session_pb2.ResetSessionRequest(name=tracked.info.name, uid=tracked.info.uid, seed=to_unsigned(seed, 64, "seed"), request_id=_request_id())
    return Call("sessions", "ResetSession", _session_of, request, tracked, repeats=True)


def fork_session(tracked: Tracked, position: int | None, options: SessionOptions) -> Call[SessionInfo]:
    """Make a second session of a session's state."""
    check_options(options, SessionOptions, "fork")
    request = session_pb2.ForkSessionRequest(
        name=tracked.info.name, uid=tracked.info.uid, position=to_unsigned(position, 64, "position"), session=to_session(options), request_id=_request_id()
    )
    return Call("sessions", "ForkSession", _session_of, request, repeats=True)


def export_session(tracked: Tracked) -> Call[Any]:
    """Read a session as a snapshot, in chunks; `join_export` puts them together."""
    return Call("sessions", "ExportSession", lambda response: response, session_pb2.ExportSessionRequest(name=tracked.info.name))


def join_export(responses: Iterable[session_pb2.ExportSessionResponse]) -> bytes:
    """Put the chunks of a snapshot together.

    Raises:
        SnapshotCorrupt: Bytes are missing.
    """
    received = list(responses)
    data = b"".join(response.data for response in received)
    expected = next((response.total_bytes for response in received if response.HasField("total_bytes")), len(data))
    if len(data) != expected:
        raise SnapshotCorrupt(f"{len(data)} of {expected} bytes arrived: export again")
    return data


def import_session(
    options: SessionOptions, *, allow_other_numerics: bool, allow_other_model_digest: bool
) -> tuple[Call[SessionInfo], session_pb2.ImportSessionOpen]:
    """Create a session from a snapshot; `import_messages` makes the stream."""
    check_options(options, SessionOptions, "import_session")
    if options.get("seed") is not None:
        raise InvalidInput("a snapshot brings its seed; reset or fork the session for another", ErrorDetails(field="seed"))
    opening = session_pb2.ImportSessionOpen(
        session=to_session(options),
        allow_other_numerics=allow_other_numerics,
        allow_other_model_digest=allow_other_model_digest,
        request_id=_request_id(),
    )
    return Call("sessions", "ImportSession", _session_of), opening


def import_messages(opening: session_pb2.ImportSessionOpen, data: bytes) -> Iterator[session_pb2.ImportSessionRequest]:
    """Yield the opening, then the snapshot in chunks."""
    yield session_pb2.ImportSessionRequest(open=opening)
    for start in range(0, len(data), _IMPORT_CHUNK_BYTES):
        yield session_pb2.ImportSessionRequest(data=data[start : start + _IMPORT_CHUNK_BYTES])


def to_session(options: Mapping[str, Any]) -> session_pb2.Session:
    """Return the settings that are given.

    Raises:
        InvalidInput: Both a time to live and an absolute end, or a number that cannot be sent.
    """
    ttl_s, expire_time, durability = options.get("ttl_s"), options.get("expire_time"), options.get("durability")
    if ttl_s is not None and expire_time is not None:
        raise InvalidInput("give ttl_s or expire_time, not both", ErrorDetails(field="session.expire_time"))
    seed = to_unsigned(options.get("seed"), 64, "session.seed")
    session = session_pb2.Session(name=options.get("name") or "", seed=seed, labels=options.get("labels") or {})
    if ttl_s is not None:
        session.ttl.CopyFrom(to_duration(ttl_s))
    if expire_time is not None:
        session.expire_time.CopyFrom(to_timestamp(expire_time))
    if durability is not None:
        session.durability = to_enum(Durability, session_pb2.Durability, durability, "session.durability")
    return session


def _session_of(response: Any) -> SessionInfo:
    return from_session(response.session)


def _request_id() -> str:
    return str(uuid.uuid4())
