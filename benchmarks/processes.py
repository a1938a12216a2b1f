"""Child processes that end with this one, and what /proc tells of them."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_LIBC = ctypes.CDLL(None)


class BenchmarkError(Exception):
    """Something cannot be measured; the message says what to do."""


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """A process in a group of its own, so that all that it starts ends with it.

    Args:
        command: Program and arguments.
        log: Standard error goes to this file, and standard output too unless `pipe`.
        environment: Variables beside ours.
        pipe: Keep standard output for the caller to read.
    """

    def __init__(self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None, *, pipe: bool = False) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("ab") as errors:
            self.process = subprocess.Popen(  # noqa: S603 (what is run is written in this package)
                [str(part) for part in command],
                stdin=subprocess.PIPE if pipe else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipe else errors,
                stderr=errors,
                text=True,
                env=dict(os.environ) | dict(environment or {}),
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 (no other thread runs here that could hold a lock)
            )

    @property
    def pid(self) -> int:
        """Its process id, and that of its group."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """It has not ended."""
        return self.process.poll() is None

    def tail(self, lines: int = 8) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, patience_s: float = 10.0) -> None:
        """Ask it to end, then end its whole group."""
        if self.running:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_s)
        self.kill()

    def kill(self) -> None:
        """End its whole group at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    return 0


def group_pids(group: int) -> list[int]:
    """Return the processes of a group."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if os.getpgid(int(folder.name)) == group:
                    found.append(int(folder.name))
            except ProcessLookupError:
                continue
    return sorted(found)


@dataclass(frozen=True, slots=True)
class ThreadTime:
    """Processor time of one thread.

    Attributes:
        main: It is its process's first thread.
        name: As the kernel knows it.
        cpu_s: User and system time, in seconds.
    """

    main: bool
    name: str
    cpu_s: float


def thread_times(pid: int) -> dict[int, ThreadTime]:
    """Return the processor time of each thread of a process, by thread id."""
    found = {}
    for folder in Path(f"/proc/{pid}/task").iterdir():
        try:
            text = (folder / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        name, _, rest = text[text.index("(") + 1 :].rpartition(")")
        fields = rest.split()
        thread = int(folder.name)
        found[thread] = ThreadTime(thread == pid, name, (int(fields[11]) + int(fields[12])) / _TICKS_PER_S)
    return found


def spent(before: Mapping[int, ThreadTime], after: Mapping[int, ThreadTime]) -> list[ThreadTime]:
    """Return what each thread used between two readings, the busiest first."""
    used = [ThreadTime(thread.main, thread.name, thread.cpu_s - (before[tid].cpu_s if tid in before else 0.0)) for tid, thread in after.items()]
    return sorted(used, key=lambda thread: -thread.cpu_s)


def wait_until(ready: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Call `ready()` until it is true.

    Raises:
        BenchmarkError: It does not become true in time.
    """
    deadline_s = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline_s:
            raise BenchmarkError(f"{what} is not ready after {timeout_s:.0f} s")
        time.sleep(0.05)
