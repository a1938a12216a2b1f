"""The time in which a load is measured: it opens after warming up, and tells what processor time went where meanwhile."""

import asyncio
import time
from typing import Any

from benchmarks.processes import ThreadTime, spent, thread_times

HELPER = "PTThreadPool"
"""Name of torch's threads that compute parts of batches."""


class Window:
    """Open for a while. Callers record only what happens while `open` is true.

    Args:
        server: Process id of the server, whose threads' time is read.
    """

    def __init__(self, server: int) -> None:
        self.open = False
        self.seconds = 0.0
        self._server = server
        self._used: list[ThreadTime] = []
        self._own_s = 0.0

    async def run(self, warm_s: float, measure_s: float) -> None:
        """Wait for `warm_s`, then stay open for `measure_s`."""
        await asyncio.sleep(warm_s)
        threads, own_s, began_s = thread_times(self._server), time.process_time(), time.perf_counter()
        self.open = True
        await asyncio.sleep(measure_s)
        self.open = False
        self.seconds = time.perf_counter() - began_s
        self._own_s = time.process_time() - own_s
        self._used = spent(threads, thread_times(self._server))

    def cpu(self) -> dict[str, float]:
        """Return processor seconds: the caller's, the server's event loop, its engine, and its other threads.

        The loop is the server's first thread. The engine is the thread that is named so, else the busiest of the others, with torch's threads that compute
        parts of its batches.
        """
        helpers = [thread for thread in self._used if thread.name == HELPER]
        others = [thread for thread in self._used if not thread.main and thread not in helpers]
        engine = next((thread for thread in others if thread.name.startswith("engine")), others[0] if others else None)
        return {
            "cpu_client_s": self._own_s,
            "cpu_loop_s": sum(thread.cpu_s for thread in self._used if thread.main),
            "cpu_engine_s": (engine.cpu_s if engine else 0.0) + sum(thread.cpu_s for thread in helpers),
            "cpu_other_s": sum(thread.cpu_s for thread in others if thread is not engine),
        }


async def cancelled(tasks: "list[asyncio.Task[Any]]") -> None:
    """End tasks; an error that one of them met before comes out.

    Raises:
        Exception: What a task failed with.
    """
    failures = [task.exception() for task in tasks if task.done() and not task.cancelled()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for failure in failures:
        if failure is not None:
            raise failure
