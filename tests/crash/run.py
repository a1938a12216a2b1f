"""A run: servers, doors, sessions that come and go, what disturbs them, and the check of what each got."""

import asyncio
import contextlib
import itertools
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cellstate
from tests.crash.callers import Callers
from tests.crash.disturb import Disturber
from tests.crash.expected import Checker
from tests.crash.faces import AsyncFace, Face, ThreadFace
from tests.crash.gateways import GatewayCaller
from tests.crash.lives import Life, ModelKind, Tally
from tests.crash.records import Transcript
from tests.crash.repeats import Repeats
from tests.crash.report import Counts, Report
from tests.crash.scenarios import Scenario
from tests.crash.servers import ROOT, Fleet, Redis
from tests.crash.trace import Trace, going_on, where
from tests.models_on_disk import write_recurrent
from tests.proxy import Proxy

DOORS = 6
MODELS = (ModelKind("text", None), ModelKind("pairs", 2))
"""Few, for a server compiles each for seconds when it starts."""
GATEWAY_SESSIONS = 4
ENDING_S = 210.0
"""How long sessions may take to come to their end after the last disturbance."""
CLIENT = {"timeout_s": 240.0, "resume_s": 240.0}
"""Beyond what servers take to start, again and again, on a machine that does much else."""
WATCH_S = 0.5
LONGER = 2.0
"""How many times longer a run lasts at most where too little of something has happened by its end: on slow machines."""


@dataclass(frozen=True)
class Options:
    """What is asked for on the command line.

    Attributes:
        scenario: See there.
        minutes: How long things go wrong.
        sessions: At once.
        seed: Of everything that is chosen.
        threads: Of the sessions, those on the sync face.
        service: Folder of the `cellstate_service` that serves: the one here, or a changed copy.
        first: End as soon as something is found.
    """

    scenario: Scenario
    minutes: float
    sessions: int
    seed: int
    threads: int
    service: Path = ROOT / "service"
    first: bool = False


class Found(Exception):  # noqa: N818 (named for what happened)
    """Something was found, which is enough."""


