"""`python -m tests.crash`: run a scenario, show how it goes, end with one line. See `make crash`."""

import argparse
import asyncio
import dataclasses
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.crash.report import Counts
from tests.crash.run import Options, Run
from tests.crash.scenarios import SCENARIOS
from tests.crash.servers import ROOT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and return the exit status: 0 where no step was lost or repeated, and enough happened for that to mean something."""
    options, keep = _options(arguments)
    print(f"scenario {options.scenario.name}, {options.minutes:g} min, {options.sessions} sessions at once, seed {options.seed}", flush=True)
    try:
        return asyncio.run(_run(options, keep=keep))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted", file=sys.stderr)
        return 130


async def _run(options: Options, *, keep: bool) -> int:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _cancel_all)
    bar = Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), disable=not sys.stderr.isatty())
    with bar:
        task = bar.add_task("starting", total=60 * options.minutes)

        def show(gone_s: float, counts: Counts) -> None:
            told = f"kills {counts.kills}  cuts {counts.cuts}  sessions {counts.sessions}  steps {counts.steps}  differences {counts.differences}"
            bar.update(task, completed=gone_s, description=told)

        run = Run(options, show)
        report = await run.run()
    if report.good and not keep:
        shutil.rmtree(run.folder, ignore_errors=True)
    else:
        print(f"logs are in {run.folder}")
    print("\n".join(report.lines()))
    return 0 if report.good else 1


def _options(arguments: Sequence[str] | None) -> tuple[Options, bool]:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--scenario", choices=list(SCENARIOS), default="sqlite")
    parser.add_argument("--durability", choices=("memory", "periodic", "sync"), default=None, help="of all sessions; left out: the scenario's mixture")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long things go wrong")
    parser.add_argument("--sessions", type=int, default=120, help="sessions at once")
    parser.add_argument("--threads", type=int, default=12, help="of them, those on the sync face")
    parser.add_argument("--seed", type=int, default=None, help="repeats a run's choices")
    parser.add_argument("--service", type=Path, default=ROOT / "service", help="folder of the cellstate_service that serves")
    parser.add_argument("--first", action="store_true", help="end as soon as something is found")
    parser.add_argument("--keep", action="store_true", help="keep the logs of a good run")
    given = parser.parse_args(arguments)
    seed = secrets.randbits(32) if given.seed is None else given.seed
    scenario = SCENARIOS[given.scenario]
    if given.durability is not None:
        scenario = dataclasses.replace(scenario, durabilities={given.durability: 1})
    return Options(scenario, given.minutes, given.sessions, seed, given.threads, given.service.resolve(), given.first), given.keep


def _cancel_all() -> None:
    for task in asyncio.all_tasks():
        task.cancel()


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # it tells of each fork
    sys.exit(main())
