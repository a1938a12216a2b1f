"""Generation and closed-loop stepping over gRPC: ours, Triton at its best, a plain grpc.aio server and an empty one, in turns within each round.

All servers are up all the time, and all but the one that is measured are idle.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks import triton_load
from benchmarks.callers import call, make_job
from benchmarks.peers.triton_repository import Variant
from benchmarks.processes import BenchmarkError
from benchmarks.run import Run
from benchmarks.samples import Sample
from benchmarks.servers import Cellstate, Server, Stepper, Triton

# Of Triton, the calls that a full run tries, and up to how many streams it generates: its own batch ends there.
QUICK_CALLS = ("async",)
ALL_CALLS = ("async", "sync", "stream")


@dataclass(frozen=True, slots=True)
class Up:
    """The servers that run."""

    ours: Cellstate
    others: list[Server]
    triton: Triton | None


def measure(run: Run, modes: Sequence[str]) -> None:
    """Measure `modes`, of "generation" and "stepping"."""
    options = run.options
    for model in options.models:
        with _servers(run, model) as up, run.item(f"{' and '.join(modes)}, {model}", _total(run, up, modes)):
            for turn in range(options.rounds):
                for size in options.sizes:
                    for mode in modes:
                        _measure_own(run, up, model, mode, size, turn)
                        _measure_triton(run, up, model, mode, size, turn)


@contextlib.contextmanager
def _servers(run: Run, model: str) -> Iterator[Up]:
    with contextlib.ExitStack() as stack:
        ours = Cellstate(run.options.settings)
        others: list[Server] = [Stepper(kind, model) for kind in ("plain", "echo")] if run.options.plain else []
        for server in (ours, *others):
            stack.enter_context(server.running())
        triton = None
        if run.options.triton:
            generating, stepping = run.options.variants
            triton = Triton(model, [*generating, *stepping])
            stack.callback(triton.stop)
            triton.start()
        yield Up(ours, others, triton)


def _total(run: Run, up: Up, modes: Sequence[str]) -> int:
    generating, stepping = run.options.variants
    each = {"generation": 1 + len(up.others), "stepping": 2 * (1 + len(up.others))}
    if up.triton is not None:
        each["generation"] += len(generating)
        each["stepping"] += len(_ways(run, stepping))
    return run.options.rounds * len(run.options.sizes) * sum(each[mode] for mode in modes)


def _ways(run: Run, stepping: Sequence[Variant]) -> list[tuple[Variant, str]]:
    return [(variant, how) for variant in stepping for how in (QUICK_CALLS if run.options.quick else ALL_CALLS)]


def _measure_own(run: Run, up: Up, model: str, mode: str, size: int, turn: int) -> None:
    """Measure all servers that our own callers speak to."""
    kinds = {"generation": {"": "generate"}, "stepping": {"stream": "step-streams", "unary": "step-unary"}}[mode]
    for server in (up.ours, *up.others):
        for variant, kind in kinds.items():
            run.now(f"{size} at once, {server.name} {variant}")
            figures = call(make_job(kind, server, model, size, run.options.seconds, steps=run.options.steps))
            run.record(Sample(mode, model, server.name, variant, size, turn, figures))


def _measure_triton(run: Run, up: Up, model: str, mode: str, size: int, turn: int) -> None:
    """Measure Triton in all ways that are tried; one that fails is noted."""
    if up.triton is None:
        return
    generating, stepping = run.options.variants
    ways = [(variant, "") for variant in generating] if mode == "generation" else _ways(run, stepping)
    for variant, how in ways:
        run.now(f"{size} at once, Triton {variant} {how}")
        try:
            figures = _triton_figures(run, up.triton, model, variant, how, size)
        except BenchmarkError as error:
            run.note(f"Triton {variant} {how} at {size}: not measured in a round: {str(error).splitlines()[0]}")
            run.advance()
            continue
        run.record(Sample(mode, model, "Triton", f"{variant} {how}".strip(), size, turn, figures))


def _triton_figures(run: Run, triton: Triton, model: str, variant: Variant, how: str, size: int) -> dict[str, float]:
    """Measure once, and once more where Triton died; streaming over many sequences is not tried twice."""
    for last in (how == "stream", True):
        triton.revive()
        try:
            if how:
                return triton_load.step(triton, model, variant, how, size, run.options.seconds)
            return triton_load.generate(triton, model, variant, size, run.options.steps, run.options.seconds)
        except triton_load.CrashedError:
            if last:
                raise
    raise AssertionError("the loop returns or raises")
