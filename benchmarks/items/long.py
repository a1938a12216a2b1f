"""Long inputs: one session with 100,000 steps of input while 64 others generate."""

from benchmarks.callers import call, make_job
from benchmarks.run import Run
from benchmarks.samples import Sample
from benchmarks.servers import Cellstate

OTHERS = 64
# Steps per second that are certain on any machine: decides how long is waited for the rest of the input.
SLOWEST = 200


def measure(run: Run) -> None:
    """Measure once for each round, on the first model."""
    options = run.options
    model = options.models[0]
    server = Cellstate(
        (*options.settings, f"limits.max_input_steps={max(100_000, options.long_steps)}", f"limits.queued_steps={max(65_536, options.long_steps)}")
    )
    with server.running(), run.item("long input", options.rounds):
        for turn in range(options.rounds):
            run.now(f"{options.long_steps} steps beside {OTHERS} streams")
            patience_s = options.long_load_s + options.long_steps / SLOWEST
            job = make_job(
                "long",
                server,
                model,
                OTHERS,
                options.seconds,
                steps=options.steps,
                long_steps=options.long_steps,
                load_s=options.long_load_s,
                patience_s=patience_s,
            )
            run.record(Sample("long", model, "cellstate", "", OTHERS, turn, call(job)))
