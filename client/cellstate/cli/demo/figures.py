"""Reading the server's Prometheus figures before and after, and telling which moved."""

import http.client
import re
from collections.abc import Mapping
from dataclasses import dataclass

_SERIES = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Series:
    """One series: a metric's name and its labels."""

    name: str
    labels: frozenset[tuple[str, str]]

    def label(self, name: str) -> str:
        """Return the label's value, or "" where the series has no such label."""
        return dict(self.labels).get(name, "")


Figures = Mapping[Series, float]


def scrape(address: str) -> Figures:
    """Read `http://ADDRESS/metrics`.

    Raises:
        OSError: It cannot be reached, or answers with an error.
    """
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        if answer.status != http.HTTPStatus.OK:
            raise OSError(f"http://{address}/metrics answers {answer.status}")
        return parse(answer.read().decode())
    finally:
        connection.close()


def parse(text: str) -> Figures:
    """Return the figures of a page in Prometheus' text format."""
    figures = {}
    for line in text.splitlines():
        match = None if line.startswith("#") else _SERIES.fullmatch(line)
        if match:
            name, labels, value = match.groups()
            figures[Series(name, frozenset(_LABEL.findall(labels or "")))] = float(value)
    return figures


class Moves:
    """What moved between two readings."""

    def __init__(self, before: Figures, after: Figures) -> None:
        self._moved = {series: value - before.get(series, 0.0) for series, value in after.items()}

    def total(self, name: str, **labels: str) -> float:
        """Return how much the series of that name moved in all that carry these labels."""
        return sum(value for series, value in self._moved.items() if series.name == name and labels.items() <= dict(series.labels).items())

    def mean(self, name: str, **labels: str) -> float | None:
        """Return the mean of what a histogram observed; None where it observed nothing."""
        count = self.total(f"{name}_count", **labels)
        return self.total(f"{name}_sum", **labels) / count if count else None

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return how much each value of a label moved, without those that did not."""
        found: dict[str, float] = {}
        for series, value in self._moved.items():
            if series.name == name and value:
                found[series.label(label)] = found.get(series.label(label), 0.0) + value
        return dict(sorted(found.items()))
