"""Markdown of figures: tables, medians with their spread, ratios, pictures."""

from collections.abc import Iterable
from pathlib import Path

from benchmarks.figures import Spread
from benchmarks.samples import Sample

Pictures = dict[str, Path]
MISSING = "not measured"


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


def picture(pictures: Pictures, *names: str) -> str:
    """Return links to those pictures that there are."""
    return "".join(f"\n![{name.replace('-', ' ')}]({pictures[name].name})\n" for name in names if name in pictures)


def subjects_of(samples: list[Sample]) -> list[str]:
    """Return what was measured, in order."""
    return list(dict.fromkeys(sample.subject for sample in samples))


def sizes_of(samples: list[Sample]) -> list[int]:
    """Return the sizes that were measured, sorted."""
    return sorted({sample.size for sample in samples})
