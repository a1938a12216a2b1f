"""SessionService: the lifecycle of sessions. Handlers translate: decode, call one method of the manager, encode."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from google.protobuf.message import Message

from cellstate.v1 import session_pb2, session_pb2_grpc
from cellstate_service.engine.resident import ResidentState
from cellstate_service.errors import CellstateError, InvalidInput, Reason
from cellstate_service.rpc.decode import MAX_STATE_TENSORS, decode_tensor
from cellstate_service.rpc.interceptor import CallContext
from cellstate_service.rpc.paging import decode_page, encode_token
from cellstate_service.rpc.session_messages import decode_change, decode_spec, encode_session
from cellstate_service.rpc.snapshot_codec import decode_snapshot, encode_snapshot
from cellstate_service.sessions.manager import SessionManager
from cellstate_service.sessions.request_cache import RequestCache, RequestKey
from cellstate_service.sessions.session import facts_of, state_digest
from cellstate_service.sessions.snapshots import Allowances

EXPORT_CHUNK_BYTES = 256 * 1024
IMPORT_CHUNK_BYTES = 1024 * 1024


class SessionServicer(session_pb2_grpc.SessionServiceServicer):
    """Serves the sessions of a manager to their owners."""

    def __init__(self, sessions: SessionManager, requests: RequestCache, max_snapshot_bytes: Callable[[], int]) -> None:
        self._sessions = sessions
        self._requests = requests
        self._max_snapshot_bytes = max_snapshot_bytes

    async def CreateSession(self, request: session_pb2.CreateSessionRequest, context: CallContext) -> session_pb2.CreateSessionResponse:  # type: ignore[override]
        """Create a session."""
        key = _key("CreateSession", request, request.request_id, context)
        spec = replace(decode_spec(request.session, "session"), uid=key.uid)
        initial = _initial_state(request.initial_state) if request.HasField("initial_state") else None

        async def create() -> session_pb2.CreateSessionResponse:
            return session_pb2.CreateSessionResponse(session=encode_session(facts_of(await self._sessions.create(context.owner, spec, initial))))

        return await self._requests.once(key, create)

    async def GetSession(self, request: session_pb2.GetSessionRequest, context: CallContext) -> session_pb2.GetSessionResponse:  # type: ignore[override]
        """Read a session."""
        facts, state = await self._sessions.read(context.owner, request.name)
        message = encode_session(facts)
        message.state_digest = state_digest(state)
        return session_pb2.GetSessionResponse(session=message)

    async def ListSessions(self, request: session_pb2.ListSessionsRequest, context: CallContext) -> session_pb2.ListSessionsResponse:  # type: ignore[override]
        """List the caller's sessions, by name."""
        page = decode_page(request.page_size, request.page_token, request.filter)
        sessions, more = await self._sessions.page(context.owner, request.filter, page.after, page.size)
        token = encode_token(sessions[-1].name, request.filter) if more else ""
        return session_pb2.ListSessionsResponse(sessions=[encode_session(session) for session in sessions], next_page_token=token)

    async def UpdateSession(self, request: session_pb2.UpdateSessionRequest, context: CallContext) -> session_pb2.UpdateSessionResponse:  # type: ignore[override]
        """Change a session."""
        session = await self._sessions.update(context.owner, request.session.name, decode_change(request))
        return session_pb2.UpdateSessionResponse(session=encode_session(facts_of(session)))

    async def DeleteSession(self, request: session_pb2.DeleteSessionRequest, context: CallContext) -> session_pb2.DeleteSessionResponse:  # type: ignore[override]
        """Delete a session."""

        async def delete() -> session_pb2.DeleteSessionResponse:
            await self._sessions.delete(context.owner, request.name, request.uid)
            return session_pb2.DeleteSessionResponse()

        return await self._requests.once(_key("DeleteSession", request, request.request_id, context), delete)

    async def ResetSession(self, request: session_pb2.ResetSessionRequest, context: CallContext) -> session_pb2.ResetSessionResponse:  # type: ignore[override]
        """Reset a session."""
        key = _key("ResetSession", request, request.request_id, context)
        seed = request.seed if request.HasField("seed") else None

        async def reset() -> session_pb2.ResetSessionResponse:
            session = await self._sessions.reset(context.owner, request.name, request.uid, seed, key.uid)
            return session_pb2.ResetSessionResponse(session=encode_session(facts_of(session)))

        return await self._requests.once(key, reset)

    async def ForkSession(self, request: session_pb2.ForkSessionRequest, context: CallContext) -> session_pb2.ForkSessionResponse:  # type: ignore[override]
        """Fork a session."""
        key = _key("ForkSession", request, request.request_id, context)
        spec = replace(decode_spec(request.session, "session"), uid=key.uid)
        position = request.position if request.HasField("position") else None

        async def fork() -> session_pb2.ForkSessionResponse:
            session = await self._sessions.fork(context.owner, request.name, spec, uid=request.uid, position=position)
            return session_pb2.ForkSessionResponse(session=encode_session(facts_of(session)))

        return await self._requests.once(key, fork)

    async def ExportSession(self, request: session_pb2.ExportSessionRequest, context: CallContext) -> AsyncIterator[session_pb2.ExportSessionResponse]:  # type: ignore[override]
        """Stream a snapshot."""
        data = encode_snapshot(await self._sessions.export(context.owner, request.name))
        for at in range(0, len(data), EXPORT_CHUNK_BYTES):
            yield session_pb2.ExportSessionResponse(data=data[at : at + EXPORT_CHUNK_BYTES], total_bytes=len(data) if at == 0 else None)

    async def ImportSession(  # type: ignore[override]
        self, request_iterator: AsyncIterator[session_pb2.ImportSessionRequest], context: CallContext
    ) -> session_pb2.ImportSessionResponse:
        """Create a session from a snapshot."""
        opening, data = await self._receive(request_iterator)
        key = RequestKey(context.owner, "ImportSession", opening.request_id, opening.SerializeToString(deterministic=True) + data)
        spec = replace(decode_spec(opening.session, "open.session"), uid=key.uid)
        allowed = Allowances(other_numerics=opening.allow_other_numerics, other_model_digest=opening.allow_other_model_digest)

        async def restore() -> session_pb2.ImportSessionResponse:
            session = await self._sessions.restore(context.owner, decode_snapshot(data), spec, allowed)
            return session_pb2.ImportSessionResponse(session=encode_session(facts_of(session)))

        try:
            return await self._requests.once(key, restore)
        except CellstateError as error:
            if error.field.startswith(("session.", "request_id")):
                error.under("open")
            raise

    async def _receive(self, requests: AsyncIterator[session_pb2.ImportSessionRequest]) -> tuple[session_pb2.ImportSessionOpen, bytes]:
        opening: session_pb2.ImportSessionOpen | None = None
        data = bytearray()
        async for message in requests:
            if (message.WhichOneof("message") == "open") != (opening is None):
                raise InvalidInput("open: an import opens with its first message, and only with it", Reason.STREAM_PROTOCOL, field="open")
            if opening is None:
                opening = message.open
                continue
            if not 1 <= len(message.data) <= IMPORT_CHUNK_BYTES:
                raise InvalidInput(f"data: a chunk of {len(message.data)} bytes, 1 to {IMPORT_CHUNK_BYTES} are taken", field="data")
            if len(data) + len(message.data) > (most := self._max_snapshot_bytes()):
                raise InvalidInput(f"data: more than {most} bytes, which no session of a loaded model takes", field="data")
            data += message.data
        if opening is None:
            raise InvalidInput("open: the stream ended before it was opened", Reason.STREAM_PROTOCOL, field="open")
        return opening, bytes(data)


def _key(method: str, request: Message, request_id: str, context: CallContext) -> RequestKey:
    return RequestKey(context.owner, method, request_id, request.SerializeToString(deterministic=True) if request_id else b"")


def _initial_state(message: session_pb2.InitialState) -> ResidentState:
    if len(message.tensors) > MAX_STATE_TENSORS:
        text = f"initial_state.tensors: {len(message.tensors)} are given, at most {MAX_STATE_TENSORS} are taken"
        raise InvalidInput(text, Reason.INVALID_TENSOR, field="initial_state.tensors")
    tensors = {}
    for index, named in enumerate(message.tensors):
        field = f"initial_state.tensors[{index}]"
        if named.name in tensors:
            raise InvalidInput(f"{field}.name: {named.name!r} is given twice", Reason.INVALID_TENSOR, field=f"{field}.name")
        tensors[named.name] = decode_tensor(named.tensor, f"{field}.tensor")
    return ResidentState(position=0, seed=0, tensors=tensors, last_output=None)
