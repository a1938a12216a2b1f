"""Callers that generate: each stream asks for so many tokens, takes them as they come, and asks again."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from benchmarks.figures import percentile
from benchmarks.load.job import Job
from benchmarks.load.window import Window, cancelled
from benchmarks.load.wires import Wire


@dataclass(slots=True)
class Heard:
    """What came while a window was open.

    Attributes:
        tokens: Their number.
        first_s: Time from each call to its first message.
        gaps_s: Time between two messages of a call.
    """

    tokens: int = 0
    first_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)

    def figures(self, seconds: float) -> dict[str, float]:
        """Return the rate and the times in milliseconds."""
        messages = len(self.gaps_s) + len(self.first_s)
        return {
            "rate": self.tokens / seconds,
            "first_p50_ms": 1e3 * percentile(self.first_s, 0.5),
            "first_p99_ms": 1e3 * percentile(self.first_s, 0.99),
            "p50_ms": 1e3 * percentile(self.gaps_s, 0.5),
            "p99_ms": 1e3 * percentile(self.gaps_s, 0.99),
            "tokens_per_message": self.tokens / messages if messages else 0.0,
        }


class Generating:
    """Streams that generate without end.

    Args:
        wire: The server's contract.
        window: Where open, what comes is recorded in `heard`.
        steps: Tokens of one call.
    """

    def __init__(self, wire: Wire, window: Window, steps: int) -> None:
        self.heard = Heard()
        self.window = window
        self._wire = wire
        self._steps = steps

    def start(self, channels: list[grpc.aio.Channel], size: int) -> "list[asyncio.Task[None]]":
        """Start `size` streams, dealt to the channels in turn."""
        # The first call of each is shorter by its own part, so that calls do not begin and end together ever after.
        firsts = [max(1, self._steps * (number + 1) // size) for number in range(size)]
        return [asyncio.ensure_future(self._stream(channels[number % len(channels)], number, first)) for number, first in enumerate(firsts)]

    async def _stream(self, channel: grpc.aio.Channel, number: int, first: int) -> None:
        call = channel.unary_stream(self._wire.generate_path)
        await self._once(call(self._wire.generation(number % 32, first)), first)
        request = self._wire.generation(number % 32, self._steps)
        while True:
            await self._once(call(request), self._steps)

    async def _once(self, answers: Any, steps: int) -> None:
        clock, generated = time.perf_counter, self._wire.generated
        last_s, position, tokens = clock(), 0, 0
        async for answer in answers:
            now_s = clock()
            count, after = generated(answer, position)
            tokens += count
            if self.window.open:
                heard = self.heard
                (heard.gaps_s if position else heard.first_s).append(now_s - last_s)
                heard.tokens += count
            last_s, position = now_s, after
        if tokens != steps:
            raise RuntimeError(f"a call ended after {tokens} of {steps} tokens")


async def generate(job: Job) -> dict[str, Any]:
    """Generate on `size` streams; `options.steps` tokens for each call."""
    window = Window(job.server)
    generating = Generating(job.make_wire(), window, job.options["steps"])
    tasks = generating.start(job.channels(), job.size)
    await window.run(job.warm_s, job.measure_s)
    await cancelled(tasks)
    return generating.heard.figures(window.seconds) | window.cpu() | {"seconds": window.seconds, "tokens": generating.heard.tokens}
