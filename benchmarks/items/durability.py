"""What durability costs: the same loads on sessions of each level in turns, on one server; and how a server that was killed comes back."""

import time
from collections.abc import Sequence

from benchmarks.callers import call, make_job
from benchmarks.load.lasting import Count
from benchmarks.processes import BenchmarkError, wait_until
from benchmarks.run import Run
from benchmarks.samples import Sample
from benchmarks.servers import Cellstate
from benchmarks.stores import STORES

LEVELS = ("memory", "periodic", "sync")
KINDS = {"generation": "generate-lasting", "stepping": "step-lasting"}
CHECKPOINT_S = 1.0
AIMS = {"periodic": 0.95, "sync": 0.5}
SAVED_S = 60.0


def measure(run: Run) -> None:
    """Measure each store that there is; in a quick run the file alone."""
    for store in ("sqlite",) if run.options.quick else STORES:
        try:
            _measure_store(run, store)
        except BenchmarkError as error:
            run.note(f"Durability, {store}: {error}")


def _measure_store(run: Run, store: str) -> None:
    options = run.options
    model = options.models[0]
    settings = (*options.settings, f"store.checkpoint_s={CHECKPOINT_S:g}")
    total = options.rounds * len(KINDS) * len(options.lasting_sizes) * len(LEVELS) + (options.recovered > 0)
    with run.item(f"durability, {store}", total):
        with STORES[store]() as place, Cellstate((*settings, *place), metrics=True).running() as server:
            assert isinstance(server, Cellstate)
            for turn in range(options.rounds):
                for mode, kind in KINDS.items():
                    for size in options.lasting_sizes:
                        for level in in_turn(LEVELS, turn):
                            run.now(f"{mode}, {size} at once, {level}")
                            job = make_job(kind, server, model, size, options.seconds, steps=options.steps, durability=level, metrics=server.metrics_url)
                            run.record(Sample(f"durable {mode}", model, store, level, size, turn, call(job)))
        if options.recovered:
            with STORES[store]() as place:
                run.now(f"recovery of {options.recovered} sessions")
                run.record(Sample("recovery", model, store, "", options.recovered, 0, _recovery(run, (*settings, *place))))


def in_turn(levels: Sequence[str], turn: int) -> list[str]:
    """Return the levels, another one first in each round: who comes after whom may matter."""
    first = turn % len(levels)
    return [*levels[first:], *levels[:first]]


def _recovery(run: Run, settings: Sequence[str]) -> dict[str, float]:
    """Kill a server once all that its sessions did is saved; return how long it takes until another one is ready and has answered for all of them."""
    model, sessions = run.options.models[0], run.options.recovered
    server = Cellstate((*settings, f"sessions.max_sessions={sessions + 1}", "limits.max_wait_s=60"), metrics=True)
    try:
        empty_s = _started(server)
        call(make_job("residents", server, model, sessions, (0.0, 0.0), prefix="kept"))
        _wait_until_saved(server)
        server.kill()
        ready_s = _started(server)
        found = call(make_job("answer-lasting", server, model, sessions, (0.0, 0.0), prefix="kept", position=1))
    finally:
        server.stop()
    return found | {"empty_s": empty_s, "ready_s": ready_s}


def _started(server: Cellstate) -> float:
    began_s = time.monotonic()
    server.start()
    return time.monotonic() - began_s


def _wait_until_saved(server: Cellstate) -> None:
    """Wait until nothing was saved for as long as a session that moves is never left unsaved."""
    before: list[tuple[float, float]] = [(time.monotonic(), -1.0)]

    def still() -> bool:
        (since_s, had), now_s, has = before[0], time.monotonic(), Count.read(server.metrics_url).of["checkpoints_per_s"]
        if has != had:
            before[0] = (now_s, has)
            return False
        return now_s - since_s > 2 * CHECKPOINT_S

    wait_until(still, SAVED_S, "the last snapshot")
