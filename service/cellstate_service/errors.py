"""The one tree of errors that the server's layers raise. No grpc in here: `rpc/status.py` maps each to a status code and a `Reason` travels in ErrorInfo.

CellstateError
├── InvalidInput            a field is missing, malformed or out of its bounds
├── NotFound                no such model or session, with the reason told to the owner
├── AlreadyExists           the caller has a session of that name
├── Precondition            busy, another uid, another position, nothing to generate from, a foreign snapshot
├── Aborted                 superseded, moved, position or request id used with other content
├── DataLoss                a snapshot is torn
├── Exhausted               a limit of the server or of the caller; may carry seconds to wait and the quota's subject
├── DeadlinePassed          the call's deadline passed between two steps
├── Unavailable             the server is stopping
├── NotOffered              this server does not offer it
├── Unauthenticated
├── PermissionDenied
└── StepFailed              a step raised, or gave NaN or infinity; the session stands after its last completed step
"""

from collections.abc import Mapping
from enum import StrEnum, auto


class Reason(StrEnum):
    """Stable reasons: the names of `cellstate.v1.ErrorReason` without their prefix (a contract test compares both)."""

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[str]) -> str:
        return name

    INVALID_FIELD = auto()
    INVALID_TENSOR = auto()
    NOT_FINITE = auto()
    EMPTY_SEQUENCE = auto()
    TOKEN_OUT_OF_RANGE = auto()
    TEXT_NOT_ENCODABLE = auto()
    STREAM_PROTOCOL = auto()
    NOT_SUPPORTED_BY_MODEL = auto()
    MODEL_NOT_FOUND = auto()
    SESSION_NOT_FOUND = auto()
    SESSION_EXPIRED = auto()
    SESSION_EVICTED = auto()
    SESSION_CLOSED = auto()
    SESSION_LOST = auto()
    SESSION_MOVED = auto()
    SESSION_EXISTS = auto()
    SESSION_BUSY = auto()
    SUPERSEDED = auto()
    UID_MISMATCH = auto()
    POSITION_MISMATCH = auto()
    POSITION_CONFLICT = auto()
    SESSION_ROLLED_BACK = auto()
    NOTHING_TO_GENERATE_FROM = auto()
    SNAPSHOT_CORRUPT = auto()
    SNAPSHOT_MISMATCH = auto()
    SESSION_LIMIT = auto()
    OVERLOADED = auto()
    QUOTA_EXCEEDED = auto()
    STEP_FAILED = auto()
    INTERNAL = auto()
    UNAUTHENTICATED = auto()
    PERMISSION_DENIED = auto()
    SHUTTING_DOWN = auto()
    STORE_UNAVAILABLE = auto()
    NOT_OFFERED = auto()
    REQUEST_ID_CONFLICT = auto()
    DEADLINE_EXCEEDED = auto()
    MODEL_TOO_LARGE = auto()
    MODEL_INVALID = auto()


class CellstateError(Exception):
    """An error that a caller is told.

    Attributes:
        message: One sentence for people, saying what to do.
        reason: Stable reason.
        field: Path of the request field at fault, or "".
        metadata: Figures that a program can use, for example `position`.
        retry_after_s: Seconds to wait before trying again, where that helps.
        quota_subject: What the exhausted quota counts, where one is.
    """

    reason = Reason.INTERNAL

    def __init__(
        self,
        message: str,
        reason: Reason | None = None,
        *,
        field: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        quota_subject: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason
        self.field = field
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s
        self.quota_subject = quota_subject

    def at(self, position: int) -> "CellstateError":
        """Return this error, carrying the position at which the session stands."""
        self.metadata["position"] = str(position)
        return self

    def under(self, path: str) -> "CellstateError":
        """Return this error with `path` put before its field: `input` under `programs[3]` is `programs[3].input`."""
        self.field = f"{path}.{self.field}" if self.field else path
        return self


class InvalidInput(CellstateError):
    """A field is missing, malformed or out of its bounds."""

    reason = Reason.INVALID_FIELD


class NotFound(CellstateError):
    """No such model or session."""

    reason = Reason.SESSION_NOT_FOUND


class AlreadyExists(CellstateError):
    """The caller has a session of that name."""

    reason = Reason.SESSION_EXISTS


class Precondition(CellstateError):
    """The session or model is not as the call needs it."""

    reason = Reason.SESSION_BUSY


class Aborted(CellstateError):
    """Something newer took over."""

    reason = Reason.SUPERSEDED


class DataLoss(CellstateError):
    """A snapshot is torn."""

    reason = Reason.SNAPSHOT_CORRUPT


class Exhausted(CellstateError):
    """A limit is reached."""

    reason = Reason.OVERLOADED


class DeadlinePassed(CellstateError):
    """The call's deadline passed between two steps."""

    reason = Reason.DEADLINE_EXCEEDED


class Unavailable(CellstateError):
    """The server is stopping."""

    reason = Reason.SHUTTING_DOWN


class NotOffered(CellstateError):
    """This server does not offer it."""

    reason = Reason.NOT_OFFERED


class Unauthenticated(CellstateError):
    """No bearer token, or an unknown one."""

    reason = Reason.UNAUTHENTICATED


class PermissionDenied(CellstateError):
    """The caller may not make this call."""

    reason = Reason.PERMISSION_DENIED


class StepFailed(CellstateError):
    """A step raised, or gave NaN or infinity."""

    reason = Reason.STEP_FAILED
