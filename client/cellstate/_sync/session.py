"""The handle of a session, sync face."""

from types import TracebackType
from typing import Self, Unpack

from cellstate import _session_calls
from cellstate._exchange import Call
from cellstate._sync import modes
from cellstate._sync.outputs import Outputs
from cellstate._sync.streams import Stream
from cellstate._sync.transport import Transport
from cellstate._tracking import Handle, Tracked, tracked_of
from cellstate.errors import CellstateError, NotFound, SessionReplaced
from cellstate.info import SessionInfo
from cellstate.inputs import Chunks, Input
from cellstate.outputs import Result
from cellstate.programs import CallOptions, GenerationOptions, SessionChanges, SessionOptions, StreamOptions


class Session(Handle):
    """A session: a conversation with a model whose state the server keeps between calls.

    Made by `Client.session` (created on entering, deleted on leaving unless kept), `Client.open_session`, `Client.import_session` and `fork`. One call at
    a time: a second one is refused with `SessionBusy`. Calls go on by themselves where the connection is lost, the server drains or dies and comes again, or
    the session moves: each output comes once, in order, with the values of a run that nothing interrupted. For that the handle keeps what it asked until the
    server has secured it, up to 64 MiB; your iterables are read once.

    Where that cannot be, an error tells: `Unavailable` after `resume_s` without progress, `SessionGone`, or `SessionRolledBack` where the session is at an
    older position and this handle does not have all that followed. Calls carry the session's uid and position, so a call that failed on the way can be made
    again on the same handle: no step is taken twice. `PositionError` then says that part or all of it was applied before: look at the error's `position`, and
    do not send the whole again.

    A call that you cut short yourself - `cancel`, leaving a stream early, Ctrl-C, `asyncio.wait_for` - is another matter: any of its steps may have been taken,
    the handle does not know how many, and its next call goes on from wherever the session stands. `info().position` tells, once the session is not busy.
    """

    def __init__(self, transport: Transport, made: Tracked | Call[SessionInfo], *, keep: bool) -> None:
        self._transport = transport
        self._keep = keep
        self._creation = made if isinstance(made, Call) else None
        self._tracked = made if isinstance(made, Tracked) else None

    def create(self) -> Self:
        """Create the session, where that is not done yet; entering it does so too.

        Raises:
            AlreadyExists: You have a session of that name.
            NotFound: No such model.
            Overloaded: The server has as many sessions as allowed.
        """
        if self._creation is not None:
            self._tracked = Tracked(self._transport.unary(self._creation))
            self._creation = None
        return self

    def step(self, value: Input, **options: Unpack[CallOptions]) -> Result:
        """Take one step: one-to-one, the closed loop of controllers and policies."""
        return modes.one_to_one(self._transport, self, value, options)

    def many_to_one(self, inputs: Chunks, **options: Unpack[CallOptions]) -> Result:
        """Consume a sequence, given whole or in chunks, and return the output of its last step."""
        return modes.many_to_one(self._transport, self, inputs, options)

    def one_to_many(self, value: Input | None = None, **options: Unpack[GenerationOptions]) -> Outputs:
        """Consume a value or a prompt, then generate. None: go on from the last output."""
        return modes.one_to_many(self._transport, self, value, options)

    def generate(self, **options: Unpack[GenerationOptions]) -> Outputs:
        """Generate from the last output: `one_to_many` without an input."""
        return modes.one_to_many(self._transport, self, None, options)

    def many_to_many(self, inputs: Chunks, **options: Unpack[StreamOptions]) -> Outputs:
        """Consume a sequence, given whole or in chunks, and return its outputs as they come."""
        return modes.many_to_many(self._transport, self, inputs, options)

    def stream(self, **options: Unpack[StreamOptions]) -> Stream:
        """Open a full-duplex stream of inputs and directives."""
        return Stream(self._transport, self, options)

    def info(self) -> SessionInfo:
        """Read the session as the server sees it, and take over its uid and position."""
        return self._replaced(self._transport.unary(_session_calls.get_session(self.name)))

    def update(self, **changes: Unpack[SessionChanges]) -> SessionInfo:
        """Change the expiry, durability or labels."""
        return self._transport.unary(_session_calls.update_session(tracked_of(self), changes))

    def reset(self, *, seed: int | None = None) -> SessionInfo:
        """Put the session back to its model's initial state at position 0, with a new uid.

        Args:
            seed: New seed; None: it keeps its own.
        """
        return self._replaced(self._transport.unary(_session_calls.reset_session(tracked_of(self), seed)))

    def fork(self, *, position: int | None = None, keep: bool = False, **options: Unpack[SessionOptions]) -> "Session":
        """Make a second session from this one's state, with its own seed and future; also while a call is on this one.

        Args:
            position: Fork the state at this position, where the server still holds it; None: now.
            keep: Leave it on the server when its context is left.
            options: Settings that differ from this session's.
        """
        info = self._transport.unary(_session_calls.fork_session(tracked_of(self), position, options))
        return Session(self._transport, Tracked(info), keep=keep)

    def export(self) -> bytes:
        """Read the session as a portable, checksummed snapshot; `Client.import_session` takes it."""
        call = _session_calls.export_session(tracked_of(self))
        return _session_calls.join_export(self._transport.read_all(call))

    def delete(self) -> None:
        """Delete the session; a call on it ends with `SessionGone`."""
        self._transport.unary(_session_calls.delete_session(tracked_of(self)))
        self._keep = True

    def __enter__(self) -> Self:
        """Create the session where it is not yet."""
        return self.create()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Delete the session unless it is kept. What fails in that does not hide an error of the body."""
        if self._keep or self._tracked is None:
            return
        try:
            self.delete()
        except (NotFound, SessionReplaced):
            return
        except CellstateError:
            if error is None:
                raise

    def _replaced(self, info: SessionInfo) -> SessionInfo:
        tracked_of(self).replaced(info)
        return info
