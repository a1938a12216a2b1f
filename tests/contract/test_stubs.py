"""The committed stubs, and the client built on them, import on the oldest and on the newest supported protobuf and grpcio."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The environment stays for the next run. It is made anew when what goes into it changes.
OLDEST_VENV = ROOT / ".venv-oldest"
# The dependencies that pyproject.toml leaves open upwards, at the lower end.
PROGRAM = """
import importlib, pathlib, sys, warnings
warnings.simplefilter("error")
import google.protobuf, grpc
import cellstate
folder = pathlib.Path(cellstate.__file__).parent / "v1"
names = sorted(path.stem for path in folder.glob("*_pb2*.py"))
assert names, folder
for name in names:
    importlib.import_module(f"cellstate.v1.{name}")
from cellstate.v1 import inference_pb2_grpc, types_pb2
message = types_pb2.Tensor(shape=[2, 1], data=bytes(8))
assert types_pb2.Tensor.FromString(message.SerializeToString()) == message
with grpc.insecure_channel("localhost:1") as channel:
    inference_pb2_grpc.InferenceServiceStub(channel)
print(google.protobuf.__version__, grpc.__version__)
"""


def oldest_requirements() -> list[str]:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    return [dependency.split(",")[0].replace(">=", "==") for dependency in dependencies]


def oldest_python() -> Path:
    """Make the environment with the oldest supported dependencies and return its interpreter."""
    wanted, ready = "\n".join([str(OLDEST_VENV), sys.version, *oldest_requirements()]), OLDEST_VENV / "ready"
    python = OLDEST_VENV / "bin" / "python"
    if not ready.exists() or ready.read_text(encoding="utf-8") != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", OLDEST_VENV], check=True)
        # Wheels only: what has none for this interpreter was never supported on it.
        options = ["--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
        install = [python, "-m", "pip", "install", *options, *oldest_requirements(), "--editable", ROOT]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"pip could not install the oldest supported dependencies: {done.stderr[-2000:]}"
        ready.write_text(wanted, encoding="utf-8")
    return python


def import_everything(python: Path) -> str:
    done = subprocess.run([python, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the oldest supported grpcio has no wheel for this Python")
def test_stubs_and_client_import_on_the_oldest_supported_dependencies() -> None:
    versions = import_everything(oldest_python())
    assert "protobuf==" + versions.split()[0] in oldest_requirements()


def test_stubs_and_client_import_on_the_pinned_dependencies() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    protobuf, grpcio = import_everything(Path(sys.executable)).split()
    assert {f"protobuf=={protobuf}", f"grpcio=={grpcio}"} <= set(pins)
