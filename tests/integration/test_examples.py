"""Every example runs against a real server on the bundled models, the one in Node.js too."""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.serving import Served, serving

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Served]:
    async with serving(ROOT / "models") as served:
        yield served


async def run(folder: Path, *command: str | Path, **environment: str) -> str:
    """Run a command to its end and return what it printed; it must end well."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=os.environ | environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0, printed.decode()
    return printed.decode()


@pytest.mark.parametrize(
    ("example", "told"),
    [
        ("one_to_one.py", "a 0 is read as 0"),
        ("many_to_one.py", "the last answer is the same: True"),
        ("one_to_many.py", "ROMEO:"),
        ("many_to_many.py", "309 predictions"),
        ("closed_loop.py", "next year"),
        ("sessions.py", "temperature"),
        ("many_callers.py", "says the same: True"),
        ("gateway.py", "position of the second: 51"),
    ],
)
async def test_an_example_runs(server: Served, example: str, told: str) -> None:
    printed = await run(ROOT, sys.executable, ROOT / "examples" / example, CELLSTATE_ADDRESS=f"127.0.0.1:{server.app.port}")
    assert printed.strip()
    assert told in printed


async def test_no_example_is_left_out() -> None:
    """A new example gets a row above."""
    (mark,) = [mark for mark in test_an_example_runs.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    assert sorted(example for example, _ in mark.args[1]) == EXAMPLES


async def test_the_example_in_node_runs_with_the_proto_files_only(server: Served, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("node_modules"))
    folder = tmp_path / "examples" / "node"
    await run(folder, "npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--silent")
    printed = await run(folder, "node", "index.js", f"127.0.0.1:{server.app.port}")
    assert "ROMEO" in printed
