"""Callers that step: each sends step k+1 after it has the output of step k, over a stream or by unary calls."""

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine
from typing import Any

import grpc.aio

from benchmarks.figures import percentile
from benchmarks.load.job import Job
from benchmarks.load.window import Window, cancelled
from benchmarks.load.wires import Wire


class Stepping:
    """Sequences that step without end.

    Args:
        wire: The server's contract.
        window: Where open, the time of each step is recorded in `latencies_s`.
    """

    def __init__(self, wire: Wire, window: Window) -> None:
        self.latencies_s: list[float] = []
        self._wire = wire
        self._window = window

    async def stream(self, channel: grpc.aio.Channel, number: int) -> None:
        """Step on a stream."""
        wire, clock, record = self._wire, time.perf_counter, self.latencies_s.append
        call = channel.stream_stream(wire.stream_path)()
        opening = wire.opening()
        if opening is not None:
            await call.write(opening)
            await call.read()
        request = wire.step(number % 32)
        for position in itertools.count():
            began_s = clock()
            await call.write(request)
            answer = await call.read()
            if answer is grpc.aio.EOF:
                raise RuntimeError(f"a stream ended: {await call.details()}")
            wire.stepped(answer, position)
            if self._window.open:
                record(clock() - began_s)

    async def unary(self, channel: grpc.aio.Channel, session: str) -> None:
        """Step on a session, call after call."""
        wire, clock, record = self._wire, time.perf_counter, self.latencies_s.append
        call, request = channel.unary_unary(wire.unary_path), wire.unary_step(session, 1)
        for position in itertools.count():
            began_s = clock()
            wire.unary_stepped(await call(request), position)
            if self._window.open:
                record(clock() - began_s)


async def step_streams(job: Job) -> dict[str, Any]:
    """Step over `size` streams."""

    def start(stepping: Stepping, channels: list[grpc.aio.Channel]) -> list[Coroutine[Any, Any, None]]:
        return [stepping.stream(channels[number % len(channels)], number) for number in range(job.size)]

    return await _measure(job, job.channels(), start)


async def step_unary(job: Job) -> dict[str, Any]:
    """Step on `size` sessions by unary calls."""
    wire, channels = job.make_wire(), job.channels()
    sessions = [f"bench-{time.time_ns()}-{number}" for number in range(job.size)]
    await wire.create(channels[0], sessions)

    def start(stepping: Stepping, channels: list[grpc.aio.Channel]) -> list[Coroutine[Any, Any, None]]:
        return [stepping.unary(channels[number % len(channels)], session) for number, session in enumerate(sessions)]

    try:
        return await _measure(job, channels, start)
    finally:
        await wire.delete(channels[0], sessions)


async def _measure(
    job: Job, channels: list[grpc.aio.Channel], start: Callable[[Stepping, list[grpc.aio.Channel]], list[Coroutine[Any, Any, None]]]
) -> dict[str, Any]:
    window = Window(job.server)
    stepping = Stepping(job.make_wire(), window)
    tasks = [asyncio.ensure_future(coroutine) for coroutine in start(stepping, channels)]
    await window.run(job.warm_s, job.measure_s)
    await cancelled(tasks)
    latencies_s = stepping.latencies_s
    figures = {
        "rate": len(latencies_s) / window.seconds,
        "p50_ms": 1e3 * percentile(latencies_s, 0.5),
        "p99_ms": 1e3 * percentile(latencies_s, 0.99),
        "seconds": window.seconds,
        "tokens": len(latencies_s),
    }
    return figures | window.cpu()
