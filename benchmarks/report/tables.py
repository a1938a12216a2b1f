"""The tables of the report, one section for each item that was measured."""

from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import ablation
from benchmarks.figures import Spread
from benchmarks.items import paced
from benchmarks.options import Options
from benchmarks.ratios import PRODUCTS, floor_rate, inproc_ratio, served_ratio
from benchmarks.samples import Results, Sample

Pictures = dict[str, Path]
MISSING = "not measured"


def sections(results: Results, options: Options, pictures: Pictures) -> list[str]:
    """Return the sections of what was measured, as markdown."""
    makers: list[Callable[[Results, Options, Pictures], str | None]] = [
        _inproc,
        _served("generation"),
        _served("stepping"),
        _token_time,
        _paced,
        _long,
        _idle,
        _ablation,
        _bits,
    ]
    return [section for maker in makers if (section := maker(results, options, pictures))]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a markdown table; the first column is of words, the others of figures."""
    names = list(head)
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Return a figure with as many digits as mean something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def shown(spread: Spread | None) -> str:
    """Return a median with the least and the greatest value."""
    return MISSING if spread is None else f"{number(spread.median)} ({number(spread.least)}…{number(spread.greatest)})"


def factor(spread: Spread | None) -> str:
    """Return a ratio."""
    return MISSING if spread is None else f"**{spread.median:.2f}** ({spread.least:.2f}…{spread.greatest:.2f})"


def _picture(pictures: Pictures, *names: str) -> str:
    return "".join(f"\n![{name.replace('-', ' ')}]({pictures[name].name})\n" for name in names if name in pictures)


def _subjects(samples: list[Sample]) -> list[str]:
    return list(dict.fromkeys(sample.subject for sample in samples))


def _sizes(samples: list[Sample]) -> list[int]:
    return sorted({sample.size for sample in samples})


def _inproc(results: Results, options: Options, pictures: Pictures) -> str | None:
    text = ""
    for model in options.models:
        samples = results.of("inproc", model)
        if not samples:
            continue
        sizes = _sizes(samples)
        rows = [
            [subject, *(shown(results.spread(results.of_variant("inproc", subject, "", size, model), "rate")) for size in sizes)]
            for subject in _subjects(samples)
        ]
        rows.append([f"cellstate / {PRODUCTS}", *(factor(inproc_ratio(results, size, model)) for size in sizes)])
        text += f"\nSteps per second, model `{model}`, by rows:\n\n{table(['', *map(str, sizes)], rows)}\n"
    if not text:
        return None
    return f"""## 1. In process

No server, one torch thread. Bare products: `[x, h]` by both weights of a layer together, and the head, prepacked for oneDNN and nothing else.
Tabulated: the products that are left where the first layer's input product is looked up by token. Who is above the first line gains from that table.
{text}"""


_TITLES = {
    "generation": ("2", "Generation", "tokens", "Greedy, one fresh state for each call. Times are between two messages of a call, as its caller sees them."),
    "stepping": (
        "3",
        "Closed-loop stepping",
        "steps",
        "Step k+1 is sent after output k has come; outputs are logits. Times are from sending a step to having its output.",
    ),
}


def _served(item: str) -> Callable[[Results, Options, Pictures], str | None]:
    section, title, unit, words = _TITLES[item]

    def make(results: Results, options: Options, pictures: Pictures) -> str | None:
        text = "".join(_served_tables(results, item, unit, model) for model in options.models)
        if not text:
            return None
        images = _picture(pictures, f"{item}-throughput-latency", f"{item}-latency-streams")
        triton = "Triton is called by perf_analyzer and shown at its best: the variant with the highest median at each size."
        return f"## {section}. {title}\n\n{words} {triton}\n{text}{images}"

    return make


def _served_tables(results: Results, item: str, unit: str, model: str) -> str:
    samples = results.of(item, model)
    if not samples:
        return ""
    sizes = _sizes(samples)
    lines = _lines(results, item, model)
    rows = [[name, *(shown(results.spread(find(size), "rate")) for size in sizes)] for name, find in lines.items()]
    rows += _ratio_rows(results, item, model, sizes, _subjects(samples))
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


def _token_time(results: Results, options: Options, pictures: Pictures) -> str | None:
    rows = [[name, *(f"{value:.1f}" for value in parts.values())] for name, parts in token_times(results, options.models[0]).items()]
    if not rows:
        return None
    heads = ["", *next(iter(token_times(results, options.models[0]).values()))]
    return f"""## Where a token's time goes

At 64 streams, microseconds of processor time for each token or step. Bare step: what it takes in process, for ours in a batch of 64 rows on the engine's
thread, for the plain server in a batch of one on its event loop. Engine's thread: of the other servers, the busiest thread beside the event loop.

