"""Where the benchmarks keep things, and ports that nobody uses."""

import socket
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORK = ROOT / ".cache" / "bench"
MODELS = WORK / "models"
LOGS = WORK / "logs"
PEERS = WORK / "peers"
NATIVE_CALLER = WORK / "native" / "caller"
REPORT = ROOT / "docs" / "benchmarks"
PYTHON = Path(sys.executable)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
