"""`cellstate demo` as a person runs it, where there is no terminal."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODES = ("one-to-one", "many-to-one", "one-to-many", "many-to-many")


def demo(*arguments: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "cellstate.cli", "demo", *arguments], cwd=cwd, capture_output=True, text=True, timeout=100, check=False)


def test_demo_names_each_mode_and_ends_well() -> None:
    result = demo()

    assert result.returncode == 0, result.stdout + result.stderr
    for mode in MODES:
        assert f"\n== {mode}: " in result.stdout
    for figure in ("tokens/s", "bit for bit", "root mean square", "cellstate_steps_total", "Server stopped in order"):
        assert figure in result.stdout
    assert "\x1b" not in result.stdout
    assert result.stderr == ""


def test_demo_without_a_server_fails_in_one_line() -> None:
    result = demo("--address", "127.0.0.1:1")

    assert result.returncode == 1
    assert result.stderr.startswith("cellstate: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(("arguments", "said"), [((), "run from a checkout"), (("--data", str(ROOT / "examples/data")), "run from a checkout")])
def test_demo_outside_a_checkout_says_so(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    result = demo(*arguments, cwd=tmp_path)

    assert result.returncode == 1
    assert said in result.stderr


def test_demo_tells_why_the_server_did_not_start(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.yaml").write_text("format: 1\n")
    result = demo("--models", str(tmp_path))

    assert result.returncode == 1
    assert "model.yaml" in result.stderr
