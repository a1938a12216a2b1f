"""The command line of `python -m benchmarks`."""

import argparse
from pathlib import Path

from benchmarks.options import ITEMS, QUICK_ITEMS, Options
from benchmarks.places import REPORT, WORK
from benchmarks.reference import REFERENCES
from benchmarks.servers import Triton

FULL_SIZES, QUICK_SIZES = (1, 8, 32, 64, 256), (1, 8, 32, 64)
FULL_ROWS, QUICK_ROWS = (1, 8, 32, 64, 128, 256), (1, 8, 32, 64)


def parse(arguments: list[str] | None = None) -> Options:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this server in process and over gRPC, beside the bare matrix products, Triton and plain grpc.aio servers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--items",
        nargs="+",
        choices=ITEMS,
        metavar="ITEM",
        help=f"what to measure, of: {' '.join(ITEMS)} (default: all; with --quick, {' '.join(QUICK_ITEMS)})",
    )
    parser.add_argument("--quick", action="store_true", help="only what the closing line of ratios needs, in under ten minutes")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions; medians are taken over them")
    parser.add_argument("--warm-s", type=float, help="seconds before each measurement (default: 0.7, with --quick 0.4)")
    parser.add_argument("--measure-s", type=float, help="seconds of each measurement (default: 2, with --quick 1.5)")
    parser.add_argument("--steps", type=int, default=128, help="tokens of one generation call")
    parser.add_argument("--sizes", type=int, nargs="+", help=f"streams or sessions at once (default: {FULL_SIZES}, with --quick {QUICK_SIZES})")
    parser.add_argument("--models", nargs="+", choices=sorted(REFERENCES), help="reference models (default: ref small, with --quick ref)")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="a setting of our server; may be repeated")
    parser.add_argument("--out", type=Path, help="folder of the report (default: docs/benchmarks, with --quick .cache/bench/quick)")
    parser.add_argument("--long-steps", type=int, default=100_000, help="steps of the long input")
    parser.add_argument("--long-load-s", type=float, default=60.0, help="seconds for which others generate beside the long input at most")
    parser.add_argument("--idle-sessions", type=int, default=100_000)
    parser.add_argument("--callers", type=int, default=64, help="callers of the batching ablation")
    parser.add_argument("--lasting-sizes", type=int, nargs="+", help="streams on sessions of each durability (default: 1 64 256, with --quick 64)")
    parser.add_argument("--recovered", type=int, help="sessions of a server that is killed, for its recovery (default: 1000, with --quick 0)")
    parser.add_argument("--soak-s", type=float, default=600.0, help="seconds for which the soak makes twice as many calls as the machine answers")
    parser.add_argument("--no-triton", action="store_true", help="leave Triton out")
    given = parser.parse_args(arguments)
    quick = given.quick
    return Options(
        items=tuple(given.items or (QUICK_ITEMS if quick else ITEMS)),
        quick=quick,
        rounds=given.rounds,
        warm_s=given.warm_s or (0.4 if quick else 0.7),
        measure_s=given.measure_s or (1.5 if quick else 2.0),
        steps=given.steps,
        sizes=tuple(given.sizes or (QUICK_SIZES if quick else FULL_SIZES)),
        rows=QUICK_ROWS if quick else FULL_ROWS,
        models=tuple(given.models or (("ref",) if quick else ("ref", "small"))),
        settings=tuple(given.settings),
        out=given.out or (WORK / "quick" if quick else REPORT),
        long_steps=given.long_steps,
        long_load_s=given.long_load_s,
        idle_sessions=given.idle_sessions,
        callers=given.callers,
        lasting_sizes=tuple(given.lasting_sizes or ((64,) if quick else (1, 64, 256))),
        recovered=(0 if quick else 1000) if given.recovered is None else given.recovered,
        soak_s=given.soak_s,
        triton=not given.no_triton and Triton.missing() is None,
        plain=not quick,
    )
