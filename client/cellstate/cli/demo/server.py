"""The server that the demo starts for itself, as a child process."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc

from cellstate.cli.healthcheck import ask_health

HOST = "127.0.0.1"
_START_LIMIT_S = 120.0
_STOP_LIMIT_S = 30.0
_POLL_S = 0.05
_LOG_LINES_SHOWN = 15


class ServerError(Exception):
    """The server did not start, or did not stop as it should; the message ends with the last lines of its log."""


class ServerProcess:
    """`cellstate serve` on two free ports of the loopback address.

    Args:
        models: Folder of models.
    """

    def __init__(self, models: Path) -> None:
        self.address = f"{HOST}:{_free_port()}"
        self.metrics_address = f"{HOST}:{_free_port()}"
        self._served = False
        self._folder = tempfile.TemporaryDirectory()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self._models = models
        self._process = self._start()

    def wait_until_serving(self) -> None:
        """Return as soon as health answers SERVING.

        Raises:
            ServerError: It ended, or did not serve in time.
        """
        give_up = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < give_up:
            if self._process.poll() is not None:
                raise ServerError(f"the server ended with exit code {self._process.returncode}\n{self._last_lines()}")
            if ask_health(grpc.insecure_channel(self.address), "", 1.0) == "SERVING":
                self._served = True
                return
            time.sleep(_POLL_S)
        raise ServerError(f"the server did not serve within {_START_LIMIT_S:.0f} s\n{self._last_lines()}")

    def stop(self) -> float:
        """Ask the server to stop (SIGTERM) and return the seconds that it took.

        Raises:
            ServerError: It had ended before, did not end in time, or ended with another exit code than 0 after it had served.
        """
        begun = time.monotonic()
        try:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
            code = self._process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise ServerError(f"the server did not stop within {_STOP_LIMIT_S:.0f} s of SIGTERM\n{self._last_lines()}") from None
        finally:
            last_lines = self._last_lines()
            self._log.close()
            self._folder.cleanup()
        ended_while_starting = not self._served and code == -signal.SIGTERM
        if code != 0 and not ended_while_starting:
            raise ServerError(f"the server ended with exit code {code}\n{last_lines}")
        return time.monotonic() - begun

    def crash(self) -> None:
        """Kill the server as nothing can prepare for (SIGKILL), and start it again on the same ports and store."""
        self._process.kill()
        self._process.wait()
        self._process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(  # noqa: S603 (our own command)
            [
                sys.executable,
                "-m",
                "cellstate.cli",
                "serve",
                "--host",
                HOST,
                *self._ports(),
                "--models",
                str(self._models),
                "--set",
                f"store.path={self._folder.name}/sessions.db",
                "--log-format",
                "json",
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={name: value for name, value in os.environ.items() if not name.startswith("CELLSTATE_")},
            start_new_session=True,  # Ctrl-C reaches the demo, which then stops the server in order
        )

    def _ports(self) -> list[str]:
        return ["--port", self.address.rpartition(":")[2], "--metrics-port", self.metrics_address.rpartition(":")[2]]

    def _last_lines(self) -> str:
        if self._log.closed:
            return ""
        self._log.seek(0)
        return "\n".join(self._log.read().decode(errors="replace").splitlines()[-_LOG_LINES_SHOWN:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