class Run:
    """One run.

    Args:
        options: What is asked for.
        progress: Is told the seconds gone and the counts, twice a second.
    """

    def __init__(self, options: Options, progress: Callable[[float, Counts], None] = lambda gone_s, counts: None) -> None:
        self._options = options
        self._progress = progress
        self._tally, self.counts = Tally(), Counts()
        self._lives: set[Life] = set()
        self._checks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._until_s = 0.0
        self._trace = Trace()
        self.seed = options.seed
        self.folder = Path(tempfile.mkdtemp(prefix="cellstate-crash-"))

    async def run(self) -> Report:
        """Run to the end, and leave no process behind."""
        async with AsyncExitStack() as stack:
            stack.enter_context(self._trace)
            await self._run(stack)
        counts, tally = self.counts, self._tally
        wrong = tally.wrong + counts.too_few(self._options.scenario.least(self._options.minutes))
        others = {name: getattr(counts, name) for name in ("drains", "added", "freezes", "redis_restarts", "unfinished")}
        others |= {"memory_sessions_lost": tally.lost, "duplicates_sent": tally.repeats_sent}
        others |= {"duplicates_answered": tally.repeats_answered, "duplicates_refused": tally.repeats_refused}
        others |= {f"{kind}_repeated_by_caller": count for kind, count in sorted(tally.repeated_by_caller.items())}
        return Report(counts, tally.recoveries_s, others, wrong)

    async def _run(self, stack: AsyncExitStack) -> None:
        options, scenario = self._options, self._options.scenario
        models = _write_models(self.folder / "models")
        checker = Checker(models)
        stack.push_async_callback(asyncio.to_thread, checker.close)
        redis = Redis(self.folder) if scenario.store == "redis" else None
        if redis is not None:
            stack.push_async_callback(redis.kill)
            await redis.start()
        url = f"redis://127.0.0.1:{redis.port}/0" if redis is not None else ""
        fleet = Fleet(self.folder, models, options.service, scenario.settings(str(self.folder / "store.sqlite"), url))
        stack.push_async_callback(fleet.end)
        for _ in range(scenario.replicas):
            await fleet.add()
        doors = [await stack.enter_async_context(Proxy(fleet.next_port)) for _ in range(DOORS)]
        pool = ThreadPoolExecutor(2 * options.threads + 4, thread_name_prefix="sync-face")
        stack.push_async_callback(asyncio.to_thread, pool.shutdown)
        faces = [[await _face(stack, face) for face in (AsyncFace(door.address, **CLIENT), ThreadFace(door.address, pool, **CLIENT))] for door in doors]
        repeats = Repeats([face.client for face, _ in faces])
        self._until_s = time.monotonic() + 60 * options.minutes
        disturber = Disturber(scenario, random.Random(f"{options.seed}/disturb"), doors, fleet, redis, lambda: self._lives, self.counts)
        watching = asyncio.ensure_future(self._watch(fleet))
        disturbing = asyncio.ensure_future(disturber.run(lambda: self._until_s - time.monotonic()))
        places = [self._place(number, doors, faces, Callers(repeats), repeats, checker) for number in range(options.sessions)]
        living = asyncio.gather(*(asyncio.create_task(place, name=f"place {number}") for number, place in enumerate(places)))
        try:
            await self._to_the_end(living, disturbing, watching)
        finally:
            await _cancel(living, disturbing, watching)
            await asyncio.gather(*self._checks, return_exceptions=True)
            await _quietly(fleet.watch())
            self.counts.repeats_answered = sum(server.repeats for server in fleet.servers)

    async def _to_the_end(self, living: Any, disturbing: Any, watching: Any) -> None:
        """Wait until all sessions have ended, as long as they may take."""
        limit_s = self._until_s - time.monotonic() + 60 * LONGER * self._options.minutes + ENDING_S
        await asyncio.wait([living, disturbing, watching], timeout=limit_s, return_when=asyncio.FIRST_EXCEPTION)
        for task in (disturbing, watching):
            if task.done() and not task.cancelled() and task.exception() is not None:
                self._tally.wrong.append(f"{type(task.exception()).__name__}: {task.exception()}")
                return
        if not living.done():
            self.counts.unfinished = len(self._lives)
            for task in asyncio.all_tasks():
                if task.get_name().startswith("place"):
                    self._tally.wrong.append(f"{task.get_name()} hangs at {where(task)}")
            self._tally.wrong += [f"{life.transcript.name} ({life.transcript.durability}) is not ended: {going_on(life)}" for life in self._lives]
        elif living.exception() is not None:
            raise living.exception()

    async def _watch(self, fleet: Fleet) -> None:
        least, latest_s = self._options.scenario.least(self._options.minutes), self._until_s + 60 * LONGER * self._options.minutes
        began_s = self._until_s - 60 * self._options.minutes
        while True:
            await fleet.watch()
            self.counts.moves, self.counts.resumes_mid_generation = self._tally.moves, self._tally.resumed
            self.counts.repeats_answered = sum(server.repeats for server in fleet.servers)
            self._progress(time.monotonic() - began_s, self.counts)
            if self.counts.too_few(least) and not self._tally.wrong:
                self._until_s = min(latest_s, max(self._until_s, time.monotonic() + 4 * WATCH_S))
            if self._options.first and self._tally.wrong:
                raise Found("the run ends with what was found first")
            if time.monotonic() > self._until_s and not self._lives:
                return
            await asyncio.sleep(WATCH_S)

    # -- sessions

    async def _place(self, place: int, doors: list[Proxy], faces: list[list[Face]], callers: Callers, repeats: Repeats, checker: Checker) -> None:
        """Let sessions live one after the other, until it is time to end."""
        door, threaded = place % len(doors), place < self._options.threads
        together = GATEWAY_SESSIONS if place % 7 == 6 and not threaded else 1
        while time.monotonic() < self._until_s:
            lives = [self._born(doors[door], faces[door][threaded]) for _ in range(together)]
            self._lives.update(lives)
            try:
                await (self._live(lives[0], callers) if together == 1 else self._live_together(lives, callers))
            except cellstate.CellstateError as error:
                self._failed(lives, error)
            except Exception as error:  # whatever it is, it is told in the report
                self._tally.wrong.append(f"{lives[0].transcript.name} in {going_on(lives[0])}: {type(error).__name__}: {error}")
                self._write_trace(lives, error)
            for life in lives:
                repeats.forget(life)
                check = asyncio.ensure_future(self._check(life, checker))
                self._checks.add(check)
                check.add_done_callback(self._checks.discard)
            self._lives.difference_update(lives)

    def _born(self, door: Proxy, face: Face) -> Life:
        number = next(self._numbers)
        chooser = random.Random(f"{self._options.seed}/{number}")
        model = chooser.choice(MODELS)
        durabilities = self._options.scenario.durabilities
        durability = chooser.choices(list(durabilities), list(durabilities.values()))[0]
        transcript = Transcript(f"session-{number}", model.name, "", durability, chooser.getrandbits(64))
        return Life(model, door, face, chooser, transcript, self._tally)

    async def _live(self, life: Life, callers: Callers) -> None:
        modes = callers.modes()
        await callers.create(life, durability=life.transcript.durability)
        for _ in range(life.random.randint(3, 12)):
            if time.monotonic() > self._until_s:
                break
            mode = life.random.choice(list(modes))
            if not life.transcript.exchanges and mode == "generation" and life.model.features is not None:
                mode = "chunks"  # numbers have no start value
            await modes[mode](life)
            await asyncio.sleep(life.random.expovariate(1 / 0.1))
        await callers.delete(life)

    async def _live_together(self, lives: list[Life], callers: Callers) -> None:
        for life in lives:
            await callers.create(life, durability=life.transcript.durability)
        caller = GatewayCaller(lives)
        for _ in range(lives[0].random.randint(1, 4)):
            await caller.run(lives[0].random.randint(20, 60))
        for life in lives:
            await callers.delete(life)

    def _failed(self, lives: list[Life], error: cellstate.CellstateError) -> None:
        """Tell of an error that a caller got, unless it is that of a MEMORY session whose server was killed."""
        may_go = self.counts.kills > 0 and any(life.transcript.durability == "memory" for life in lives)
        if may_go and isinstance(error, cellstate.NotFound):
            self._tally.lost += 1
            return
        life = lives[0]
        self._tally.wrong.append(f"{life.transcript.name} ({life.transcript.durability}) in {going_on(life)}: {type(error).__name__}: {error}")
        self._write_trace(lives, error)

    def _write_trace(self, lives: list[Life], error: Exception | None) -> None:
        for life in lives:
            self._trace.write(self.folder / "traces", life, error)

    async def _check(self, life: Life, checker: Checker) -> None:
        transcript = life.transcript
        try:
            found = await checker.check(transcript, asyncio.get_running_loop())
        except Exception as error:  # the check itself failed: then nothing is known of the session
            self._tally.wrong.append(f"{transcript.name} could not be checked: {type(error).__name__}: {error}")
            return
        self.counts.sessions += 1
        self.counts.steps += found.steps
        self.counts.differences += bool(found.differences)
        who = f"{transcript.name} of {transcript.model} ({transcript.durability}, seed {transcript.seed}; the run's seed {self._options.seed})"
        self._tally.wrong += [f"{who}: {difference}" for difference in found.differences]
        if found.differences:
            self._write_trace([life], None)
        self._trace.forget(transcript.name)


def _write_models(folder: Path) -> Path:
    write_recurrent(folder / "text", num_layers=2, hidden_size=24, seed=1)
    write_recurrent(folder / "pairs", cell="gru", input_kind="numeric", features=2, num_layers=2, hidden_size=16, seed=2)
    return folder


async def _face(stack: AsyncExitStack, face: Face) -> Face:
    stack.push_async_callback(face.close)
    await face.do(face.client.wait_until_ready)  # a client that never reached its server makes no call again
    return face


async def _cancel(*tasks: Any) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _quietly(work: Any) -> None:
    with contextlib.suppress(Exception):
        await work
