"""What was measured: one sample for each subject, size and round, and what tables and ratios need of them."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.figures import Spread


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement.

    Attributes:
        item: Of the benchmark programme.
        model: The reference model.
        subject: What was measured.
        variant: In which way; empty where there is one.
        size: Rows, streams or sessions.
        round: Counted from 0.
        figures: By name; names carry units.
    """

    item: str
    model: str
    subject: str
    variant: str
    size: int
    round: int
    figures: dict[str, float]


@dataclass(slots=True)
class Results:
    """All that a run measured.

    Attributes:
        samples: In the order of measuring.
        notes: What could not be measured and why, and what else is worth knowing; item by item.
        facts: Findings that are no samples, by item.
    """

    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def of(self, item: str, model: str = "ref") -> "list[Sample]":
        """Return the samples of an item."""
        return [sample for sample in self.samples if sample.item == item and sample.model == model]

    def spread(self, samples: Iterable[Sample], figure: str) -> Spread | None:
        """Return the spread of a figure over rounds; None where nothing was measured."""
        values = [sample.figures[figure] for sample in samples if figure in sample.figures]
        return Spread.of(values) if values else None

    def best(self, item: str, subject: str, size: int, model: str = "ref") -> "list[Sample]":
        """Return the samples of a subject's variant with the highest median rate at a size; none where it was not measured."""
        variants: dict[str, list[Sample]] = {}
        for sample in self.of(item, model):
            if (sample.subject, sample.size) == (subject, size):
                variants.setdefault(sample.variant, []).append(sample)
        return max(variants.values(), key=lambda found: statistics.median(sample.figures["rate"] for sample in found), default=[])

    def of_variant(self, item: str, subject: str, variant: str, size: int, model: str = "ref") -> "list[Sample]":
        """Return the samples of a subject in one way at a size."""
        return [sample for sample in self.of(item, model) if (sample.subject, sample.variant, sample.size) == (subject, variant, size)]


def ratio(above: list[Sample], below: list[Sample], figure: Callable[[Sample], float] = lambda sample: sample.figures["rate"]) -> Spread | None:
    """Return the spread of the ratios within each round that both were measured in; None where there is none."""
    under = {sample.round: figure(sample) for sample in below}
    values = [figure(sample) / under[sample.round] for sample in above if under.get(sample.round)]
    return Spread.of(values) if values else None
