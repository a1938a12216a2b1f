"""Generation and closed-loop stepping over gRPC: ours, Triton at its best, a plain grpc.aio server and an empty one, in turns within each round.

All servers are up all the time, and all but the one that is measured are idle.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks import triton_load
from benchmarks.callers import call, callers_missing, make_job
from benchmarks.peers.triton_repository import Variant
from benchmarks.processes import BenchmarkError
from benchmarks.run import Run
from benchmarks.samples import Sample
from benchmarks.servers import Cellstate, Server, Stepper, Triton

ALL_CALLS = ("async", "sync", "stream")
# A full run tries every way of calling Triton once for a short time on the first model, and keeps so many of each mode for its rounds.
KEPT = {"generation": 2, "stepping": 3}
SCOUT_S = (0.2, 0.9)
Way = tuple[Variant, str]


@dataclass(frozen=True, slots=True)
class Up:
    """The servers that run."""

    ours: Cellstate
    others: list[Server]
    triton: Triton | None


def measure(run: Run, modes: Sequence[str]) -> None:
    """Measure `modes`, of "generation" and "stepping"."""
    options = run.options
    missing = callers_missing()
    run.results.facts["callers"] = "compiled" if missing is None else "Python"
    if missing is not None:
        run.note(f"Callers are Python, which takes more of the machine than Triton's perf_analyzer does: {missing}.")
    ways: dict[tuple[str, int], list[Way]] = {}
    for model in options.models:
        with _servers(run, model) as up:
            ways = ways or {(mode, size): _ways(run, up, model, mode, size) for size in options.sizes for mode in modes}
            total = options.rounds * sum(len(found) + (1 + len(up.others)) * len(_kinds(run, mode)) for (mode, _), found in ways.items())
            with run.item(f"{' and '.join(modes)}, {model}", total):
                for turn in range(options.rounds):
                    for (mode, size), found in ways.items():
                        _measure_own(run, up, model, mode, size, turn)
                        _measure_triton(run, up, model, found, mode, size, turn)


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
            try:
                triton.start()
            except BenchmarkError as error:
                run.note(f"Triton, {model}: not measured. {error}")
                triton = None
        yield Up(ours, others, triton)


def _ways(run: Run, up: Up, model: str, mode: str, size: int) -> list[Way]:
    """Return Triton's variants, and the ways of calling them, that are measured: those known to be best, or the best of all after a short trial."""
    generating, stepping = run.options.variants
    if up.triton is None:
        return []
    if run.options.quick:
        return [(variant, "") for variant in generating] if mode == "generation" else [(stepping[0], "sync"), (stepping[1], "sync"), (stepping[1], "async")]
    tried: list[tuple[float, Way]] = []
    every = [(variant, "") for variant in generating] if mode == "generation" else [(variant, how) for how in ALL_CALLS for variant in stepping]
    crashes = 0
    with run.item(f"ways of Triton, {mode}, {model}, {size}", len(every)):
        for variant, how in every:
            run.now(f"{variant} {how}")
            run.advance()
            if how == "stream" and crashes > 1:
                run.note(f"Triton by streaming requests, {model}, {size} sequences: not tried further after two segmentation faults.")
                continue
            try:
                figures = _triton_figures(up.triton, model, variant, how, size, (run.options.steps, *SCOUT_S))
            except triton_load.CrashedError:
                crashes += 1
            except BenchmarkError as error:
                run.note(f"Triton {variant} {how}, {model}, {size} at once: {error}")
            else:
                run.results.samples.append(Sample(f"trial of {mode}", model, "Triton", f"{variant} {how}".strip(), size, 0, figures))
                tried.append((figures["rate"], (variant, how)))
    return [way for _, way in sorted(tried, key=lambda pair: -pair[0])[: KEPT[mode]]]


def _kinds(run: Run, mode: str) -> dict[str, str]:
    """Return the kinds of load of a mode, by variant; ratios need no unary calls."""
    if mode == "generation":
        return {"": "generate"}
    return {"stream": "step-streams"} if run.options.quick else {"stream": "step-streams", "unary": "step-unary"}


def _measure_own(run: Run, up: Up, model: str, mode: str, size: int, turn: int) -> None:
    """Measure all servers that our own callers speak to."""
    kinds = _kinds(run, mode)
    for server in (up.ours, *up.others):
        for variant, kind in kinds.items():
            run.now(f"{size} at once, {server.name} {variant}")
            figures = call(make_job(kind, server, model, size, run.options.seconds, steps=run.options.steps))
            run.record(Sample(mode, model, server.name, variant, size, turn, figures))


def _measure_triton(run: Run, up: Up, model: str, ways: Sequence[Way], mode: str, size: int, turn: int) -> None:
    """Measure Triton in the ways that were chosen; one that fails is noted."""
    for variant, how in ways:
        run.now(f"{size} at once, Triton {variant} {how}")
        assert up.triton is not None
        try:
            figures = _triton_figures(up.triton, model, variant, how, size, (run.options.steps, *run.options.seconds))
        except BenchmarkError as error:
            run.note(f"Triton {variant} {how}, {model}, {size} at once: not measured in a round: {error}")
            run.advance()
            continue
        run.record(Sample(mode, model, "Triton", f"{variant} {how}".strip(), size, turn, figures))


def _triton_figures(triton: Triton, model: str, variant: Variant, how: str, size: int, length: tuple[int, float, float]) -> dict[str, float]:
    """Measure once, and once more where Triton died; streaming requests, which kills it often, is not tried twice.

    Args:
        triton: Started again where it died before.
        model: Reference model.
        variant: Of the model.
        how: To call a sequence model; empty for generation.
        size: Streams or sequences.
        length: Tokens of a call, seconds of warming up, seconds of measuring.
    """
    steps, *seconds = length
    for last in (how == "stream", True):
        triton.revive()
        try:
            if how:
                return triton_load.step(triton, model, variant, how, size, (seconds[0], seconds[1]))
            return triton_load.generate(triton, model, variant, size, steps, (seconds[0], seconds[1]))
        except triton_load.CrashedError:
            if last:
                raise
    raise AssertionError("the loop returns or raises")
