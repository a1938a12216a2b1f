"""The one table from errors to status codes, and the rich status that carries reason, field and waiting time."""

import secrets

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from cellstate.v1 import error_pb2
from cellstate_service.errors import (
    Aborted,
    AlreadyExists,
    CellstateError,
    DataLoss,
    DeadlinePassed,
    Exhausted,
    InvalidInput,
    NotFound,
    NotOffered,
    PermissionDenied,
    Precondition,
    StepFailed,
    Unauthenticated,
    Unavailable,
)

DOMAIN = "cellstate"
#: What callers send back in an error is cut to this, so that the status always fits the 8 KiB of metadata that gRPC takes.
MAX_MESSAGE_BYTES = 1024
MAX_FIELD_BYTES = 256

CODES: dict[type[CellstateError], grpc.StatusCode] = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    Precondition: grpc.StatusCode.FAILED_PRECONDITION,
    Aborted: grpc.StatusCode.ABORTED,
    DataLoss: grpc.StatusCode.DATA_LOSS,
    Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlinePassed: grpc.StatusCode.DEADLINE_EXCEEDED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    NotOffered: grpc.StatusCode.UNIMPLEMENTED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    StepFailed: grpc.StatusCode.INTERNAL,
    CellstateError: grpc.StatusCode.INTERNAL,
}


def status_code(error: CellstateError) -> grpc.StatusCode:
    """Return the code of an error."""
    return CODES[type(error)]


def unexpected() -> CellstateError:
    """Return the error that stands for an unforeseen fault: a log id, and nothing of the inside."""
    log_id = secrets.token_hex(8)
    return CellstateError(f"an unexpected fault of the server; its log tells more under the id {log_id}", metadata={"log_id": log_id})


def _cut(text: str, limit: int) -> str:
    data = text.encode("utf-8", "replace")
    return text if len(data) <= limit else data[: limit - 3].decode("utf-8", "ignore") + "…"


def rich_status(error: CellstateError) -> status_pb2.Status:
    """Return `google.rpc.Status` with ErrorInfo, and BadRequest, RetryInfo and QuotaFailure where they apply."""
    message, field = _cut(error.message, MAX_MESSAGE_BYTES), _cut(error.field, MAX_FIELD_BYTES)
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=error.metadata)]
    if field:
        details.append(error_details_pb2.BadRequest(field_violations=[error_details_pb2.BadRequest.FieldViolation(field=field, description=message)]))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if error.quota_subject:
        violation = error_details_pb2.QuotaFailure.Violation(subject=error.quota_subject, description=message)
        details.append(error_details_pb2.QuotaFailure(violations=[violation]))
    packed = []
    for detail in details:
        wrapper = any_pb2.Any()
        wrapper.Pack(detail)
        packed.append(wrapper)
    return status_pb2.Status(code=status_code(error).value[0], message=message, details=packed)


def failure(error: CellstateError) -> error_pb2.Failure:
    """Return an error in the stream's own typed form."""
    message = error_pb2.Failure(
        code=code_pb2.Code.Value(status_code(error).name),
        reason=error_pb2.ErrorReason.Value(f"ERROR_REASON_{error.reason.value}"),
        message=_cut(error.message, MAX_MESSAGE_BYTES),
        field=_cut(error.field, MAX_FIELD_BYTES),
    )
    if "position" in error.metadata:
        message.position = int(error.metadata["position"])
    if error.retry_after_s is not None:
        message.retry_after_s = error.retry_after_s
    return message
