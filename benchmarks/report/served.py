"""The report's sections on what was served: generation, stepping, and where a token's time goes."""

from collections.abc import Callable

from benchmarks.figures import Spread
from benchmarks.options import Options
from benchmarks.ratios import floor_rate, served_ratio
from benchmarks.report.markdown import Pictures, factor, number, picture, shown, sizes_of, subjects_of, table
from benchmarks.samples import Results, Sample

_TITLES = {
    "generation": ("2", "Generation", "tokens", "Greedy, one fresh state for each call. Times are between two messages of a call, as its caller sees them."),
    "stepping": (
        "3",
        "Closed-loop stepping",
        "steps",
        "Step k+1 is sent after output k has come; outputs are logits. Times are from sending a step to having its output.",
    ),
}


def served(item: str) -> Callable[[Results, Options, Pictures], str | None]:
    """Return what makes the section of an item."""
    section, title, unit, words = _TITLES[item]

    def make(results: Results, options: Options, pictures: Pictures) -> str | None:
        text = "".join(_served_tables(results, item, unit, model) for model in options.models)
        if not text:
            return None
        images = picture(pictures, f"{item}-throughput-latency", f"{item}-latency-streams")
        triton = "Triton is called by perf_analyzer and shown at its best: the variant with the highest median at each size."
        return f"## {section}. {title}\n\n{words} {triton}\n{text}{images}"

    return make


def _served_tables(results: Results, item: str, unit: str, model: str) -> str:
    samples = results.of(item, model)
    if not samples:
        return ""
    sizes = sizes_of(samples)
    lines = _lines(results, item, model)
    rows = [[name, *(shown(results.spread(find(size), "rate")) for size in sizes)] for name, find in lines.items()]
    rows += _ratio_rows(results, item, model, sizes, subjects_of(samples))
    text = f"\nModel `{model}`, {unit} per second, by streams:\n\n{table(['', *map(str, sizes)], rows)}\n"
    pairs = {"": ("p50_ms", "p99_ms")}
    if item == "generation":
        pairs = {"time between messages, ": ("p50_ms", "p99_ms"), "time to first token, ": ("first_p50_ms", "first_p99_ms")}
    for title, names in pairs.items():
        rows = [[name, *(" / ".join(_middle(results.spread(find(size), figure)) for figure in names) for size in sizes)] for name, find in lines.items()]
        text += f"\nModel `{model}`, {title}p50 / p99 in ms, by streams:\n\n{table(['', *map(str, sizes)], rows)}\n"
    if item == "generation":
        words = (f"{size}: {_middle(results.spread(found, 'tokens_per_message'))}" for size in sizes if (found := results.best(item, "cellstate", size, model)))
        text += f"\nTokens in a message of cellstate: {', '.join(words)}.\n"
    best = {size: found[0].variant for size in sizes if (found := results.best(item, "Triton", size, model))}
    if best:
        text += f"\nTriton's best variants: {', '.join(f'{size}: {variant}' for size, variant in best.items())}.\n"
    return text


def _middle(spread: Spread | None) -> str:
    return "-" if spread is None else number(spread.median)


def _lines(results: Results, item: str, model: str) -> dict[str, Callable[[int], list[Sample]]]:
    """Return what a table's lines show: by subject and way; Triton at its best."""
    lines: dict[str, Callable[[int], list[Sample]]] = {}
    for sample in results.of(item, model):
        subject, variant = sample.subject, sample.variant
        if subject != "Triton":
            lines[f"{subject} {variant}".strip()] = lambda size, s=subject, v=variant: results.of_variant(item, s, v, size, model)  # type: ignore[misc]
    return lines | {"Triton": lambda size: results.best(item, "Triton", size, model)}


def _ratio_rows(results: Results, item: str, model: str, sizes: list[int], subjects: list[str]) -> list[list[str]]:
    others = [subject for subject in subjects if subject not in {"cellstate", "Triton"}] + ["Triton"]
    rows = [[f"cellstate / {other}", *(factor(served_ratio(results, item, size, model, other)) for size in sizes)] for other in others]
    bounds = {size: floor_rate(results, item, size, model) for size in sizes}
    if any(bounds.values()):
        ways = [results.of_variant(item, "cellstate", "stream" if item == "stepping" else "", size, model) for size in sizes]
        shares = [
            Spread.of([sample.figures["rate"] / bound for sample in way]) if way and (bound := bounds[size]) else None
            for size, way in zip(sizes, ways, strict=True)
        ]
        rows.append(["bare products, then an empty message", *(number(bound) if bound else "-" for bound in bounds.values())])
        rows.append(["cellstate / these two", *(factor(share) for share in shares)])
    return rows


def token_time(results: Results, options: Options, pictures: Pictures) -> str | None:
    """Return the section on processor time; None where it was not measured."""
    rows = [[name, *(f"{value:.1f}" for value in parts.values())] for name, parts in token_times(results, options.models[0]).items()]
    if not rows:
        return None
    heads = ["", *next(iter(token_times(results, options.models[0]).values()))]
    return f"""## Where a token's time goes

At 64 streams, microseconds of processor time for each token or step. Bare step: what it takes in process, for ours in a batch of 64 rows on the engine's
thread, for the plain server in a batch of one on its event loop. Engine's thread: with those that compute parts of its batches; of the other servers,
the busiest thread beside the event loop.

{table(heads, rows)}
{picture(pictures, "token-time")}"""


def token_times(results: Results, model: str, size: int = 64) -> dict[str, dict[str, float]]:
    """Return microseconds of processor time per token by where they are spent, for each subject that our callers measured."""
    batched_us = _step_us(results, "cellstate", size, model)
    alone_us = _step_us(results, "torch.lstm_cell", 1, model)
    found: dict[str, dict[str, float]] = {}
    for item, way in (("generation", ""), ("stepping", "stream"), ("stepping", "unary")):
        for subject in subjects_of(results.of(item, model)):
            samples = [sample for sample in results.of_variant(item, subject, way, size, model) if sample.figures.get("tokens")]
            parts = {name: results.spread([_per_token(sample, f"cpu_{name}_s") for sample in samples], "us") for name in ("engine", "loop", "other", "client")}
            if any(spread is None for spread in parts.values()):
                continue
            us = {name: spread.median for name, spread in parts.items() if spread is not None}
            step = {"cellstate": batched_us, "plain grpc.aio": alone_us}.get(subject, 0.0)
            on_engine = min(us["engine"], step) if subject == "cellstate" else 0.0
            on_loop = min(us["loop"], step - on_engine) if subject != "cellstate" else 0.0
            found[f"{subject}, {item} {way}".strip()] = {
                "bare step": on_engine + on_loop,
                "rest of the engine's thread": us["engine"] - on_engine,
                "event loop": us["loop"] - on_loop,
                "server's other threads": us["other"],
                "client": us["client"],
            }
    return found


def _step_us(results: Results, subject: str, rows: int, model: str) -> float:
    """Return what a row's step takes in process; 0 where it was not measured."""
    spread = results.spread(results.of_variant("inproc", subject, "", rows, model), "rate")
    return 1e6 / spread.median if spread else 0.0


def _per_token(sample: Sample, figure: str) -> Sample:
    return Sample(
        sample.item, sample.model, sample.subject, sample.variant, sample.size, sample.round, {"us": 1e6 * sample.figures[figure] / sample.figures["tokens"]}
    )
