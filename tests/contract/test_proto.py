"""What the contract promises beside what buf checks: reasons that match the server's, codes named, imports from google.protobuf only."""

import re
from pathlib import Path

import pytest

from cellstate.v1 import error_pb2
from cellstate_service.errors import CellstateError, Reason

PROTO = Path(__file__).parents[2] / "proto"
PREFIX = "ERROR_REASON_"


def test_reasons_of_the_contract_are_the_reasons_of_the_server() -> None:
    in_contract = {name.removeprefix(PREFIX) for name in error_pb2.ErrorReason.DESCRIPTOR.values_by_name} - {"UNSPECIFIED"}
    assert in_contract == {reason.name for reason in Reason}


@pytest.mark.parametrize("reason", Reason)
def test_reason_is_its_own_name_on_the_wire(reason: Reason) -> None:
    assert reason.value == reason.name
    assert error_pb2.ErrorReason.Value(PREFIX + reason.value) > 0


def errors_of(base: type[CellstateError]) -> list[type[CellstateError]]:
    return [base, *(error for child in base.__subclasses__() for error in errors_of(child))]


@pytest.mark.parametrize("error", errors_of(CellstateError), ids=lambda error: error.__name__)
def test_every_error_has_a_reason_of_the_contract(error: type[CellstateError]) -> None:
    assert error("something is wrong").reason in Reason


@pytest.mark.parametrize("reason", Reason)
def test_contract_names_the_status_code_of_every_reason(reason: Reason) -> None:
    text = (PROTO / "cellstate/v1/error.proto").read_text(encoding="utf-8")
    assert re.search(rf"// [A-Z_]+: [^\n]*\n(?:  // [^\n]*\n)*  {PREFIX}{reason.name} = \d+;", text), (
        f"the comment of {PREFIX}{reason.name} starts with no status code"
    )


@pytest.mark.parametrize("path", sorted(PROTO.rglob("*.proto")), ids=lambda path: path.name)
def test_contract_needs_no_foreign_proto_files(path: Path) -> None:
    imports = re.findall(r'^import "([^"]+)";', path.read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name in imports if not name.startswith(("cellstate/v1/", "google/protobuf/"))] == []
