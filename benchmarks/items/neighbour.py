"""A slow second model: sessions that step on a small model, without and with 64 streams that generate on a larger one of the same server."""

from benchmarks.callers import Caller, call, make_job
from benchmarks.run import Run
from benchmarks.samples import Sample
from benchmarks.servers import Cellstate

FAST, SLOW = "small", "ref"
STEPPING, GENERATING = 8, 64


def measure(run: Run) -> None:
    """Measure both in turns."""
    options = run.options
    server = Cellstate(options.settings)
    warm_s, measure_s = options.seconds
    with server.running(), run.item("a slow second model", 2 * options.rounds):
        stepping = make_job("step-streams", server, FAST, STEPPING, options.seconds)
        generating = make_job("generate", server, SLOW, GENERATING, (0.0, warm_s + measure_s + 3.0), steps=options.steps)
        for turn in range(options.rounds):
            run.now("alone")
            run.record(Sample("neighbour", FAST, "cellstate", "alone", STEPPING, turn, call(stepping)))
            run.now(f"beside {GENERATING} streams of {SLOW}")
            beside = Caller(generating)
            try:
                run.record(Sample("neighbour", FAST, "cellstate", "beside", STEPPING, turn, call(stepping)))
                run.results.samples.append(Sample("neighbour", SLOW, "cellstate", "beside", GENERATING, turn, beside.result()))
            finally:
                beside.stop()
