"""A histogram that only one thread counts into: for what is observed with every message, where locks would cost more than counting."""

import math
from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class LoopHistogram(Collector):
    """A histogram with one label, scraped from any thread. A scrape may miss the observation that is being counted in that moment; the next one has it.

    Args:
        name: Of the metric.
        text: What it means.
        label: Name of its label.
        buckets: Upper bounds, rising, without infinity.
        registry: Where it is registered.
    """

    def __init__(self, name: str, text: str, label: str, buckets: tuple[float, ...], registry: CollectorRegistry) -> None:
        self._name = name
        self._text = text
        self._label = label
        self._buckets = buckets
        self._children: dict[str, LoopHistogramChild] = {}
        registry.register(self)

    def labels(self, value: str) -> "LoopHistogramChild":
        """Return the histogram for a value of the label."""
        if value not in self._children:
            self._children[value] = LoopHistogramChild(self._buckets)
        return self._children[value]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield what was counted, as Prometheus has it."""
        family = HistogramMetricFamily(self._name, self._text, labels=[self._label])
        bounds = [str(floatToGoString(bound)) for bound in (*self._buckets, math.inf)]  # type: ignore[no-untyped-call]
        for value, child in list(self._children.items()):
            reached, buckets = 0, []
            for bound, count in zip(bounds, child.counts, strict=True):
                reached += count
                buckets.append((bound, float(reached)))
            family.add_metric([value], buckets, child.total)
        yield family


class LoopHistogramChild:
    """Counts of one value of the label.

    Attributes:
        counts: Observations in each bucket, not cumulated; the last is above all bounds.
        total: Sum of all observations.
    """

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count an observation; by one thread only."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value
