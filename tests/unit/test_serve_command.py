from pathlib import Path

import pytest

from cellstate_service.commands import overrides, serve
from cellstate_service.settings import SettingsError


def test_dotted_paths_become_groups() -> None:
    flags = {"port": 0, "tls.key": Path("k"), "tls.certificate": Path("c")}

    assert overrides(flags, ["engine.max_calls=5"]) == {"port": 0, "tls": {"key": Path("k"), "certificate": Path("c")}, "engine": {"max_calls": "5"}}


def test_assignments_win_over_flags_and_may_unset() -> None:
    assert overrides({"metrics_port": 9}, ["metrics_port=none", "host=a=b"]) == {"metrics_port": None, "host": "a=b"}


@pytest.mark.parametrize("assignment", ["port", "=5", ""])
def test_malformed_assignment_is_told(assignment: str) -> None:
    with pytest.raises(SettingsError, match="not of the form key=value"):
        overrides({}, [assignment])


def test_value_where_a_group_stands_is_told() -> None:
    with pytest.raises(SettingsError, match="engine is a value"):
        overrides({}, ["engine=1", "engine.max_calls=2"])


def test_wrong_settings_end_with_one_line_each(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()

    assert serve(None, {"models": tmp_path / "models", "port": 70000}, ["engine.max_cals=1"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "cellstate: --port: Input should be less than or equal to 65535, not 70000",
        "cellstate: --set engine.max_cals: no such setting; did you mean max_calls?",
    ]
