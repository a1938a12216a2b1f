"""A Redis server for tests: a process of its own, on this machine only, with each write on the disk before it is answered."""

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAM = shutil.which("redis-server") or str(Path(__file__).parents[1] / ".cache/bin/redis-server")
START_S = 20.0


class RedisServer:
    """A Redis server that tests start, end, freeze and start again on the same port.

    Args:
        folder: Where its data and its log are.
        options: More of its configuration: `{"requirepass": "secret"}`.
    """

    def __init__(self, folder: Path, options: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self._options = {"appendonly": "yes", "appendfsync": "always", "save": "", **(options or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it and wait until it serves what it has."""
        assert Path(PROGRAM).exists(), "redis-server is missing: scripts/install_test_needs.sh brings it"
        assert self._process is None
        self.folder.mkdir(exist_ok=True)
        given = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.folder), **self._options}
        flags = [flag for name, value in given.items() for flag in (f"--{name}", value)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([PROGRAM, *flags], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        end_s = time.monotonic() + START_S
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < end_s, "redis-server did not come up"
            time.sleep(0.02)

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze it: connections stay and are accepted, nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after a pause."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Kill it and start it again with its data."""
        self.kill()
        self.start()

    def wipe(self) -> None:
        """Delete its data; it is not to run meanwhile."""
        assert self._process is None
        shutil.rmtree(self.folder)

    def _end(self, signum: int) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(signal.SIGCONT)
        process.send_signal(signum)
        process.wait(START_S)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


def free_port() -> int:
    """Return a port that nothing listens on, for a server whose port is to stay the same."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
