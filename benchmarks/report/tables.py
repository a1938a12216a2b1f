"""The tables of the report, one section for each item that was measured."""

from collections.abc import Callable

from benchmarks import ablation
from benchmarks.items import neighbour, paced
from benchmarks.options import Options
from benchmarks.ratios import PRODUCTS, inproc_ratio
from benchmarks.report.lasting import lasting
from benchmarks.report.markdown import Pictures, factor, number, shown, sizes_of, subjects_of, table
from benchmarks.report.served import served, token_time
from benchmarks.report.soaked import soaked
from benchmarks.samples import Results


def sections(results: Results, options: Options, pictures: Pictures) -> list[str]:
    """Return the sections of what was measured, as markdown."""
    makers: list[Callable[[Results, Options, Pictures], str | None]] = [
        _inproc,
        served("generation"),
        served("stepping"),
        token_time,
        _paced,
        _long,
        _neighbour,
        _idle,
        _ablation,
        _bits,
        soaked,
        lasting,
    ]
    return [section for maker in makers if (section := maker(results, options, pictures))]


def _inproc(results: Results, options: Options, pictures: Pictures) -> str | None:
    text = ""
    for model in options.models:
        samples = results.of("inproc", model)
        if not samples:
            continue
        sizes = sizes_of(samples)
        rows = [
            [subject, *(shown(results.spread(results.of_variant("inproc", subject, "", size, model), "rate")) for size in sizes)]
            for subject in subjects_of(samples)
        ]
        rows.append([f"cellstate / {PRODUCTS}", *(factor(inproc_ratio(results, size, model)) for size in sizes)])
        text += f"\nSteps per second, model `{model}`, by rows:\n\n{table(['', *map(str, sizes)], rows)}\n"
    if not text:
        return None
    return f"""## 1. In process

No server, one torch thread. Bare products: `[x, h]` by both weights of a layer together, and the head, prepacked for oneDNN and nothing else.
Tabulated: the products that are left where the first layer's input product is looked up by token. Who is above the first line gains from that table.
{text}"""


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


def _neighbour(results: Results, options: Options, pictures: Pictures) -> str | None:
    samples = results.of("neighbour", neighbour.FAST)
    if not samples:
        return None
    figures = {"steps per second": "rate", "p50, ms": "p50_ms", "p99, ms": "p99_ms"}
    ways = {way: results.of_variant("neighbour", "cellstate", way, neighbour.STEPPING, neighbour.FAST) for way in ("alone", "beside")}
    rows = [[title, *(shown(results.spread(ways[way], name)) for way in ways)] for title, name in figures.items()]
    others = results.of("neighbour", neighbour.SLOW)
    return f"""## 5b. A slow second model

{neighbour.STEPPING} streams step on model `{neighbour.FAST}`, without and with {neighbour.GENERATING} streams that generate on `{neighbour.SLOW}` of the same
server ({shown(results.spread(others, "rate"))} tokens per second meanwhile).

{table(["", "without them", "with them"], rows)}
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
    for way in subjects_of(samples):
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
