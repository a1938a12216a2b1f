"""What a handle knows of its session. Pure: both faces use it, and no call is made here.

Each call on a session carries its uid, the position of its first step and the position up to which outputs were received, so that a call sent again
is never applied twice. An error that carries a position moves the handle there. A call that the caller cut short leaves the session somewhere between
what was received and what was asked: the next call names no position then. After a stream that was cut or failed, calls present its token, so that they are
not refused as busy by what the server has left of it; while the stream lives they do not, so that a second call is refused and the stream goes on.
"""

from cellstate._log import SessionLog
from cellstate.errors import CellstateError, SessionBusy, SessionRolledBack, Superseded
from cellstate.info import SessionInfo
from cellstate.v1 import inference_pb2

GOES_ON_REASONS = frozenset({"SHUTTING_DOWN", "SESSION_MOVED", "STORE_UNAVAILABLE"})
"""Of errors after which the same is asked again, of this server or another."""


class Tracked:
    """A session's name, uid and position, as last heard of.

    Attributes:
        info: What the server last told of the session as a whole.
        position: The last position known.
        log: What was asked through the handle, to be asked again where the session goes back.
    """

    def __init__(self, info: SessionInfo) -> None:
        self.info = info
        self.log = SessionLog(info.safe_position)
        self.position = info.position
        self._certain = True
        self._stream_token = ""
        self._stream_left = False

    def replaced(self, info: SessionInfo) -> None:
        """Take over what the server tells of the session: its uid may be new. While a call is on it, the position is that call's to tell.

        A position before the one known is not taken over: the session went back, and the next call gives it again what followed, or fails.
        """
        if info.uid != self.info.uid:
            self.ended()
            self.log.clear(info.safe_position)
        elif info.busy or info.position < self.position:
            self.info = info
            return
        self.info = info
        self.reached(info.position)

    def reference(self) -> inference_pb2.SessionReference:
        """Return what a call says of the session."""
        return inference_pb2.SessionReference(
            name=self.info.name,
            uid=self.info.uid,
            position=self.position if self._certain else None,
            acknowledged_position=self.position,
            stream_token=self._stream_token if self._stream_left else "",
        )

    def opened(self, stream_token: str) -> None:
        """Hear the answer to opening: the position is told by what comes."""
        self._stream_token = stream_token
        self._stream_left = False

    def reached(self, position: int) -> None:
        """Hear of a position in an answer."""
        self.position = position
        self._certain = True

    def ended(self) -> None:
        """Hear that the call came to its own end."""
        self._stream_token = ""

    def left(self, stream_token: str) -> None:
        """Note that a stream was cut or failed: the server may not know yet."""
        if stream_token and stream_token == self._stream_token:
            self._stream_left = True

    def cut(self) -> None:
        """Note that the caller ended the call before its end."""
        self._certain = False

    def failed(self, error: CellstateError) -> None:
        """Take over the position that an error carries; without one stay, so that the same call sent again is applied once.

        Where another call is on the session, the position is that call's, whose outputs this handle did not receive: it is not taken over. Nor is that of a
        server that cannot answer now: what it took in and did not answer is to be asked again.
        """
        if error.position is not None and error.reason not in GOES_ON_REASONS and not isinstance(error, SessionBusy | Superseded):
            self.reached(error.position)
            if isinstance(error, SessionRolledBack):
                self.log.truncate(error.position)


class Handle:
    """What the session handles of both faces share: what is known without asking."""

    _tracked: Tracked | None = None

    @property
    def name(self) -> str:
        """The session's name."""
        return tracked_of(self).info.name

    @property
    def uid(self) -> str:
        """The session's uid."""
        return tracked_of(self).info.uid

    @property
    def model(self) -> str:
        """Name of the session's model."""
        return tracked_of(self).info.model

    @property
    def seed(self) -> int | None:
        """Seed of draws that name none; None for numeric models."""
        return tracked_of(self).info.seed

    @property
    def position(self) -> int:
        """The last position known: number of steps that the session has taken."""
        return tracked_of(self).position

    def __repr__(self) -> str:
        """Return name, model and position."""
        if self._tracked is None:
            return f"<{type(self).__name__} not created>"
        return f"<{type(self).__name__} {self.name!r} of {self.model!r} at position {self.position}>"


def tracked_of(handle: Handle) -> Tracked:
    """Return what a handle knows.

    Raises:
        RuntimeError: The session is not created yet.
    """
    if handle._tracked is None:
        raise RuntimeError("the session is not created yet: enter it (`with client.session(...) as session`), or call its create()")
    return handle._tracked
