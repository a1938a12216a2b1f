"""Makes typed errors of a status: its code, its message and the `google.rpc.Status` in its trailers. Pure: both faces use it."""

from collections.abc import Iterable
from typing import Any

from google.rpc import error_details_pb2, status_pb2

from cellstate import errors
from cellstate.errors import CellstateError, ErrorDetails
from cellstate.v1 import error_pb2

DETAILS_KEY = "grpc-status-details-bin"
_DOMAIN = "cellstate"

_BY_REASON: dict[str, type[CellstateError]] = {
    "SESSION_EXPIRED": errors.SessionGone,
    "SESSION_EVICTED": errors.SessionGone,
    "SESSION_CLOSED": errors.SessionGone,
    "SESSION_LOST": errors.SessionGone,
    "SESSION_BUSY": errors.SessionBusy,
    "UID_MISMATCH": errors.SessionReplaced,
    "SNAPSHOT_MISMATCH": errors.SnapshotRefused,
    "SNAPSHOT_CORRUPT": errors.SnapshotCorrupt,
    "POSITION_MISMATCH": errors.PositionError,
    "POSITION_CONFLICT": errors.PositionError,
    "SESSION_ROLLED_BACK": errors.SessionRolledBack,
    "SUPERSEDED": errors.Superseded,
    "QUOTA_EXCEEDED": errors.QuotaExceeded,
    "STEP_FAILED": errors.StepFailed,
}

# Numbers of google.rpc.Code: name, class, and what to do where the status carries no reason of the server's own.
_BY_CODE: dict[int, tuple[str, type[CellstateError], str]] = {
    1: ("CANCELLED", errors.Cancelled, "the call was cancelled"),
    2: ("UNKNOWN", errors.ServerError, "the server failed without saying why; see its log"),
    3: ("INVALID_ARGUMENT", errors.InvalidInput, "check the values given"),
    4: ("DEADLINE_EXCEEDED", errors.DeadlineExceeded, "the deadline passed; give a larger timeout_s, or call again"),
    5: ("NOT_FOUND", errors.NotFound, "check the name"),
    6: ("ALREADY_EXISTS", errors.AlreadyExists, "choose another name"),
    7: ("PERMISSION_DENIED", errors.PermissionDenied, "this token may not make this call"),
    8: ("RESOURCE_EXHAUSTED", errors.Overloaded, "send less at once or later; a message over max_message_bytes is refused as well"),
    9: ("FAILED_PRECONDITION", errors.Precondition, "the server is not in the state that this call needs"),
    10: ("ABORTED", errors.Aborted, "call again"),
    11: ("OUT_OF_RANGE", errors.InvalidInput, "check the values given"),
    12: ("UNIMPLEMENTED", errors.NotOffered, "what listens there does not offer this call; is it a cellstate server?"),
    13: ("INTERNAL", errors.ServerError, "see the server's log"),
    14: ("UNAVAILABLE", errors.Unavailable, "check the address, and whether the server runs (`cellstate serve`) and expects TLS; then call again"),
    15: ("DATA_LOSS", errors.SnapshotCorrupt, "the snapshot is torn; use another copy"),
    16: ("UNAUTHENTICATED", errors.Unauthenticated, "give the client a valid token"),
}


def error_from_status(code: int, message: str, trailers: Iterable[Any] | None = None) -> CellstateError:
    """Make the typed error of a status.

    Args:
        code: A `google.rpc.Code` number.
        message: The status message.
        trailers: Trailing metadata, pairs of key and value; a torn or foreign details entry is passed over.
    """
    name, _, advice = _BY_CODE.get(code, (str(code), errors.ServerError, "see the server's log"))
    details, told = _read_details(name, trailers or ())
    if details.reason:
        return _make(code, told or message, details)
    return _make(code, f"{message or name.lower()}: {advice}", ErrorDetails(reason=name, code=name))


def error_from_failure(failure: error_pb2.Failure) -> CellstateError:
    """Make the typed error of one program in `Run`, or of one channel of a stream."""
    name = _BY_CODE.get(failure.code, (str(failure.code),))[0]
    metadata = {"position": str(failure.position)} if failure.HasField("position") else {}
    details = ErrorDetails(
        reason=_reason_name(failure.reason) or name,
        code=name,
        field=failure.field,
        metadata=metadata,
        retry_after_s=failure.retry_after_s if failure.HasField("retry_after_s") else None,
    )
    return _make(failure.code, failure.message, details)


def _make(code: int, message: str, details: ErrorDetails) -> CellstateError:
    by_code = _BY_CODE[code][1] if code in _BY_CODE else errors.ServerError
    return _BY_REASON.get(details.reason, by_code)(message, details)


def _reason_name(number: int) -> str:
    value = error_pb2.ErrorReason.DESCRIPTOR.values_by_number.get(number)
    return value.name.removeprefix("ERROR_REASON_") if value is not None and number else ""


def _read_details(code_name: str, trailers: Iterable[Any]) -> tuple[ErrorDetails, str]:
    """Return the details and the message of the status in the trailers; details without a reason where there is none of ours."""
    raw = next((value for key, value in trailers if key == DETAILS_KEY), b"")
    status = status_pb2.Status()
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    quota = error_details_pb2.QuotaFailure()
    try:
        status.ParseFromString(raw if isinstance(raw, bytes) else raw.encode())
        for packed in status.details:
            for known in (info, bad_request, retry, quota):
                packed.Unpack(known)
    except Exception:  # torn details of whatever kind must not hide the error itself
        return ErrorDetails(), ""
    if info.domain != _DOMAIN:
        return ErrorDetails(), ""
    details = ErrorDetails(
        reason=info.reason,
        code=code_name,
        field=bad_request.field_violations[0].field if bad_request.field_violations else "",
        metadata=dict(info.metadata),
        retry_after_s=retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9 if retry.HasField("retry_delay") else None,
        quota_subject=quota.violations[0].subject if quota.violations else "",
    )
    return details, status.message
