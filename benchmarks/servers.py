"""What is measured over gRPC, each a process of its own behind one small interface."""

import contextlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from benchmarks.peers.triton_repository import Variant, write_repository
from benchmarks.places import LOGS, MODELS, PEERS, PYTHON, ROOT, free_port
from benchmarks.processes import BenchmarkError, Child, group_pids, wait_until
from benchmarks.reference import REFERENCES

READY_S = 180.0


class Server:
    """A server to be measured.

    Attributes:
        name: Of its kind, in tables.
        wire: The contract it speaks: `cellstate`, `step` or `triton`.
    """

    name: ClassVar[str]
    wire: ClassVar[str]

    def __init__(self) -> None:
        self._child: Child | None = None
        self._port = 0

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Its first process."""
        return self._running.pid

    @property
    def pids(self) -> list[int]:
        """All its processes."""
        return group_pids(self._running.pid)

    @property
    def alive(self) -> bool:
        """It runs."""
        return self._child is not None and self._child.running

    @property
    def _running(self) -> Child:
        if self._child is None:
            raise BenchmarkError(f"{self.name} is not started")
        return self._child

    def start(self) -> None:
        """Start it and wait until it takes calls."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop it, and all that it started."""
        child, self._child = self._child, None
        if child is not None:
            child.stop()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()

    @contextlib.contextmanager
    def running(self) -> Iterator["Server"]:
        """Start it, and stop it at the end."""
        try:
            self.start()
            yield self
        finally:
            self.stop()

    def _first_line(self) -> str:
        """Wait for the line that tells that it is ready."""
        output = self._running.process.stdout
        assert output is not None
        line = output.readline()
        if not line:
            raise BenchmarkError(f"{self.name} did not come up; the end of its log:\n{self._running.tail()}")
        return line


class Cellstate(Server):
    """Ours: `cellstate serve` with default settings.

    Args:
        settings: Further settings, each `key=value`.
        models: Folder of models.
        metrics: Offer metrics, at `metrics_url`.
    """

    name = "cellstate"
    wire = "cellstate"

    def __init__(self, settings: Sequence[str] = (), models: Path = MODELS, *, metrics: bool = False) -> None:
        super().__init__()
        self._settings = tuple(settings)
        self._models = models
        self._metrics = ("--metrics-port", "0") if metrics else ("--no-metrics",)
        self.metrics_url = ""

    def start(self) -> None:
        """Start it and read its address from its first line."""
        command: list[str | Path] = [PYTHON, "-m", "cellstate.cli", "serve", "--port", "0", *self._metrics, "--models", self._models, "--grace-s", "1"]
        for setting in ("store.kind=memory", *self._settings):
            command += ["--set", setting]
        self._child = Child(command, LOGS / "cellstate.log", {"CELLSTATE_LOGGING__LEVEL": "warning"}, pipe=True)
        line = self._first_line()
        found = re.search(r"gRPC on [\w.]+:(\d+)", line)
        if found is None:
            raise BenchmarkError(f"cellstate said {line!r} instead of its address")
        self._port = int(found[1])
        offered = re.search(r"metrics on (http://\S+)", line)
        self.metrics_url = "" if offered is None else offered[1]


class Stepper(Server):
    """A plain grpc.aio server.

    Args:
        kind: `plain` (one model call for each message) or `echo` (no model).
        model: A reference model's name.
    """

    wire = "step"

    def __init__(self, kind: str, model: str) -> None:
        super().__init__()
        self._kind = kind
        self._model = model
        self.name = {"plain": "plain grpc.aio", "echo": "empty grpc.aio"}[kind]  # type: ignore[misc]

    def start(self) -> None:
        """Start it and wait for its line."""
        self._port = free_port()
        command = [PYTHON, "-m", "benchmarks.peers.stepper_server", self._kind, str(self._port), MODELS / self._model]
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))}
        self._child = Child(command, LOGS / f"{self._kind}.log", environment, pipe=True)
        self._first_line()


class Triton(Server):
    """Triton with a reference model in several variants, each in a process of its own that idles unless called.

    Args:
        model: A reference model's name.
        variants: What to load.
    """

    name = "Triton"
    wire = "triton"

    def __init__(self, model: str, variants: Sequence[Variant]) -> None:
        super().__init__()
        self._model = model
        self._variants = list(variants)
        self._http = 0
        self.starts = 0

    @staticmethod
    def missing() -> str | None:
        """Say what is missing to measure Triton; None where all is there."""
        if (PEERS / "ready").exists():
            return None
        return "Triton is not installed: run scripts/install_bench_needs.sh (it needs Python 3.11, Debian's libpython3.11 and 2 GB)"

    def start(self) -> None:
        """Write the repository, start Triton and wait until all variants are loaded."""
        self._port, self._http = free_port(), free_port()
        repository = PEERS / "repository"
        write_repository(repository, REFERENCES[self._model], MODELS / self._model, self._variants)
        site = next(PEERS.glob("env/lib/python3*/site-packages"))
        loads = [f"--load-model={variant.model_name(self._model)}" for variant in self._variants]
        command = [
            site / "pytriton/tritonserver/bin/tritonserver",
            f"--model-repository={repository}",
            "--model-control-mode=explicit",
            *loads,
            f"--backend-directory={PEERS / 'backends'}",
            "--http-address=127.0.0.1",
            f"--http-port={self._http}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={self._port}",
            "--allow-metrics=false",
            "--backend-config=python,shm-default-byte-size=16777216",
            "--disable-auto-complete-config",
        ]
        environment = {
            "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"),
            "PYTHONPATH": str(site),
            "PYTHONNOUSERSITE": "1",
            "PATH": f"{PEERS / 'env/bin'}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": str(max(variant.threads for variant in self._variants)),
        }
        self._child = Child(command, LOGS / "triton.log", environment)
        self.starts += 1
        wait_until(self._ready, READY_S, "Triton")

    def revive(self) -> None:
        """Start it again where it has crashed, as this build does now and then under sequence batching."""
        if not self.alive:
            self.stop()
            self.start()

    def _ready(self) -> bool:
        if not self.alive:
            raise BenchmarkError(f"Triton ended before it was ready; the end of its log:\n{self._running.tail()}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._http}/v2/health/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
