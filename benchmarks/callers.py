"""Starts caller processes and reads what they found; for Triton the caller is NVIDIA's perf_analyzer.

The kinds of load that are compared with Triton have a compiled caller too, `load/native`, because one in Python takes a large part of a small machine.
"""

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.load.job import Job
from benchmarks.places import LOGS, NATIVE_CALLER, PYTHON, ROOT
from benchmarks.processes import BenchmarkError, Child
from benchmarks.reference import REFERENCES
from benchmarks.servers import Server

PATIENCE_S = 60.0
NATIVE_KINDS = ("generate", "step-streams", "step-unary")


def caller_command(kind: str, native: Path = NATIVE_CALLER) -> list[str | Path]:
    """Return the program that makes a kind of load: the compiled one where there is one and it is built, else the one in Python."""
    return [native] if kind in NATIVE_KINDS and native.exists() else [PYTHON, "-m", "benchmarks.load"]


def callers_missing(native: Path = NATIVE_CALLER) -> str | None:
    """Say what is missing to call by compiled code; None where all is there."""
    return None if native.exists() else "the compiled caller is not built: run scripts/build_native_caller.sh"


class Caller:
    """A caller process at work."""

    def __init__(self, job: Job) -> None:
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))}
        self._job = job
        self._child = Child(caller_command(job.kind), LOGS / "callers.log", environment, pipe=True)
        assert self._child.process.stdin is not None
        self._child.process.stdin.write(json.dumps(dataclasses.asdict(job)) + "\n")
        self._child.process.stdin.flush()

    def result(self, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait for what it found.

        Raises:
            BenchmarkError: It failed, or takes `patience_s` longer than it was told to measure.
        """
        process = self._child.process
        try:
            output, _ = process.communicate(timeout=self._job.warm_s + self._job.measure_s + patience_s)
        except Exception as error:
            raise BenchmarkError(f"{self._job.kind} with {self._job.size}: {error}") from error
        finally:
            self._child.stop(1.0)
        if process.returncode:
            raise BenchmarkError(f"{self._job.kind} with {self._job.size} failed; the end of its log:\n{self._child.tail()}")
        found: dict[str, Any] = json.loads(output)
        return found

    def stop(self) -> None:
        """End it without a result."""
        self._child.stop(1.0)


def make_job(kind: str, server: Server, model: str, size: int, seconds: tuple[float, float], **options: Any) -> Job:
    """Return a job against a server; `seconds` are those of warming up and of measuring."""
    warm_s, measure_s = seconds
    return Job(kind, server.wire, server.address, server.pid, model, REFERENCES[model].vocabulary, size, warm_s, measure_s, options)


def call(job: Job) -> dict[str, Any]:
    """Run a job and return what it found."""
    caller = Caller(job)
    try:
        return caller.result(PATIENCE_S + float(job.options.get("patience_s", 0.0)))
    finally:
        caller.stop()
        time.sleep(0.1)
