"""Which program makes a load, and that its two halves say the same."""

import re
from pathlib import Path

import pytest

from benchmarks import callers
from benchmarks.load.__main__ import KINDS
from benchmarks.peers import wire
from benchmarks.places import PYTHON, ROOT

PYTHON_CALLER = [PYTHON, "-m", "benchmarks.load"]


@pytest.fixture
def built(tmp_path: Path) -> Path:
    caller = tmp_path / "caller"
    caller.touch()
    return caller


def test_kinds_compared_with_triton_are_called_by_compiled_code(built):
    native = {kind for kind in KINDS if callers.caller_command(kind, built) == [built]}
    assert native == {"generate", "step-streams", "step-unary"}
    assert callers.caller_command("pace-streams", built) == PYTHON_CALLER
    assert callers.callers_missing(built) is None


def test_callers_are_python_where_none_is_built(tmp_path):
    assert callers.caller_command("generate", tmp_path / "none") == PYTHON_CALLER
    assert "build_native_caller" in (callers.callers_missing(tmp_path / "none") or "")


def test_small_wire_is_the_same_for_both_callers():
    text = (ROOT / "benchmarks" / "load" / "native" / "step.proto").read_text()
    messages = {
        name: {field: (kind, int(number)) for kind, field, number in re.findall(r"(\w+) (\w+) = (\d+);", body)}
        for name, body in re.findall(r"message (\w+) \{(.*?)\}", text, re.DOTALL)
    }
    assert messages == {cls.DESCRIPTOR.name: _fields(cls) for cls in (wire.StepRequest, wire.StepReply, wire.GenerateRequest)}
    assert re.findall(r"^(?:package|service) (\w+)", text, re.MULTILINE) == wire.SERVICE.split(".")


def _fields(cls):
    names = {value: name.removeprefix("TYPE_").lower() for name, value in vars(wire._FIELD).items() if name.startswith("TYPE_")}
    return {field.name: (names[field.type], field.number) for field in cls.DESCRIPTOR.fields}
