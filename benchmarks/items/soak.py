"""A soak: for ten minutes twice as many calls as the machine can answer, with slow readers, callers that vanish and garbage among them."""

from benchmarks.callers import call, make_job
from benchmarks.processes import resident_bytes
from benchmarks.run import Run
from benchmarks.samples import Sample
from benchmarks.servers import Cellstate

CALLERS = 64
STEPS = 200
OVERLOAD = 2.0
CAPACITY_S = 20.0


def measure(run: Run) -> None:
    """Measure what the machine answers, then make twice as many calls."""
    options = run.options
    model = options.models[0]
    server = Cellstate(options.settings)
    with server.running(), run.item("soak", 2):
        run.now("what the machine can do")
        able = call(make_job("soak", server, model, CALLERS, (0.0, CAPACITY_S), steps=STEPS, calls_per_s=0, patience_s=120))["calls_per_s"]
        run.advance()
        before = resident_bytes(server.pid)
        run.now(f"{OVERLOAD * able:.0f} calls/s for {options.soak_s:.0f} s")
        found = call(make_job("soak", server, model, 0, (0.0, options.soak_s), steps=STEPS, calls_per_s=OVERLOAD * able, patience_s=180))
        after = resident_bytes(server.pid)
        run.advance()
    resident, other = found.pop("resident"), found.pop("other")
    run.results.facts["soak"] = {"able_calls_per_s": able, "resident": resident, "other": other}
    figures = found | {"resident_before": before, "resident_after": after, "resident_most": max(size for _, size in resident)}
    run.results.samples.append(Sample("soak", model, "cellstate", "", 0, 0, figures))
