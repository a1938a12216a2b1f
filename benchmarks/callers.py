"""Starts caller processes and reads what they found; for Triton the caller is NVIDIA's perf_analyzer."""

import dataclasses
import json
import os
import time
from typing import Any

from benchmarks.load.job import Job
from benchmarks.places import LOGS, PYTHON, ROOT
from benchmarks.processes import BenchmarkError, Child
from benchmarks.reference import REFERENCES
from benchmarks.servers import Server

PATIENCE_S = 60.0


class Caller:
    """A caller process at work."""

    def __init__(self, job: Job) -> None:
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))}
        self._job = job
        self._child = Child([PYTHON, "-m", "benchmarks.load"], LOGS / "callers.log", environment, pipe=True)
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
