"""Servers and Redis as processes: started, killed, ended in order, started again where they were. What they log goes to files."""

import asyncio
import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
READY = re.compile(r"cellstate is ready: gRPC on 127\.0\.0\.1:(\d+), metrics on http://127\.0\.0\.1:(\d+)/metrics")
START_S, STOP_S = 60.0, 40.0
GRACE_S = 3.0
CHECKPOINTS = ("cellstate_checkpoints_in_progress", "cellstate_checkpoints_total")
REPEATS = "cellstate_repeats_answered_total"
_SAMPLE = re.compile(r"^(\w+)(?:\{[^}]*\})? ([-+.\deE]+)$", re.MULTILINE)
DIES_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")


class ServerFault(Exception):  # noqa: N818 (named for what happened)
    """A server did not start, or ended by itself."""


class Server:
    """One server on its own port, through all its starts.

    Attributes:
        name: For its log.
        port: The gRPC port; the same after the first start.
        takes: Whether new connections should be made to it.
        since_s: When it was last started.
        repeats: Requests answered again, over all its starts, as far as they were seen.
    """

    def __init__(self, name: str, folder: Path, models: Path, service: Path, settings: Sequence[str]) -> None:
        self.name = name
        self.port = self.metrics_port = 0
        self.takes = False
        self.since_s = 0.0
        self.log = folder / f"{name}.log"
        self._arguments = ["--models", str(models), "--grace-s", str(GRACE_S)]
        for setting in ("engine.warm_rows=0", "limits.max_wait_s=60", *settings):
            self._arguments += ["--set", setting]
        self._environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "client"), str(service)]), "PYTHONUNBUFFERED": "1"}
        self._process: asyncio.subprocess.Process | None = None
        self._before = self._now = 0.0

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def repeats(self) -> int:
        return int(self._before + self._now)

    async def start(self) -> None:
        """Start it and wait until it takes calls.

        Raises:
            ServerFault: It did not.
        """
        command = [sys.executable, "-m", "cellstate.cli", "serve", "--port", str(self.port), "--metrics-port", str(self.metrics_port), *self._arguments]
        with self.log.open("ab") as log:
            log.write(f"-- start at {time.time():.3f}\n".encode())
            log.flush()
            self._process = await _spawn(command, log, self._environment)
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(START_S):
                line = (await self._process.stdout.readline()).decode()
        except TimeoutError:
            line = "nothing"
        found = READY.match(line)
        if found is None:
            code = self._process.returncode if line == "nothing" else await self._process.wait() if not line else None
            raise ServerFault(f"server {self.name} did not start: it said {line!r} and ended with {code}; see {self.log}")
        self.port, self.metrics_port = int(found[1]), int(found[2])
        self._before, self._now = self._before + self._now, 0.0
        self.takes = True
        self.since_s = time.monotonic()

    async def kill(self) -> None:
        """Kill it at once."""
        self.takes = False
        await _kill(self._process)

    def freeze(self) -> None:
        """Stop its process, as that of a machine that hangs."""
        self.takes = False
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self.takes = True

    async def drain(self) -> None:
        """Ask it to stop, and wait until it has.

        Raises:
            ServerFault: It did not stop in time, or not well.
        """
        self.takes = False
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                code = await self._process.wait()
        except TimeoutError:
            await self.kill()
            raise ServerFault(f"server {self.name} did not stop within {STOP_S:g} s; see {self.log}") from None
        if code:
            raise ServerFault(f"server {self.name} ended with {code} when it was asked to stop; see {self.log}")

    def check(self) -> None:
        """Raise where it ended by itself."""
        if self.takes and not self.runs:
            raise ServerFault(f"server {self.name} ended by itself; see {self.log}")

    async def read(self) -> dict[str, float]:
        """Read its metrics: sums over labels by name; empty where it does not answer."""
        try:
            async with asyncio.timeout(2.0):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.metrics_port)
                with contextlib.closing(writer):
                    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
                    page = (await reader.read()).decode()
        except (OSError, TimeoutError):
            return {}
        sums: dict[str, float] = {}
        for name, value in _SAMPLE.findall(page):
            sums[name] = sums.get(name, 0.0) + float(value)
        self._now = max(self._now, sums.get(REPEATS, 0.0))
        return sums

    async def in_checkpoint(self, within_s: float = 2.0) -> bool:
        """Wait until it is seen at a checkpoint: one is running, or the counter has just moved. False where that was not seen in time."""
        until_s, before = time.monotonic() + within_s, None
        while time.monotonic() < until_s:
            sums = await self.read()
            running, total = (sums.get(name, 0.0) for name in CHECKPOINTS)
            if running > 0 or (before is not None and total > before):
                return True
            before = total
            await asyncio.sleep(0.005)
        return False


class Redis:
    """A Redis server that writes what it is told before it answers."""

    def __init__(self, folder: Path) -> None:
        self.port = _free_port()
        self._folder = folder / "redis"
        self._folder.mkdir()
        self._log = folder / "redis.log"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        program = redis_program()
        if program is None:
            raise ServerFault("there is no redis-server: scripts/install_test_needs.sh installs it")
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--dir", str(self._folder)]
        with self._log.open("ab") as log:
            self._process = await _spawn([program, *options], log, None, log)
        until_s = time.monotonic() + START_S
        while not await self._answers():
            if time.monotonic() > until_s or self._process.returncode is not None:
                raise ServerFault(f"Redis did not start; see {self._log}")
            await asyncio.sleep(0.02)

    async def kill(self) -> None:
        await _kill(self._process)

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            with contextlib.closing(writer):
                writer.write(b"PING\r\n")
                answer = await reader.readline()
        except OSError:
            return False
        return answer == b"+PONG\r\n"


class Fleet:
    """The servers that run side by side, and which of them the next connection goes to."""

    def __init__(self, folder: Path, models: Path, service: Path, settings: Sequence[str]) -> None:
        self.servers: list[Server] = []
        self._made = (folder, models, service, settings)
        self._numbers, self._turns = itertools.count(1), itertools.count()

    async def add(self) -> Server:
        """Start another one."""
        folder, models, service, settings = self._made
        server = Server(f"server-{next(self._numbers)}", folder, models, service, settings)
        self.servers.append(server)
        await server.start()
        return server

    def running(self) -> list[Server]:
        return [server for server in self.servers if server.takes]

    def next_port(self) -> int | None:
        """Take them in turn."""
        running = self.running()
        return running[next(self._turns) % len(running)].port if running else None

    async def watch(self) -> None:
        """Read the metrics of all, and raise where one ended by itself."""
        for server in self.running():
            await server.read()
            server.check()

    async def end(self) -> None:
        """Kill all that still run."""
        for server in self.servers:
            await server.kill()


def redis_program() -> str | None:
    """Return where redis-server is; None where it is not installed."""
    return shutil.which("redis-server", path=os.pathsep.join([str(ROOT / ".cache" / "bin"), os.environ.get("PATH", "")]))


async def _spawn(
    command: list[str], errors: IO[bytes], environment: dict[str, str] | None, output: Any = asyncio.subprocess.PIPE
) -> asyncio.subprocess.Process:
    """Start a process that hears no Ctrl-C of the terminal, and dies with this one.

    The latter by `setpriv`: to run a function in the child Python forks, and gRPC's fork handlers crash in the child of a process that is calling.
    """
    return await asyncio.create_subprocess_exec(
        *DIES_WITH_PARENT, *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=errors, env=environment, start_new_session=True
    )


async def _kill(process: asyncio.subprocess.Process | None) -> None:
    if process is not None and process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
