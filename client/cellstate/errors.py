"""The one tree of errors that callers of this library meet. No grpc type in it: `_status.py` makes these from what arrives.

    CellstateError                  catch this to catch all
    ├── InvalidInput                a value, option or field is malformed or out of its bounds (also a ValueError)
    ├── NotFound                    no such model or session
    │   └── SessionGone             there was one: expired, evicted, closed, or lost with the server's process
    ├── AlreadyExists               you have a session of that name
    ├── Precondition                the session or model is not as the call needs it
    │   ├── SessionBusy             another call is on the session
    │   ├── SessionReplaced         the session of that name is another one by now
    │   └── SnapshotRefused         the snapshot is of another model, numerics id or format
    ├── PositionError               the position given is not the session's; `position` is
    │   └── SessionRolledBack       the session is at an older position again, and this handle cannot give it what followed
    ├── Aborted                     something newer took over; call again
    │   └── Superseded              a newer call took the session over
    ├── SnapshotCorrupt             the snapshot is torn
    ├── Overloaded                  a limit of the server is reached; `retry_after_s` says when to try again
    │   └── QuotaExceeded           your own quota is used up
    ├── Unauthenticated             no bearer token, or an unknown one
    ├── PermissionDenied            you may not make this call
    ├── NotOffered                  this server does not offer it
    ├── Unavailable                 the server is stopping or cannot be reached (also a ConnectionError)
    ├── DeadlineExceeded            the call's deadline passed (also a TimeoutError)
    ├── Cancelled                   the call was cancelled
    └── ServerError                 a fault of the server
        └── StepFailed              a step raised, or gave NaN or infinity

Inputs of a type that cannot be converted at all raise `TypeError`, as anywhere in Python.
"""
# ruff: noqa: N818 - named as their status codes are

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorDetails:
    """What is known of an error besides its message.

    Attributes:
        reason: Stable reason, one word for programs: `SESSION_BUSY`, `TOKEN_OUT_OF_RANGE`. The status code's name where the server gave none.
        code: Name of the status code: `NOT_FOUND`, `INVALID_ARGUMENT`. Empty where the error was found before anything was sent.
        field: Path of the request field at fault, or "".
        metadata: Figures that a program can use.
        retry_after_s: Seconds to wait before trying again, where that helps.
        quota_subject: What the exhausted quota counts, where one is.
    """

    reason: str = ""
    code: str = ""
    field: str = ""
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    retry_after_s: float | None = None
    quota_subject: str = ""


class CellstateError(Exception):
    """An error of a call.

    Attributes:
        message: One sentence for people, saying what to do.
        details: What else is known; its fields can be read from the error itself.
    """

    default_reason = "INTERNAL"

    def __init__(self, message: str, details: ErrorDetails | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details or ErrorDetails()

    @property
    def reason(self) -> str:
        """Stable reason, one word for programs."""
        return self.details.reason or self.default_reason

    @property
    def code(self) -> str:
        """Name of the status code, or "" where the error was found before anything was sent."""
        return self.details.code

    @property
    def field(self) -> str:
        """Path of the request field at fault, or ""."""
        return self.details.field

    @property
    def metadata(self) -> Mapping[str, str]:
        """Figures that a program can use."""
        return self.details.metadata

    @property
    def retry_after_s(self) -> float | None:
        """Seconds to wait before trying again, where that helps."""
        return self.details.retry_after_s

    @property
    def position(self) -> int | None:
        """Where the session stands, after its last completed step; None where the error does not say."""
        text = self.metadata.get("position", "")
        return int(text) if text.isdecimal() else None

    def __str__(self) -> str:
        """Return the message, with the field and the reason."""
        where = f" (field: {self.field})" if self.field else ""
        return f"{self.message}{where} [{self.reason}]"

    def __reduce__(self) -> tuple[type["CellstateError"], tuple[str, ErrorDetails]]:
        """Pickle by message and details, so that errors cross processes."""
        return type(self), (self.message, self.details)


class InvalidInput(CellstateError, ValueError):
    """A value, option or field is malformed or out of its bounds."""

    default_reason = "INVALID_FIELD"


class NotFound(CellstateError):
    """No such model or session."""

    default_reason = "NOT_FOUND"


class SessionGone(NotFound):
    """There was such a session of yours. `why` tells what became of it: expired, evicted, closed or lost."""

    default_reason = "SESSION_CLOSED"

    @property
    def why(self) -> str:
        """One of expired, evicted, closed, lost."""
        return self.reason.removeprefix("SESSION_").lower()


class AlreadyExists(CellstateError):
    """You have a session of that name."""

    default_reason = "SESSION_EXISTS"


class Precondition(CellstateError):
    """The session or model is not as the call needs it."""

    default_reason = "FAILED_PRECONDITION"


class SessionBusy(Precondition):
    """Another call is on the session: wait for it, or take over."""

    default_reason = "SESSION_BUSY"


class SessionReplaced(Precondition):
    """The session of that name is another one by now: deleted and created again, imported or reset."""

    default_reason = "UID_MISMATCH"


class SnapshotRefused(Precondition):
    """The snapshot is of another model digest, numerics id, format version or state schema."""

    default_reason = "SNAPSHOT_MISMATCH"


class PositionError(CellstateError):
    """The position given is not the session's; `position` is the expected one, and a session handle has taken it over."""

    default_reason = "POSITION_MISMATCH"


class SessionRolledBack(PositionError):
    """The session is at an older position again: its server died, and this handle does not hold what was asked since the last snapshot.

    That is so for handles of `open_session`, and beyond 64 MiB of inputs. `position` is where the session stands; the handle has taken it over, and its
    next call goes on from there.
    """

    default_reason = "SESSION_ROLLED_BACK"


class Aborted(CellstateError):
    """Something newer took over; call again."""

    default_reason = "ABORTED"


class Superseded(Aborted):
    """A newer call took the session over."""

    default_reason = "SUPERSEDED"


class SnapshotCorrupt(CellstateError):
    """The snapshot is torn or fails its checksum."""

    default_reason = "SNAPSHOT_CORRUPT"


class Overloaded(CellstateError):
    """A limit of the server is reached; `retry_after_s` says when to try again, where the server knows."""

    default_reason = "OVERLOADED"


class QuotaExceeded(Overloaded):
    """Your own quota is used up; `details.quota_subject` names it."""

    default_reason = "QUOTA_EXCEEDED"


class Unauthenticated(CellstateError):
    """No bearer token, or an unknown one."""

    default_reason = "UNAUTHENTICATED"


class PermissionDenied(CellstateError):
    """You may not make this call."""

    default_reason = "PERMISSION_DENIED"


class NotOffered(CellstateError):
    """This server does not offer it."""

    default_reason = "NOT_OFFERED"


class Unavailable(CellstateError, ConnectionError):
    """The server is stopping or cannot be reached."""

    default_reason = "UNAVAILABLE"


class DeadlineExceeded(CellstateError, TimeoutError):
    """The call's deadline passed. Steps taken before it stay taken; the same call made again on the same session handle takes none of them twice.

    `PositionError` on the repetition says that the server does not hold the answer any more: look at its `position`, do not send the same again.
    """

    default_reason = "DEADLINE_EXCEEDED"


class Cancelled(CellstateError):
    """The call was cancelled, by the server or on the way."""

    default_reason = "CANCELLED"


class ServerError(CellstateError):
    """A fault of the server; `metadata["log_id"]` finds it in the server's log."""

    default_reason = "INTERNAL"


class StepFailed(ServerError):
    """A step raised, or gave NaN or infinity; the session stands after its last completed step."""

    default_reason = "STEP_FAILED"
