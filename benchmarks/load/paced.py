"""Callers in real time: each session sends a step every 32 ms whatever happens, and a step is late whose output comes more than 32 ms after it was due.

Times count from when a step was due, not from when it was sent, so that a caller that is held up does not hide it.
"""

import asyncio
import time
from collections import deque
from typing import Any

import grpc.aio

from benchmarks.figures import percentile
from benchmarks.load.job import Job
from benchmarks.load.window import Window, cancelled
from benchmarks.load.wires import LOGITS, Wire, WrongAnswerError
from cellstate.v1 import inference_pb2, types_pb2

PERIOD_S = 0.032
# The sessions of a gateway's stream are due in so many groups, spread over a period.
GROUPS = 8


class Clockwork:
    """When steps are due, and how long after that their outputs came."""

    def __init__(self, window: Window) -> None:
        self.delays_s: list[float] = []
        self._window = window
        self._began_s = time.perf_counter() + 0.1

    def due_s(self, phase: float, turn: int) -> float:
        """Return when a step is due; `phase` is 0 to 1."""
        return self._began_s + (phase + turn) * PERIOD_S

    async def until(self, due_s: float) -> None:
        """Wait until then, not at all where it has passed."""
        wait_s = due_s - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    def came(self, due_s: float) -> None:
        """Note that the output of a step came now."""
        if self._window.open:
            self.delays_s.append(time.perf_counter() - due_s)

    def figures(self, sessions: int, seconds: float) -> dict[str, float]:
        """Return the share of late steps, also counting those whose output never came in time to be seen."""
        expected = sessions * seconds / PERIOD_S
        late = sum(delay_s > PERIOD_S for delay_s in self.delays_s) + max(0.0, 0.98 * expected - len(self.delays_s))
        return {
            "late_share": late / max(1, len(self.delays_s)) if self.delays_s else 1.0,
            "rate": len(self.delays_s) / seconds,
            "p50_ms": 1e3 * percentile(self.delays_s, 0.5),
            "p99_ms": 1e3 * percentile(self.delays_s, 0.99),
        }


async def pace_streams(job: Job) -> dict[str, Any]:
    """Pace `size` sessions, a stream for each."""
    window, channels, wire = Window(job.server), job.channels(), job.make_wire()
    calls = [await _opened(channels[number % len(channels)], wire) for number in range(job.size)]
    clockwork = Clockwork(window)
    tasks = [asyncio.ensure_future(_pace(call, wire, clockwork, number / job.size)) for number, call in enumerate(calls)]
    await window.run(job.warm_s, job.measure_s)
    await cancelled(tasks)
    return clockwork.figures(job.size, window.seconds) | window.cpu()


async def _opened(channel: grpc.aio.Channel, wire: Wire) -> Any:
    call = channel.stream_stream(wire.stream_path)()
    opening = wire.opening()
    if opening is not None:
        await call.write(opening)
        await call.read()
    return call


async def _pace(call: Any, wire: Wire, clockwork: Clockwork, phase: float) -> None:
    request, turn = wire.step(1), 0
    while True:
        due_s = clockwork.due_s(phase, turn)
        await clockwork.until(due_s)
        await call.write(request)
        answer = await call.read()
        if answer is grpc.aio.EOF:
            raise WrongAnswerError(f"a stream ended: {await call.details()}")
        wire.stepped(answer, turn)
        clockwork.came(due_s)
        turn += 1


async def pace_gateway(job: Job) -> dict[str, Any]:
    """Pace `size` sessions, all on channels of one stream, whose messages carry the steps that are due together."""
    gateway = _Gateway(job)
    try:
        return await gateway.run()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # a write to a stream that was refused fails without the reason
        if await gateway.call.code() is grpc.StatusCode.UNIMPLEMENTED:
            return {"unimplemented": True}
        raise


class _Gateway:
    """One stream that carries many sessions."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._window = Window(job.server)
        self.call = job.channels()[0].stream_stream("/cellstate.v1.InferenceService/ManyToMany")()
        self._clockwork = Clockwork(self._window)
        self._groups = [group for group in (range(start + 1, job.size + 1, GROUPS) for start in range(GROUPS)) if len(group)]
        self._position = [0] * (job.size + 1)
        self._due_s: dict[int, deque[float]] = {channel: deque() for channel in range(1, job.size + 1)}
        self._packs = "more" in inference_pb2.ManyToManyRequest.DESCRIPTOR.fields_by_name

    async def run(self) -> dict[str, Any]:
        """Open all channels, then send and listen."""
        await self._open()
        self._clockwork = Clockwork(self._window)
        tasks = [asyncio.ensure_future(self._listen()), asyncio.ensure_future(self._send())]
        await self._window.run(self._job.warm_s, self._job.measure_s)
        await cancelled(tasks)
        self.call.cancel()
        return self._clockwork.figures(self._job.size, self._window.seconds) | self._window.cpu()

    def _messages(self, messages: "list[inference_pb2.ManyToManyRequest]") -> list[bytes]:
        """Return what is written: one message that carries the others, where the contract has that."""
        if not self._packs:
            return [message.SerializeToString() for message in messages]
        first, *rest = messages
        first.more.extend(rest)
        return [first.SerializeToString()]

    async def _open(self) -> None:
        target = inference_pb2.Target(model=self._job.model)
        opening = inference_pb2.ManyToManyOpen(target=target, output=LOGITS)
        waiting = set(range(1, self._job.size + 1))
        for channel in list(waiting):
            await self.call.write(inference_pb2.ManyToManyRequest(open=opening, channel=channel).SerializeToString())
        while waiting:
            waiting -= {answer.channel for answer in await self._read()}

    async def _read(self) -> "list[inference_pb2.ManyToManyResponse]":
        data = await self.call.read()
        if data is grpc.aio.EOF:
            raise grpc.aio.AioRpcError(await self.call.code(), await self.call.initial_metadata(), await self.call.trailing_metadata())
        answer = inference_pb2.ManyToManyResponse.FromString(data)
        answers = [answer, *getattr(answer, "more", ())]
        for each in answers:
            if each.HasField("failure"):
                raise WrongAnswerError(f"channel {each.channel} failed: {each.failure.message}")
        return answers

    async def _send(self) -> None:
        values = types_pb2.Sequence(tokens=types_pb2.TokenIds(ids=[1]))
        steps = [
            self._messages([inference_pb2.ManyToManyRequest(input=inference_pb2.InputChunk(values=values), channel=channel) for channel in group])
            for group in self._groups
        ]
        turn = 0
        while True:
            for number, (group, messages) in enumerate(zip(self._groups, steps, strict=True)):
                due_s = self._clockwork.due_s(number / len(self._groups), turn)
                await self._clockwork.until(due_s)
                for channel in group:
                    self._due_s[channel].append(due_s)
                for message in messages:
                    await self.call.write(message)
            turn += 1

    async def _listen(self) -> None:
        size = 4 * self._job.logits
        while True:
            for answer in await self._read():
                output, channel = answer.output, answer.channel
                steps = output.position - output.first_position
                if output.first_position != self._position[channel] or len(output.values.tensor.data) != steps * size or not steps:
                    raise WrongAnswerError(f"channel {channel} answered steps {output.first_position} to {output.position} after {self._position[channel]}")
                self._position[channel] = output.position
                for _ in range(steps):
                    self._clockwork.came(self._due_s[channel].popleft())
