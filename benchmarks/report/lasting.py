"""The report's section on durability."""

from benchmarks.figures import Spread
from benchmarks.items.durability import AIMS, CHECKPOINT_S, KINDS, LEVELS
from benchmarks.options import Options
from benchmarks.report.markdown import MISSING, Pictures, factor, number, picture, shown, sizes_of, subjects_of, table
from benchmarks.samples import Results, Sample, ratio

STORE_NAMES = {"sqlite": "SQLite", "redis": "Redis with `appendfsync always`"}
_UNITS = {"generation": "tokens", "stepping": "steps"}
_WAITS = {"generation": "between two messages of a directive", "stepping": "from sending a step to having its output"}


def level_ratio(results: Results, mode: str, store: str, level: str, size: int, model: str) -> Spread | None:
    """Return a level over MEMORY, within rounds."""
    item = f"durable {mode}"
    return ratio(results.of_variant(item, store, level, size, model), results.of_variant(item, store, LEVELS[0], size, model))


def lasting(results: Results, options: Options, pictures: Pictures) -> str | None:
    """Return the section; None where it was not measured."""
    model = options.models[0]
    stores = list(dict.fromkeys(store for mode in KINDS for store in subjects_of(results.of(f"durable {mode}", model))))
    if not stores:
        return None
    text = "".join(_store(results, store, model) for store in stores)
    aims = " and ".join(f"{level.upper()} at least {aim}" for level, aim in AIMS.items())
    missing = "".join(f"\n{name}: {MISSING}.\n" for store, name in STORE_NAMES.items() if store not in stores)
    return f"""## 9. Durability

What it costs that sessions survive: the same loads on sessions of each level, in turns on one server, so that only the level differs. All name positions and
acknowledge as our client does. MEMORY is stored when it leaves the server, PERIODIC every {CHECKPOINT_S:g} s while it moves, SYNC before it is answered.
Ratios are to MEMORY in the same round; aimed for are {aims}.
{text}{missing}{picture(pictures, "durability")}{_recovery(results, model)}"""


def _store(results: Results, store: str, model: str) -> str:
    return "".join(_mode(results, store, mode, model) for mode in KINDS if sizes_of(results.of(f"durable {mode}", model)))


def _mode(results: Results, store: str, mode: str, model: str) -> str:
    samples = [sample for sample in results.of(f"durable {mode}", model) if sample.subject == store]
    sizes = sizes_of(samples)
    rows = [[level.upper(), *(shown(_spread(results, samples, level, size, "rate")) for size in sizes)] for level in LEVELS]
    rows += [[f"{level.upper()} / MEMORY", *(factor(level_ratio(results, mode, store, level, size, model)) for size in sizes)] for level in LEVELS[1:]]
    rows += [[f"{level.upper()}, p50 / p99, ms", *(_times(results, samples, level, size) for size in sizes)] for level in LEVELS]
    rows += [[f"{level.upper()}, snapshots/s, MB/s", *(_written(results, samples, level, size) for size in sizes)] for level in LEVELS[1:]]
    head = ["", *map(str, sizes)]
    return f"\n{mode.capitalize()} with {STORE_NAMES[store]}, {_UNITS[mode]} per second by streams; times are {_WAITS[mode]}:\n\n{table(head, rows)}\n"


def _spread(results: Results, samples: list[Sample], level: str, size: int, figure: str) -> Spread | None:
    return results.spread([sample for sample in samples if (sample.variant, sample.size) == (level, size)], figure)


def _times(results: Results, samples: list[Sample], level: str, size: int) -> str:
    spreads = [_spread(results, samples, level, size, figure) for figure in ("p50_ms", "p99_ms")]
    return " / ".join("-" if spread is None else number(spread.median) for spread in spreads)


def _written(results: Results, samples: list[Sample], level: str, size: int) -> str:
    snapshots, size_b = (_spread(results, samples, level, size, figure) for figure in ("checkpoints_per_s", "bytes_per_s"))
    return MISSING if snapshots is None or size_b is None else f"{number(snapshots.median)}, {number(size_b.median / 1e6)}"


def _recovery(results: Results, model: str) -> str:
    samples = results.of("recovery", model)
    if not samples:
        return ""
    figures = {"start until ready, nothing stored, s": "empty_s", "start until ready after `kill -9`, s": "ready_s"}
    figures |= {"then one step of each session, s": "first_all_s", "and one more of each, s": "second_all_s"}
    rows = [[title, *(number(sample.figures[name]) for sample in samples)] for title, name in figures.items()]
    rows.append(["first step, p50 / p99, ms", *(" / ".join(number(sample.figures[f"first_{share}_ms"]) for share in ("p50", "p99")) for sample in samples)])
    return f"""
A server with {samples[0].size:,} PERIODIC sessions is killed and started again; then each session is called with its position, 64 at once. The first steps
also wait for what the engine computes once when it starts, and take each session up from the store.

{table(["", *(STORE_NAMES[sample.subject] for sample in samples)], rows)}
"""
