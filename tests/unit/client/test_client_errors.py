"""Statuses become typed errors that tell what to do."""

import pickle

import pytest
from google.rpc import error_details_pb2, status_pb2

from cellstate import _status, errors
from cellstate._status import DETAILS_KEY, error_from_failure, error_from_status
from cellstate.v1 import error_pb2


def trailers(reason: str, domain: str = "cellstate", **metadata: str) -> list[tuple[str, bytes]]:
    status = status_pb2.Status(code=9, message="from the details")
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain=domain, reason=reason, metadata=metadata))
    status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[{"field": "input.tensor"}]))
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    status.details.add().Pack(retry)
    status.details.add().Pack(error_details_pb2.QuotaFailure(violations=[{"subject": "sessions"}]))
    return [("other", b""), (DETAILS_KEY, status.SerializeToString())]


def test_details_are_all_read():
    error = error_from_status(9, "short", trailers("POSITION_MISMATCH", position="17", log_id="x"))
    assert type(error) is errors.PositionError
    assert error.position == 17
    assert (error.reason, error.code, error.field) == ("POSITION_MISMATCH", "FAILED_PRECONDITION", "input.tensor")
    assert (error.message, error.retry_after_s, error.details.quota_subject) == ("from the details", 1.5, "sessions")
    assert str(error) == "from the details (field: input.tensor) [POSITION_MISMATCH]"


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (3, "TEXT_NOT_ENCODABLE", errors.InvalidInput),
        (5, "MODEL_NOT_FOUND", errors.NotFound),
        (5, "SESSION_NOT_FOUND", errors.NotFound),
        (5, "SESSION_EXPIRED", errors.SessionGone),
        (5, "SESSION_LOST", errors.SessionGone),
        (6, "SESSION_EXISTS", errors.AlreadyExists),
        (9, "SESSION_BUSY", errors.SessionBusy),
        (9, "UID_MISMATCH", errors.SessionReplaced),
        (9, "NOTHING_TO_GENERATE_FROM", errors.Precondition),
        (9, "SESSION_ROLLED_BACK", errors.SessionRolledBack),
        (10, "POSITION_CONFLICT", errors.PositionError),
        (10, "SUPERSEDED", errors.Superseded),
        (10, "SESSION_MOVED", errors.Aborted),
        (8, "OVERLOADED", errors.Overloaded),
        (8, "QUOTA_EXCEEDED", errors.QuotaExceeded),
        (13, "STEP_FAILED", errors.StepFailed),
        (13, "INTERNAL", errors.ServerError),
        (14, "SHUTTING_DOWN", errors.Unavailable),
        (15, "SNAPSHOT_CORRUPT", errors.SnapshotCorrupt),
        (9, "A_REASON_OF_A_NEWER_SERVER", errors.Precondition),
    ],
)
def test_reason_and_code_choose_the_class(code, reason, kind):
    error = error_from_status(code, "", trailers(reason))
    assert type(error) is kind
    assert error.reason == reason


def test_what_became_of_a_session_is_told():
    assert error_from_status(5, "", trailers("SESSION_EVICTED")).why == "evicted"


@pytest.mark.parametrize("torn", [[], [(DETAILS_KEY, b"\xff\xff\xff")], trailers("X", domain="somebody.else"), [(DETAILS_KEY, b"")]])
def test_without_our_details_the_error_tells_what_to_do(torn):
    error = error_from_status(14, "connection refused", torn)
    assert type(error) is errors.Unavailable
    assert isinstance(error, ConnectionError)
    assert "connection refused" in error.message
    assert "cellstate serve" in error.message
    assert error.reason == "UNAVAILABLE"


def test_an_unknown_code_is_a_server_error():
    assert type(error_from_status(99, "odd")) is errors.ServerError


def test_a_deadline_is_a_timeout_error():
    assert isinstance(error_from_status(4, ""), TimeoutError)


def test_a_failure_maps_to_the_same_tree():
    failure = error_pb2.Failure(code=9, reason=error_pb2.ERROR_REASON_SESSION_BUSY, message="busy", field="target", position=0)
    error = error_from_failure(failure)
    assert type(error) is errors.SessionBusy
    assert (error.position, error.field, error.message) == (0, "target", "busy")


def test_every_reason_of_the_contract_makes_an_error():
    for value in error_pb2.ErrorReason.DESCRIPTOR.values[1:]:
        error = error_from_failure(error_pb2.Failure(code=9, reason=value.number))
        assert error.reason == value.name.removeprefix("ERROR_REASON_")


def test_mapped_reasons_exist_in_the_contract():
    names = {value.name.removeprefix("ERROR_REASON_") for value in error_pb2.ErrorReason.DESCRIPTOR.values}
    assert set(_status._BY_REASON) <= names


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(error_from_status(9, "", trailers("SESSION_BUSY", position="3"))))  # noqa: S301
    assert type(error) is errors.SessionBusy
    assert error.position == 3


def test_the_tree_at_the_top_of_the_module_names_every_class():
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.CellstateError)}
    assert all(f" {name} " in (errors.__doc__ or "") or f"{name} " in (errors.__doc__ or "") for name in classes)
