"""Ratios are taken within a round, against the other at its best, and the closing line holds all of them."""

import pytest

from benchmarks import ratios
from benchmarks.command_line import parse
from benchmarks.figures import Spread
from benchmarks.samples import Results, Sample, ratio


def sample(item, subject, size, rate, *, turn=0, variant=""):
    return Sample(item, "ref", subject, variant, size, turn, {"rate": rate})


@pytest.fixture
def results():
    found = Results()
    found.samples += [sample("generation", "cellstate", 8, rate, turn=turn) for turn, rate in enumerate((10.0, 40.0, 30.0))]
    found.samples += [sample("generation", "Triton", 8, rate, turn=turn, variant="slow") for turn, rate in enumerate((1.0, 1.0, 100.0))]
    found.samples += [sample("generation", "Triton", 8, rate, turn=turn, variant="fast") for turn, rate in enumerate((5.0, 10.0, 10.0))]
    return found


def test_best_is_the_variant_with_the_highest_median(results):
    assert {found.variant for found in results.best("generation", "Triton", 8)} == {"fast"}


def test_ratio_pairs_rounds(results):
    assert ratios.served_ratio(results, "generation", 8) == Spread(3.0, 2.0, 4.0)


def test_ratio_leaves_rounds_out_that_one_side_lacks():
    above = [sample("x", "a", 1, 4.0, turn=0), sample("x", "a", 1, 9.0, turn=1)]
    assert ratio(above, [sample("x", "b", 1, 3.0, turn=1)]) == Spread(3.0, 3.0, 3.0)
    assert ratio(above, []) is None


def test_line_says_what_was_not_measured(results):
    line, complete = ratios.ratios_line(results, parse(["--quick"]))
    assert line.startswith("ratios inproc_32=n/a generation_1=n/a generation_8=3.00 generation_32=n/a")
    assert line.endswith("same_bits=n/a")
    assert not complete


def test_line_is_complete_with_all_figures():
    found = Results(facts={"same_bits": {"ref": 1}})
    for item, variant in (("generation", ""), ("stepping", "stream")):
        for size in ratios.SIZES:
            found.samples += [sample(item, "cellstate", size, 2.0, variant=variant), sample(item, "Triton", size, 1.0, variant="any")]
    found.samples += [sample("inproc", "cellstate", 32, 0.9), sample("inproc", ratios.PRODUCTS, 32, 1.0)]
    line, complete = ratios.ratios_line(found, parse(["--quick"]))
    served = " ".join(f"{item}_{size}=2.00" for item in ("generation", "stepping") for size in (1, 8, 32, 64))
    assert (line, complete) == (f"ratios inproc_32=0.90 {served} same_bits=1", True)
