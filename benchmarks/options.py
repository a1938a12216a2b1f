"""What a run measures and for how long."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.triton_repository import Variant

ITEMS = ("inproc", "bits", "generation", "stepping", "paced", "long", "neighbour", "idle", "ablation", "soak", "durability")
QUICK_ITEMS = ("inproc", "bits", "generation", "stepping")
# What was seen to be best at one size or another; the full run tries all.
QUICK_GENERATING = (Variant("generate", "packed", 1), Variant("generate", "packed", 2))
QUICK_STEPPING = (Variant("direct", "packed", 1), Variant("oldest", "packed", 1))
ALL_GENERATING = tuple(Variant("generate", stepper, threads) for stepper in ("cell", "packed") for threads in (1, 2))
ALL_STEPPING = tuple(Variant(strategy, stepper, threads) for strategy in ("direct", "oldest") for stepper in ("cell", "packed") for threads in (1, 2))


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a run.

    Attributes:
        items: Of ITEMS.
        quick: Only what the line of ratios needs.
        rounds: Repetitions; medians are taken over them.
        warm_s: Before each measurement.
        measure_s: Of each measurement.
        steps: Tokens of one generation call.
        sizes: Streams or sessions at once.
        rows: Batch sizes in process.
        models: Reference models, the first is the one that ratios are of.
        settings: Of our server, each `key=value`.
        out: Folder of the report.
        long_steps: Steps of the long input.
        long_load_s: For how long the others generate beside it at most.
        idle_sessions: Idle sessions.
        callers: Of the ablation.
        lasting_sizes: Streams on sessions of each durability.
        recovered: Sessions that a killed server had; 0 leaves its recovery out.
        soak_s: For how long the soak overloads.
        triton: Measure Triton.
        plain: Measure the two plain servers.
    """

    items: tuple[str, ...]
    quick: bool
    rounds: int
    warm_s: float
    measure_s: float
    steps: int
    sizes: tuple[int, ...]
    rows: tuple[int, ...]
    models: tuple[str, ...]
    settings: tuple[str, ...]
    out: Path
    long_steps: int
    long_load_s: float
    idle_sessions: int
    callers: int
    lasting_sizes: tuple[int, ...]
    recovered: int
    soak_s: float
    triton: bool
    plain: bool

    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds of warming up and of measuring."""
        return self.warm_s, self.measure_s

    @property
    def variants(self) -> tuple[tuple[Variant, ...], tuple[Variant, ...]]:
        """Triton's ways of generating and of stepping that are tried."""
        return (QUICK_GENERATING, QUICK_STEPPING) if self.quick else (ALL_GENERATING, ALL_STEPPING)
