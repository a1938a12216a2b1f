"""Measure, write the report, end with the line of ratios. `python -m benchmarks --help` tells what there is to choose."""

import functools
import signal
import sys
from collections.abc import Callable, Iterator

from benchmarks import ablation, inproc
from benchmarks.command_line import parse
from benchmarks.items import bits, durability, idle, long, neighbour, paced, served, soak
from benchmarks.machine import describe
from benchmarks.places import MODELS
from benchmarks.processes import BenchmarkError
from benchmarks.ratios import ratios_line
from benchmarks.reference import write_models
from benchmarks.report.write import write_report
from benchmarks.run import Run
from benchmarks.servers import Triton


def measure(run: Run) -> bool:
    """Measure the items that are asked for, and write the report after each; return whether all could be measured."""
    complete = True
    for work in _works(run):
        try:
            work()
        except BenchmarkError as error:
            run.note(str(error))
            complete = False
        write_report(run.results, run.options, describe())
    return complete


def _works(run: Run) -> Iterator[Callable[[], None]]:
    items = run.options.items
    modes = [mode for mode in ("generation", "stepping") if mode in items]
    if "inproc" in items:
        yield lambda: inproc.measure(run)
    if "bits" in items:
        yield lambda: bits.measure(run)
    if modes:
        yield lambda: served.measure(run, modes)
    others = {"paced": paced, "long": long, "neighbour": neighbour, "idle": idle, "ablation": ablation, "durability": durability, "soak": soak}
    for item, module in others.items():
        if item in items:
            yield functools.partial(module.measure, run)


def main() -> int:
    """Measure, write the report, and end with the line of ratios."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = parse()
    run = Run(options)
    missing = Triton.missing()
    if missing is not None:
        run.note(f"Triton: not measured. {missing}")
    write_models(MODELS)
    try:
        measured = measure(run)
    except KeyboardInterrupt:
        run.console.print("stopped", style="yellow")
        return 130
    run.console.print(f"written: {options.out}", highlight=False)
    line, complete = ratios_line(run.results, options)
    if options.quick:
        sys.stdout.write(line + "\n")
        if not complete:
            sys.stderr.write("benchmarks: not everything that the ratios need was measured; see the notes above\n")
    return 0 if measured and (complete or not options.quick) else 1


if __name__ == "__main__":
    sys.exit(main())
