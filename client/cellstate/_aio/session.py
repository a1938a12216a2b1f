"""The handle of a session, asyncio face."""

from types import TracebackType
from typing import Self, Unpack

from cellstate import _session_calls
from cellstate._aio import modes
from cellstate._aio.outputs import AsyncOutputs
from cellstate._aio.streams import AsyncStream
from cellstate._aio.transport import Transport
from cellstate._exchange import Call
from cellstate._tracking import Handle, Tracked, tracked_of
from cellstate.errors import CellstateError, NotFound, SessionReplaced
from cellstate.info import SessionInfo
from cellstate.inputs import AsyncChunks, Input
from cellstate.outputs import Result
from cellstate.programs import CallOptions, GenerationOptions, SessionChanges, SessionOptions, StreamOptions


class AsyncSession(Handle):
    """A session: a conversation with a model whose state the server keeps between calls. See `Session`, also for calls that failed or that you cut short.

    Made by `AsyncClient.session` (created on entering, deleted on leaving unless kept), `AsyncClient.open_session`, `AsyncClient.import_session` and `fork`.
    """

    def __init__(self, transport: Transport, made: Tracked | Call[SessionInfo], *, keep: bool) -> None:
        self._transport = transport
        self._keep = keep
        self._creation = made if isinstance(made, Call) else None
        self._tracked = made if isinstance(made, Tracked) else None

    async def create(self) -> Self:
        """Create the session, where that is not done yet; entering it does so too.

        Raises:
            AlreadyExists: You have a session of that name.
            NotFound: No such model.
            Overloaded: The server has as many sessions as allowed.
        """
        if self._creation is not None:
            self._tracked = Tracked(await self._transport.unary(self._creation))
            self._creation = None
        return self

    async def step(self, value: Input, **options: Unpack[CallOptions]) -> Result:
        """Take one step: one-to-one, the closed loop of controllers and policies."""
        return await modes.one_to_one(self._transport, self, value, options)

    async def many_to_one(self, inputs: AsyncChunks, **options: Unpack[CallOptions]) -> Result:
        """Consume a sequence, given whole or in chunks, and return the output of its last step."""
        return await modes.many_to_one(self._transport, self, inputs, options)

    def one_to_many(self, value: Input | None = None, **options: Unpack[GenerationOptions]) -> AsyncOutputs:
        """Consume a value or a prompt, then generate. None: go on from the last output."""
        return modes.one_to_many(self._transport, self, value, options)

    def generate(self, **options: Unpack[GenerationOptions]) -> AsyncOutputs:
        """Generate from the last output: `one_to_many` without an input."""
        return modes.one_to_many(self._transport, self, None, options)

    def many_to_many(self, inputs: AsyncChunks, **options: Unpack[StreamOptions]) -> AsyncOutputs:
        """Consume a sequence, given whole or in chunks, and return its outputs as they come."""
        return modes.many_to_many(self._transport, self, inputs, options)

    def stream(self, **options: Unpack[StreamOptions]) -> AsyncStream:
        """Open a full-duplex stream of inputs and directives."""
        return AsyncStream(self._transport, self, options)

    async def info(self) -> SessionInfo:
        """Read the session as the server sees it, and take over its uid and position."""
        return self._replaced(await self._transport.unary(_session_calls.get_session(self.name)))

    async def update(self, **changes: Unpack[SessionChanges]) -> SessionInfo:
        """Change the expiry, durability or labels."""
        return await self._transport.unary(_session_calls.update_session(tracked_of(self), changes))

    async def reset(self, *, seed: int | None = None) -> SessionInfo:
        """Put the session back to its model's initial state at position 0, with a new uid.

        Args:
            seed: New seed; None: it keeps its own.
        """
        return self._replaced(await self._transport.unary(_session_calls.reset_session(tracked_of(self), seed)))

    async def fork(self, *, position: int | None = None, keep: bool = False, **options: Unpack[SessionOptions]) -> "AsyncSession":
        """Make a second session from this one's state, with its own seed and future; also while a call is on this one.

        Args:
            position: Fork the state at this position, where the server still holds it; None: now.
            keep: Leave it on the server when its context is left.
            options: Settings that differ from this session's.
        """
        info = await self._transport.unary(_session_calls.fork_session(tracked_of(self), position, options))
        return AsyncSession(self._transport, Tracked(info), keep=keep)

    async def export(self) -> bytes:
        """Read the session as a portable, checksummed snapshot; `Client.import_session` takes it."""
        call = _session_calls.export_session(tracked_of(self))
        return _session_calls.join_export(await self._transport.read_all(call))

    async def delete(self) -> None:
        """Delete the session; a call on it ends with `SessionGone`."""
        await self._transport.unary(_session_calls.delete_session(tracked_of(self)))
        self._keep = True

    async def __aenter__(self) -> Self:
        """Create the session where it is not yet."""
        return await self.create()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Delete the session unless it is kept. What fails in that does not hide an error of the body."""
        if self._keep or self._tracked is None:
            return
        try:
            await self.delete()
        except (NotFound, SessionReplaced):
            return
        except CellstateError:
            if error is None:
                raise

    def _replaced(self, info: SessionInfo) -> SessionInfo:
        tracked_of(self).replaced(info)
        return info
