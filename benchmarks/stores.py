"""The stores that sessions are measured with: a SQLite file, and a Redis server that writes through to its disk. Each is gone with its measurement."""

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.places import LOGS, ROOT, WORK, free_port
from benchmarks.processes import BenchmarkError, Child, wait_until

READY_S = 10.0


def redis_program() -> str | None:
    """Return where redis-server is; None where it is not installed."""
    return shutil.which("redis-server", path=os.pathsep.join([str(ROOT / ".cache" / "bin"), os.environ.get("PATH", "")]))


@contextlib.contextmanager
def sqlite() -> Iterator[tuple[str, ...]]:
    """Yield the settings of a server that keeps its sessions in a file."""
    with _folder() as folder:
        yield ("store.kind=sqlite", f"store.path={folder / 'sessions.db'}")


@contextlib.contextmanager
def redis() -> Iterator[tuple[str, ...]]:
    """Yield the settings of a server that keeps its sessions in Redis, which runs meanwhile.

    Raises:
        BenchmarkError: It is not installed, or does not start.
    """
    program = redis_program()
    if program is None:
        raise BenchmarkError("Redis: not measured. There is no redis-server: scripts/install_test_needs.sh installs it")
    port = free_port()
    with _folder() as folder:
        durable = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        child = Child([program, "--port", str(port), "--bind", "127.0.0.1", *durable, "--dir", folder], LOGS / "redis.log")
        try:
            wait_until(lambda: _answers(port), READY_S, "Redis")
            yield ("store.kind=redis", f"store.url=redis://127.0.0.1:{port}/0")
        finally:
            child.stop()


STORES = {"sqlite": sqlite, "redis": redis}


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Yield an empty folder on the disk that the checkout is on: a temporary one may be in memory."""
    WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK, prefix="store-") as folder:
        yield Path(folder)
