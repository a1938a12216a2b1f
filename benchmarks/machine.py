"""The description of the machine and of the software that was measured on it."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path

import torch


def describe() -> dict[str, str]:
    """Return what figures depend on, in the order in which it is shown."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "grpcio", "protobuf", "numpy")}
    instructions = torch.backends.cpu.get_cpu_capability()
    return {
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores to run on, torch uses {instructions}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **packages,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
