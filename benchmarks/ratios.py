"""The closing line: how we stand against the bare products and against Triton at its best."""

from benchmarks.figures import Spread
from benchmarks.options import Options
from benchmarks.samples import Results, ratio

SIZES = (1, 8, 32, 64)
PRODUCTS = "bare products"


def inproc_ratio(results: Results, rows: int, model: str = "ref") -> Spread | None:
    """Return our runner over the bare products."""
    return ratio(results.of_variant("inproc", "cellstate", "", rows, model), results.of_variant("inproc", PRODUCTS, "", rows, model))


def served_ratio(results: Results, item: str, size: int, model: str = "ref", subject: str = "Triton") -> Spread | None:
    """Return ours over another server at its best; ours steps over streams."""
    variant = "stream" if item == "stepping" else ""
    return ratio(results.of_variant(item, "cellstate", variant, size, model), results.best(item, subject, size, model))


def floor_rate(results: Results, item: str, size: int, model: str = "ref") -> float | None:
    """Return the rate of bare products and empty messages one after the other: what is left where nothing else costs anything and nothing overlaps."""
    products = results.spread(results.of_variant("inproc", PRODUCTS, "", size, model), "rate")
    way = "stream" if item == "stepping" else ""
    messages = results.spread(results.of_variant(item, "empty grpc.aio", way, size, model), "rate")
    return None if products is None or messages is None else 1 / (1 / products.median + 1 / messages.median)


def ratios_line(results: Results, options: Options) -> tuple[str, bool]:
    """Return the line, and whether all of it was measured."""
    model = options.models[0]
    found: dict[str, Spread | None] = {"inproc_32": inproc_ratio(results, 32, model)}
    for item in ("generation", "stepping"):
        found |= {f"{item}_{size}": served_ratio(results, item, size, model) for size in SIZES}
    bits = results.facts.get("same_bits", {}).get(model)
    words = [f"{name}={'n/a' if spread is None else format(spread.median, '.2f')}" for name, spread in found.items()]
    complete = bits is not None and None not in found.values()
    return f"ratios {' '.join(words)} same_bits={'n/a' if bits is None else bits}", complete
