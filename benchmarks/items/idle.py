"""Idle sessions: the memory of each beside its state, and what many of them do to generation."""

import statistics

from benchmarks.callers import Caller, call, make_job
from benchmarks.processes import resident_bytes
from benchmarks.reference import REFERENCES
from benchmarks.run import Run
from benchmarks.samples import Sample
from benchmarks.servers import Cellstate

PROCESSES = 4
STREAMS = 64
CREATED_PER_S = 200


def measure(run: Run) -> None:
    """Fill a server of its own with idle sessions."""
    options = run.options
    with run.item("idle sessions", 3 * len(options.models)):
        for model in options.models:
            _measure_model(run, model, options.idle_sessions)


def _measure_model(run: Run, model: str, sessions: int) -> None:
    settings = (f"sessions.max_sessions={sessions + 2 * STREAMS}", "sessions.idle_ttl_s=86400")
    server = Cellstate((*run.options.settings, *settings))
    with server.running():
        before = _generate(run, server, model, 0)
        bytes_before = resident_bytes(server.pid)
        run.now(f"{model}, making {sessions} sessions")
        state_bytes = _fill(server, model, sessions)
        bytes_after = resident_bytes(server.pid)
        run.advance()
        after = _generate(run, server, model, sessions)
    output_bytes = 4 * REFERENCES[model].vocabulary
    figures = {
        "resident_before": bytes_before,
        "resident_after": bytes_after,
        "state_bytes": state_bytes,
        "output_bytes": output_bytes,
        "bytes_beside_state": (bytes_after - bytes_before) / sessions - state_bytes,
        "bytes_beside_state_and_output": (bytes_after - bytes_before) / sessions - state_bytes - output_bytes,
        "rate_before": before,
        "rate_after": after,
    }
    run.results.samples.append(Sample("idle", model, "cellstate", "", sessions, 0, figures))


def _generate(run: Run, server: Cellstate, model: str, sessions: int) -> float:
    """Return tokens per second beside so many idle sessions, the median of the rounds."""
    run.now(f"{model}, generation beside {sessions} idle sessions")
    rates = [call(make_job("generate", server, model, STREAMS, run.options.seconds, steps=run.options.steps))["rate"] for _ in range(run.options.rounds)]
    run.advance()
    return statistics.median(rates)


def _fill(server: Cellstate, model: str, sessions: int) -> int:
    """Create the sessions from several processes at once; return the bytes of one session's state."""
    share = sessions // PROCESSES
    shares = [share + (sessions - PROCESSES * share if number == 0 else 0) for number in range(PROCESSES)]
    callers = [
        Caller(make_job("residents", server, model, count, (0.0, 0.0), channels=2, prefix=f"idle-{number}")) for number, count in enumerate(shares) if count
    ]
    try:
        return max(int(caller.result(60 + sessions / CREATED_PER_S)["state_bytes"]) for caller in callers)
    finally:
        for caller in callers:
            caller.stop()