{table(heads, rows)}
{_picture(pictures, "token-time")}"""


def token_times(results: Results, model: str, size: int = 64) -> dict[str, dict[str, float]]:
    """Return microseconds of processor time per token by where they are spent, for each subject that our callers measured."""
    batched_us = _step_us(results, "cellstate", size, model)
    alone_us = _step_us(results, "torch.lstm_cell", 1, model)
    found: dict[str, dict[str, float]] = {}
    for item, way in (("generation", ""), ("stepping", "stream"), ("stepping", "unary")):
        for subject in _subjects(results.of(item, model)):
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


def _paced(results: Results, options: Options, pictures: Pictures) -> str | None:
    knees = results.facts.get("knees", {})
    if not knees:
        return None
    rows = []
    for name, sessions in knees.items():
        model, way = name.split()
        held = [sample for sample in results.of_variant("paced", "cellstate", way, sessions, model) if sample.figures["late_share"] <= paced.LATE_SHARE]
        at = [number(held[-1].figures[figure]) if held else "-" for figure in ("rate", "p50_ms", "p99_ms")]
        rows.append([f"`{model}`, {paced.SUBJECTS[way]}", f"**{sessions:,}**", *at])
    return f"""## 4. Paced streams

Each session sends a step every 32 ms, whatever happens; the most sessions of which at most 0.1 % of the steps had their output later than 32 ms after they
were due. Found by doubling and then halving; the callers take their part of the machine too.

{table(["", "sessions", "steps per second there", "p50 there, ms", "p99 there, ms"], rows)}
"""


def _long(results: Results, options: Options, pictures: Pictures) -> str | None:
    samples = results.of("long", options.models[0])
    if not samples:
        return None
    names = {"tokens per second": "rate", "time between tokens, p50, ms": "p50_ms", "time between tokens, p99, ms": "p99_ms"}
    rows = [[title, shown(results.spread(samples, f"without_{name}")), shown(results.spread(samples, f"with_{name}"))] for title, name in names.items()]
    steps, seconds, alone = (results.spread(samples, name) for name in ("shared_steps", "shared_s", "input_s"))
    return f"""## 5. A long input

One session with {options.long_steps:,} steps of input in one message, while {samples[0].size} others generate.

{table(["of the others", "without it", "with it"], rows)}

p99 with it over p99 without it: {factor(results.spread(samples, "p99_ratio"))}. Beside the others the input advanced by {shown(steps)} steps in
{shown(seconds)} s; the others then stopped, and it was consumed {shown(alone)} s after it was sent.
"""


def _idle(results: Results, options: Options, pictures: Pictures) -> str | None:
    rows = []
    for model in options.models:
        for sample in results.of("idle", model):
            of = sample.figures
            memory = [number(of[name] / 2**20) for name in ("resident_before", "resident_after")]
            each = [number(of[name]) for name in ("state_bytes", "output_bytes", "bytes_beside_state", "bytes_beside_state_and_output")]
            rates = [number(of["rate_before"]), number(of["rate_after"]), f"**{of['rate_after'] / of['rate_before']:.2f}**"]
            rows.append([f"`{model}`, {sample.size:,} sessions", *memory, *each, *rates])
    if not rows:
        return None
    heads = [
        "",
        "resident before, MiB",
        "after, MiB",
        "state, bytes each",
        "last output, bytes each",
        "beside state, bytes each",
        "beside state and output, bytes each",
    ]
    rates = ["tokens/s at 64 streams before", "after", "after / before"]
    return f"""## 6. Idle sessions

Sessions that were created, took one step, and are left idle on a server of their own.

{table([*heads, *rates], rows)}
"""


def _ablation(results: Results, options: Options, pictures: Pictures) -> str | None:
    samples = results.of("ablation", options.models[0])
    if not samples:
        return None
    figures = {"steps per second": "rate", "requests per second": "requests_per_s", "mean latency, ms": "mean_ms", "p99 latency, ms": "p99_ms"}
    rows = []
    for way in _subjects(samples):
        found = [sample for sample in samples if sample.subject == way]
        rows.append([way, *(shown(results.spread(found, figure)) for figure in figures.values())])
    callers = samples[0].size
    return f"""## 7. Batching ablation

In process, one step function (`packed` of `benchmarks/peers/steppers.py`), one torch thread, {callers} callers of which each asks anew as soon as it is
answered, room for {max(1, callers // 2)} rows in a batch. Lengths are log-normal (median {ablation.MEDIAN_STEPS:.0f} steps, sigma {ablation.SIGMA:.0f}).
None: one request after the other. Request-level: what waits makes up a batch that runs as long as its longest request, the others padded. Step-level:
requests join and leave between two steps. Steps are those that were asked for, without padding; latencies count from asking to being answered in full.

{table(["", *figures], rows)}
"""


def _bits(results: Results, options: Options, pictures: Pictures) -> str | None:
    found = results.facts.get("same_bits")
    if not found:
        return None
    words = ", ".join(f"`{model}`: {'equal' if equal else '**not equal**'}" for model, equal in found.items())
    return f"""## The same bits

A session's outputs (bytes) and `state_digest` after 200 steps in one chunk alone, and in chunks of 1 to 33 among 63 others on one server: {words}.
"""
