"""The pictures of the report, as SVG."""

import itertools
import re
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.items.durability import AIMS, KINDS
from benchmarks.options import Options
from benchmarks.report.lasting import STORE_NAMES, level_ratio
from benchmarks.report.served import token_times
from benchmarks.samples import Results, Sample

COLORS = {"cellstate": "#0b6e99", "Triton": "#4f8a10", "plain grpc.aio": "#b35c00", "empty grpc.aio": "#888888"}
PARTS = {"bare step": "#0b6e99", "rest of the engine's thread": "#6fb7d6", "event loop": "#e0a030", "server's other threads": "#b0b0b0", "client": "#dddddd"}
STYLES = {"": "-", "stream": "-", "unary": "--"}
LEVEL_COLORS = {"periodic": "#0b6e99", "sync": "#b35c00"}
_UNITS = {"generation": "tokens", "stepping": "steps"}


def draw(results: Results, options: Options, folder: Path) -> dict[str, Path]:
    """Draw what was measured; return the pictures by name. They are of the first model."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "cellstate", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3})
    model = options.models[0]
    found = {}
    for item in _UNITS:
        lines = _lines(results, item, model)
        if any(len(points) > 1 for points in lines.values()):
            found[f"{item}-throughput-latency"] = _throughput_latency(item, lines)
            found[f"{item}-latency-streams"] = _latency_streams(item, lines)
    times = token_times(results, model)
    if times:
        found["token-time"] = _token_time(times)
    bars = _durable_bars(results, model)
    if bars:
        found["durability"] = _durability(bars)
    return {name: _save(figure, folder / f"{name}.svg") for name, figure in found.items()}


Lines = dict[tuple[str, str], dict[int, dict[str, float]]]


def _lines(results: Results, item: str, model: str) -> Lines:
    """Return medians by subject and way, and by size; Triton at its best."""
    lines: Lines = {}
    for sample in results.of(item, model):
        best = sample.subject == "Triton"
        way = "" if best else sample.variant
        found = results.best(item, "Triton", sample.size, model) if best else results.of_variant(item, sample.subject, way, sample.size, model)
        lines.setdefault((sample.subject, way), {}).setdefault(sample.size, _medians(results, found))
    return lines


def _medians(results: Results, samples: list[Sample]) -> dict[str, float]:
    return {name: spread.median for name in ("rate", "p50_ms", "p99_ms") if (spread := results.spread(samples, name)) is not None}


def _throughput_latency(item: str, lines: Lines) -> Figure:
    figure, axes = _axes(f"{item.capitalize()}: throughput against latency", "p99, ms", f"{_UNITS[item]} per second")
    for (subject, way), points in lines.items():
        at = sorted((size, point) for size, point in points.items())
        axes.plot([point["p99_ms"] for _, point in at], [point["rate"] for _, point in at], **_style(subject, way))
        for size, point in at:
            axes.annotate(str(size), (point["p99_ms"], point["rate"]), textcoords="offset points", xytext=(4, 3), fontsize=7)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.legend(fontsize=8, title="figures at points: streams", title_fontsize=7)
    return figure


def _latency_streams(item: str, lines: Lines) -> Figure:
    figure, axes = _axes(f"{item.capitalize()}: latency against streams", "streams", "ms (points: p50, upper ends: p99)")
    for (subject, way), points in lines.items():
        sizes = sorted(points)
        middles = [points[size]["p50_ms"] for size in sizes]
        above = [max(0.0, points[size]["p99_ms"] - points[size]["p50_ms"]) for size in sizes]
        axes.errorbar(sizes, middles, yerr=[[0.0] * len(sizes), above], capsize=2, **_style(subject, way))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sizes = sorted({size for points in lines.values() for size in points})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.legend(fontsize=8)
    return figure


def _token_time(times: dict[str, dict[str, float]]) -> Figure:
    figure, axes = _axes("Where a token's time goes, 64 streams", "microseconds of processor time for each token or step", "")
    names = list(times)[::-1]
    left = [0.0] * len(names)
    for part, color in PARTS.items():
        widths = [times[name][part] for name in names]
        axes.barh(names, widths, left=left, color=color, label=part)
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    axes.legend(fontsize=8)
    return figure


Bars = dict[str, dict[str, float]]


def _durable_bars(results: Results, model: str) -> Bars:
    """Return each level's ratio to MEMORY by what was measured."""
    bars: Bars = {}
    for store, mode in itertools.product(STORE_NAMES, KINDS):
        for size in sorted({sample.size for sample in results.of(f"durable {mode}", model)}):
            ratios = {level: level_ratio(results, mode, store, level, size, model) for level in AIMS}
            if None not in ratios.values():
                bars[f"{store}\n{mode}\n{size}"] = {level: spread.median for level, spread in ratios.items() if spread is not None}
    return bars


def _durability(bars: Bars) -> Figure:
    figure, axes = _axes("What durability costs, by store and streams", "", "rate over that of MEMORY")
    for shift, (level, aim) in zip((-0.2, 0.2), AIMS.items(), strict=True):
        color = LEVEL_COLORS[level]
        axes.bar([at + shift for at in range(len(bars))], [ratios[level] for ratios in bars.values()], width=0.38, color=color, label=level.upper())
        axes.axhline(aim, color=color, linestyle=":", linewidth=1)
    axes.set_xticks(range(len(bars)), list(bars), fontsize=7)
    axes.legend(fontsize=8, title="dotted: aimed for", title_fontsize=7)
    return figure


def _axes(title: str, x: str, y: str) -> "tuple[Figure, mpl.axes.Axes]":
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


def _style(subject: str, way: str) -> dict[str, object]:
    return {"color": COLORS.get(subject, "black"), "linestyle": STYLES.get(way, "-"), "marker": "o", "markersize": 3, "label": f"{subject} {way}".strip()}


def _save(figure: Figure, path: Path) -> Path:
    """Write a picture; positions need no more than two places behind the point."""
    figure.savefig(path, metadata={"Date": None})
    path.write_text(re.sub(r"(\d+\.\d{2})\d+", r"\1", path.read_text()))
    return path
