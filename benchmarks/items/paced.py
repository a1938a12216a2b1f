"""Real-time streams: how many sessions with a step every 32 ms each, until more than 0.1 % of the steps come late."""

from benchmarks.callers import call, make_job
from benchmarks.figures import find_knee
from benchmarks.run import Run
from benchmarks.samples import Sample
from benchmarks.servers import Cellstate

LATE_SHARE = 0.001
KINDS = {"stream": "pace-streams", "gateway": "pace-gateway"}
SUBJECTS = {"stream": "one stream for each session", "gateway": "one stream for all sessions"}
START, LIMIT = 32, 4096
# A session takes about 190 steps in this time.
MEASURE_S = 6.0


class UnimplementedError(Exception):
    """The server does not offer it."""


def measure(run: Run) -> None:
    """Find the knee for each model and way of calling."""
    settings = (*run.options.settings, "engine.max_calls=8192", "limits.max_concurrent_streams=8192", "sessions.max_sessions=8192")
    knees = run.results.facts.setdefault("knees", {})
    server = Cellstate(settings)
    with server.running(), run.item("paced", len(run.options.models) * len(KINDS)):
        for model in run.options.models:
            for way in KINDS:
                try:
                    knees[f"{model} {way}"] = find_knee(lambda size, m=model, w=way: _holds(run, server, m, w, size), START, LIMIT)  # type: ignore[misc]
                except UnimplementedError:
                    run.note(f"Paced, {SUBJECTS[way]}: skipped, because this server answers UNIMPLEMENTED to channels other than 0.")
                run.advance()


def _holds(run: Run, server: Cellstate, model: str, way: str, size: int) -> bool:
    """Measure once, and once more where it does not hold: one hiccup of the machine is no knee."""
    for _ in range(2):
        run.now(f"{model}, {size} sessions, {SUBJECTS[way]}")
        measure_s = min(MEASURE_S, 2 * run.options.measure_s)
        figures = call(make_job(KINDS[way], server, model, size, (run.options.warm_s, measure_s)))
        if figures.get("unimplemented"):
            raise UnimplementedError
        run.results.samples.append(Sample("paced", model, "cellstate", way, size, 0, figures))
        if figures["late_share"] <= LATE_SHARE:
            return True
    return False
