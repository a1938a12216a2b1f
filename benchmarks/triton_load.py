"""Measures Triton by its own load generator, perf_analyzer (C++), which is the best that can be done for it."""

import csv
import itertools
import json
import math
import subprocess
from pathlib import Path

from benchmarks.figures import percentile
from benchmarks.peers.triton_repository import Variant
from benchmarks.places import LOGS, PEERS
from benchmarks.processes import BenchmarkError, Child
from benchmarks.servers import Triton

WINDOWS = 3
# Tokens per second to expect, by streams: decides how many requests fill the time.
EXPECTED_RATES = {1: 600, 8: 2000, 32: 3500, 64: 4500, 256: 5000}
# Ways of calling a sequence model. Streaming ends this Triton build with a segmentation fault at many sequences.
CALLS = {"async": ("-a",), "sync": ("--sync",), "stream": ("-a", "--streaming")}
ENDLESS = 1_000_000
# As our own callers: all streams over one connection, which is no slower than perf_analyzer's six streams for each.
ONE_CONNECTION = {"TRITON_CLIENT_GRPC_CHANNEL_MAX_SHARE_COUNT": "1024"}


class CrashedError(BenchmarkError):
    """Triton died while it was measured."""


def step(triton: Triton, model: str, variant: Variant, how: str, size: int, seconds: tuple[float, float]) -> dict[str, float]:
    """Step `size` sequences, each the next step after it has the output of the last. perf_analyzer warms up by itself.

    Raises:
        CrashedError: Triton died.
        BenchmarkError: It cannot be measured.
    """
    window_ms = str(math.ceil(1e3 * seconds[1] / WINDOWS))
    arguments = ("--sequence-length", str(ENDLESS), "--input-data", "zero", "-p", window_ms, "-s", "999", "-r", str(4 * WINDOWS), *CALLS[how])
    report = _analyze(triton, variant.model_name(model), size, arguments, 15 + 6 * sum(seconds))
    with report.with_suffix(".csv").open() as file:
        row = next(csv.DictReader(file))
    return {"rate": float(row["Inferences/Second"]), "p50_ms": float(row["p50 latency"]) / 1e3, "p99_ms": float(row["p99 latency"]) / 1e3}


def generate(triton: Triton, model: str, variant: Variant, size: int, steps: int, seconds: tuple[float, float]) -> dict[str, float]:
    """Generate `steps` tokens in each of `size` streams, again and again.

    Raises:
        CrashedError: Triton died.
        BenchmarkError: It cannot be measured.
    """
    inputs = LOGS / "triton-input.json"
    inputs.write_text(json.dumps({"data": [{"TOKEN": {"content": [1], "shape": [1]}, "STEPS": {"content": [steps], "shape": [1]}}]}))
    calls = max(2, math.ceil(sum(seconds) * EXPECTED_RATES.get(size, 5000) / steps / size))
    arguments = ("--streaming", "-a", "--input-data", str(inputs), "--request-count", str(calls * size))
    report = _analyze(triton, variant.model_name(model), size, arguments, 30 + 8 * sum(seconds) + size * steps / 200)
    requests = json.loads(report.read_text())["experiments"][0]["requests"]
    return summarize([(int(request["timestamp"]), [int(at) for at in request["response_timestamps"]]) for request in requests], size)


def summarize(requests: list[tuple[int, list[int]]], size: int) -> dict[str, float]:
    """Return rate and times of requests, each with its beginning and its tokens' times in nanoseconds.

    Counted is the time in which all streams were busy: from the first token to the first end of one of the last `size` requests.
    """
    requests = sorted((began, tokens) for began, tokens in requests if tokens)
    if not requests:
        raise BenchmarkError("perf_analyzer reports no answers")
    begin = min(tokens[0] for _, tokens in requests)
    end = min(tokens[-1] for _, tokens in requests[-size:])
    counted = sum(begin < at <= end for _, tokens in requests for at in tokens)
    gaps = [(after - at) / 1e6 for _, tokens in requests for at, after in itertools.pairwise(tokens) if begin <= at and after <= end]
    first = [(tokens[0] - began) / 1e6 for began, tokens in requests]
    return {
        "rate": 1e9 * counted / (end - begin),
        "first_p50_ms": percentile(first, 0.5),
        "first_p99_ms": percentile(first, 0.99),
        "p50_ms": percentile(gaps, 0.5),
        "p99_ms": percentile(gaps, 0.99),
        "tokens_per_message": 1.0,
    }


def _analyze(triton: Triton, name: str, size: int, arguments: tuple[str, ...], limit_s: float) -> Path:
    """Run perf_analyzer; return the path of its JSON report, beside which lies the CSV."""
    report = LOGS / "analyzer.json"
    for path in (report, report.with_suffix(".csv")):
        path.unlink(missing_ok=True)
    common = [
        "-m",
        name,
        "-u",
        triton.address,
        "-i",
        "grpc",
        "--concurrency-range",
        str(size),
        "--profile-export-file",
        report,
        "-f",
        report.with_suffix(".csv"),
    ]
    log = LOGS / "analyzer.log"
    log.unlink(missing_ok=True)
    child = Child([PEERS / "perf_analyzer", *common, *arguments], log, {"LD_LIBRARY_PATH": str(PEERS / "lib"), **ONE_CONNECTION})
    try:
        _wait(child, triton, limit_s)
    finally:
        child.stop(1.0)
    if not triton.alive:
        raise CrashedError(f"Triton died under {name} with {size} at once")
    if child.process.returncode or not report.exists():
        raise BenchmarkError(f"perf_analyzer on {name} with {size} at once failed; {_reason(child)}")
    return report


def _reason(child: Child) -> str:
    """Return what perf_analyzer said last."""
    return (child.tail(1) or "it ran too long").strip()


def _wait(child: Child, triton: Triton, limit_s: float) -> None:
    waited_s = 0.0
    while child.running and triton.alive and waited_s < limit_s:
        try:
            child.process.wait(0.5)
        except subprocess.TimeoutExpired:
            waited_s += 0.5
