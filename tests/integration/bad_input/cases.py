"""A refused call, and what it must tell."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2

from cellstate.v1 import error_pb2
from cellstate.v1.inference_pb2 import Program, RunRequest
from tests.integration.stubs import Refusal, Stubs, on_session, refusal

INVALID, NOT_FOUND, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION
UNSUPPORTED = "NOT_SUPPORTED_BY_MODEL"

#: Limits of the server that all these tests share.
MAX_STEPS = 1000
MAX_PROGRAMS = 8
MAX_MESSAGE_BYTES = 128 * 1024

#: A session at position 5 that nobody calls, and one with a stream open.
SUBJECT, BUSY = on_session("subject"), on_session("canary")

Send = Callable[[Stubs], Any]


@dataclass
class Case:
    """A call that is refused.

    Attributes:
        name: What is wrong.
        send: Makes the call.
        reason: Stable reason.
        field: The field named, or "".
        code: Status code.
    """

    name: str
    send: Send
    reason: str
    field: str = ""
    code: grpc.StatusCode = INVALID

    async def check(self, stubs: Stubs) -> None:
        assert_told(await refusal(self.send(stubs)), self.reason, self.field, self.code)


def assert_told(told: Refusal, reason: str, field: str, code: grpc.StatusCode = INVALID) -> None:
    assert (told.code, told.reason) == (code, reason), told
    assert told.fields == ([field] if field else []), told
    assert told.message


def cases(*given: Case) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", given, ids=lambda case: case.name)


def table(names: str, rows: list[Any]) -> pytest.MarkDecorator:
    """Parametrize by rows whose first entry is what is wrong."""
    return pytest.mark.parametrize(names.split(","), [row[1:] for row in rows], ids=[row[0] for row in rows])


async def run_refusal(stubs: Stubs, program: Program) -> Refusal:
    """Run one program that must fail and return its failure in the form of a status."""
    (result,) = (await stubs.inference.Run(RunRequest(programs=[program]))).results
    failure = result.failure
    assert not result.HasField("completion")
    code = next(code for code in grpc.StatusCode if code.value[0] == failure.code)
    assert code_pb2.Code.Name(failure.code) == code.name
    reason = error_pb2.ErrorReason.Name(failure.reason).removeprefix("ERROR_REASON_")
    return Refusal(code, reason, failure.message, [failure.field] if failure.field else [], {}, None)
