"""Callers on sessions of one durability, as our own client calls them: with positions, so that they could go on elsewhere, and acknowledging what they have.

Checkpoints are counted by the server, in the window in which the callers record.
"""

import asyncio
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc.aio

from benchmarks.figures import percentile
from benchmarks.load.generate import Heard
from benchmarks.load.job import Job
from benchmarks.load.window import Window, cancelled
from benchmarks.load.wires import GREEDY, IN_FLIGHT, LOGITS, TOKENS, WrongAnswerError
from cellstate._stream_core import ACKNOWLEDGED_BYTES, ACKNOWLEDGED_STEPS
from cellstate.v1 import inference_pb2, inference_pb2_grpc, session_pb2, session_pb2_grpc, types_pb2

COUNTERS = {"checkpoints_per_s": "cellstate_checkpoints_total", "bytes_per_s": "cellstate_checkpoint_bytes_total"}
TRY_AGAIN_S = 0.02
_AGAIN = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
_Request = inference_pb2.ManyToManyRequest


def acknowledged_steps(step_bytes: int) -> int:
    """Return after how many steps a caller acknowledges whose outputs take so many bytes each: our client's rule."""
    return min(ACKNOWLEDGED_STEPS, -(-ACKNOWLEDGED_BYTES // step_bytes))


def counted(exposition: str, counter: str) -> float:
    """Return what the text of the metrics says of a counter; 0 where it says nothing."""
    lines = (line.split() for line in exposition.splitlines())
    return sum(float(words[-1]) for words in lines if words and words[0] == counter)


class Count(NamedTuple):
    """What the server had counted at a time."""

    at_s: float
    of: dict[str, float]

    @classmethod
    def read(cls, url: str) -> "Count":
        """Ask the server."""
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 (our own server's)
            text = answer.read().decode()
        return cls(time.perf_counter(), {name: counted(text, counter) for name, counter in COUNTERS.items()})

    def rates(self, later: "Count") -> dict[str, float]:
        """Return what was counted per second until a later count."""
        return {name: (later.of[name] - value) / (later.at_s - self.at_s) for name, value in self.of.items()}


class Lasting:
    """Streams on sessions, a session for each.

    Args:
        job: With options `durability` (of the sessions), `metrics` (address of the server's) and `steps` (of one directive).
        window: Where open, what comes is recorded.
    """

    def __init__(self, job: Job, window: Window) -> None:
        self._job = job
        self._window = window
        self._names = [f"{job.options['durability']}-{time.time_ns()}-{number}" for number in range(job.size)]
        self.latencies_s: list[float] = []
        self.heard = Heard()

    async def create(self, channel: grpc.aio.Channel) -> None:
        """Make the sessions."""
        call = session_pb2_grpc.SessionServiceStub(channel).CreateSession
        durability = session_pb2.Durability.Value(f"DURABILITY_{self._job.options['durability'].upper()}")

        async def create(name: str) -> None:
            await call(session_pb2.CreateSessionRequest(session=session_pb2.Session(name=name, model=self._job.model, durability=durability)))

        await _all([create(name) for name in self._names])

    async def delete(self, channel: grpc.aio.Channel) -> None:
        """Drop them."""
        call = session_pb2_grpc.SessionServiceStub(channel).DeleteSession

        async def delete(name: str) -> None:
            await call(session_pb2.DeleteSessionRequest(name=name))

        await _all([delete(name) for name in self._names])

    async def step(self, channel: grpc.aio.Channel, number: int) -> None:
        """Step in a closed loop."""
        size, clock, record = 4 * self._job.logits, time.perf_counter, self.latencies_s.append
        most, position, acknowledged = acknowledged_steps(size), 0, 0
        request = _Request(input=inference_pb2.InputChunk(values=_token(number % 32))).SerializeToString()
        call = await self._opened(channel, number, LOGITS)
        while True:
            began_s = clock()
            await call.write(request)
            output = (await _read(call)).output
            if (output.first_position, output.position, len(output.values.tensor.data)) != (position, position + 1, size):
                raise WrongAnswerError(f"steps {output.first_position} to {output.position} came for step {position}")
            if self._window.open:
                record(clock() - began_s)
            position += 1
            if position - acknowledged >= most:
                acknowledged = position
                await call.write(_acknowledgement(position))

    async def generate(self, channel: grpc.aio.Channel, number: int) -> None:
        """Generate, directive after directive; the first are shorter, each by its own part, so that they do not begin and end together ever after."""
        steps, position, acknowledged = int(self._job.options["steps"]), 1, 1
        call = await self._opened(channel, number, TOKENS)
        await call.write(_Request(input=inference_pb2.InputChunk(values=_token(number % 32), emit=types_pb2.EMIT_NONE)).SerializeToString())
        await _read(call)
        asked = max(1, steps * (number + 1) // self._job.size)
        while True:
            generation = types_pb2.Generation(max_steps=asked, sampling=GREEDY)
            await call.write(_Request(generate=inference_pb2.GenerateDirective(generation=generation)).SerializeToString())
            end, asked = position + asked, steps
            for_first, last_s = True, time.perf_counter()
            while True:
                answer = await _read(call)
                now_s, output = time.perf_counter(), answer.output
                count = len(output.values.tokens.ids)
                if count:
                    if (output.first_position, output.position) != (position, position + count):
                        raise WrongAnswerError(f"steps {output.first_position} to {output.position} came after position {position}")
                    self._heard(count, now_s - last_s, first=for_first)
                    for_first, last_s, position = False, now_s, position + count
                if position - acknowledged >= ACKNOWLEDGED_STEPS:
                    acknowledged = position
                    await call.write(_acknowledgement(position))
                if answer.HasField("completion"):
                    break
            if position != end:
                raise WrongAnswerError(f"generation ended at {position} instead of {end}")

    def _heard(self, count: int, waited_s: float, *, first: bool) -> None:
        if self._window.open:
            (self.heard.first_s if first else self.heard.gaps_s).append(waited_s)
            self.heard.tokens += count

    async def _opened(self, channel: grpc.aio.Channel, number: int, output: types_pb2.OutputOptions) -> Any:
        call = channel.stream_stream("/cellstate.v1.InferenceService/ManyToMany")()
        reference = inference_pb2.SessionReference(name=self._names[number], position=0, acknowledged_position=0)
        opening = inference_pb2.ManyToManyOpen(target=inference_pb2.Target(session=reference), output=output)
        await call.write(_Request(open=opening).SerializeToString())
        await _read(call)
        return call


async def step_lasting(job: Job) -> dict[str, Any]:
    """Step on `size` sessions."""

    def figures(lasting: Lasting, seconds: float) -> dict[str, float]:
        found_s = lasting.latencies_s
        shares = {"p50_ms": 1e3 * percentile(found_s, 0.5), "p99_ms": 1e3 * percentile(found_s, 0.99)}
        return {"rate": len(found_s) / seconds, "tokens": len(found_s)} | shares

    return await _measure(job, lambda lasting: lasting.step, figures)


async def generate_lasting(job: Job) -> dict[str, Any]:
    """Generate on `size` sessions."""

    def figures(lasting: Lasting, seconds: float) -> dict[str, float]:
        return lasting.heard.figures(seconds) | {"tokens": lasting.heard.tokens}

    return await _measure(job, lambda lasting: lasting.generate, figures)


async def _measure(
    job: Job, way: Callable[[Lasting], Callable[[grpc.aio.Channel, int], Coroutine[Any, Any, None]]], figures: Callable[[Lasting, float], dict[str, float]]
) -> dict[str, Any]:
    window, channels = Window(job.server), job.channels()
    lasting = Lasting(job, window)
    await lasting.create(channels[0])
    tasks = [asyncio.ensure_future(way(lasting)(channels[number % len(channels)], number)) for number in range(job.size)]
    _, rates = await asyncio.gather(window.run(job.warm_s, job.measure_s), _counted(job))
    await cancelled(tasks)
    await lasting.delete(channels[0])
    return figures(lasting, window.seconds) | rates | window.cpu() | {"seconds": window.seconds}


async def _counted(job: Job) -> dict[str, float]:
    """Return what the server counted per second in the time in which the window is open."""
    url = job.options["metrics"]
    await asyncio.sleep(job.warm_s)
    before = await asyncio.to_thread(Count.read, url)
    await asyncio.sleep(job.measure_s)
    return before.rates(await asyncio.to_thread(Count.read, url))


async def answer_lasting(job: Job) -> dict[str, Any]:
    """Take one step on each of `size` sessions that there are, and another one; those that are refused because of the load are asked again.

    Options: `prefix` of their names, `position` that they stand at.
    """
    inference = inference_pb2_grpc.InferenceServiceStub(job.channels()[0])
    figures: dict[str, Any] = {}
    for turn, name in enumerate(("first", "second")):
        with _timed() as took:
            latencies_s = await _all([_answered(inference, f"{job.options['prefix']}-{number}", job.options["position"] + turn) for number in range(job.size)])
        figures |= {f"{name}_all_s": took(), f"{name}_p50_ms": 1e3 * percentile(latencies_s, 0.5), f"{name}_p99_ms": 1e3 * percentile(latencies_s, 0.99)}
    return figures


async def _answered(inference: Any, name: str, position: int) -> float:
    """Take a step at a position; return how long its answer took."""
    target = inference_pb2.Target(session=inference_pb2.SessionReference(name=name, position=position))
    request = inference_pb2.OneToOneRequest(target=target, input=_token(1), output=LOGITS)
    began_s = time.perf_counter()
    while True:
        try:
            output = (await inference.OneToOne(request)).output
        except grpc.aio.AioRpcError as error:
            if error.code() not in _AGAIN:
                raise
            await asyncio.sleep(TRY_AGAIN_S)
        else:
            if output.first_position != position:
                raise WrongAnswerError(f"step {output.first_position} was answered for step {position}")
            return time.perf_counter() - began_s


async def _read(call: Any) -> inference_pb2.ManyToManyResponse:
    data = await call.read()
    if data is grpc.aio.EOF:
        raise RuntimeError(f"a stream ended: {await call.details()}")
    return inference_pb2.ManyToManyResponse.FromString(data)


async def _all(calls: list[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Make calls, so many at once."""
    places = asyncio.Semaphore(IN_FLIGHT)

    async def one(call: Coroutine[Any, Any, Any]) -> Any:
        async with places:
            return await call

    return await asyncio.gather(*map(one, calls))


@contextmanager
def _timed() -> Iterator[Callable[[], float]]:
    began_s = time.perf_counter()
    yield lambda: time.perf_counter() - began_s


def _acknowledgement(position: int) -> bytes:
    return bytes(_Request(acknowledge=inference_pb2.Acknowledgement(position=position)).SerializeToString())


def _token(token: int) -> types_pb2.Sequence:
    return types_pb2.Sequence(tokens=types_pb2.TokenIds(ids=[token]))
