"""More than the machine can do, for long: calls that arrive whatever happens, slow readers, callers that vanish, and garbage among them."""

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from benchmarks.figures import percentile
from benchmarks.load.job import Job
from benchmarks.load.wires import GREEDY, LOGITS, TOKENS
from benchmarks.processes import resident_bytes
from cellstate.v1 import inference_pb2, inference_pb2_grpc, types_pb2

TIME_LIMIT_S = 60.0
SLOW_READ_S = 0.5
EVERY_S = 5.0
# Of a hundred calls: those that generate, that step in a closed loop, that read slowly, that vanish, that send garbage.
KINDS = {"generates": 60, "steps": 25, "reads slowly": 5, "vanishes": 5, "sends garbage": 5}


@dataclass(slots=True)
class Tally:
    """What came of the calls."""

    steps: int = 0
    answered: int = 0
    refused: int = 0
    refused_without_retry: int = 0
    other: dict[str, int] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)
    resident: list[tuple[float, int]] = field(default_factory=list)


async def soak(job: Job) -> dict[str, Any]:
    """Make calls of `options.steps` steps at `options.calls_per_s` for `measure_s`, then see whether the server is as it was.

    `calls_per_s` 0 stands for as many as `size` callers make that wait for their answers: what the machine can do.
    """
    tally, rate = Tally(), float(job.options["calls_per_s"])
    chance, tasks = random.Random(7), set[asyncio.Task[None]]()  # noqa: S311 (a load, no secret)
    async with grpc.aio.insecure_channel(job.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        began_s = time.perf_counter()
        watching = asyncio.ensure_future(_watch(tally, job.server, began_s))
        if rate:
            await _arrive(stub, job, tally, chance, tasks, rate)
        else:
            await asyncio.gather(*(_repeat(stub, job, tally, began_s + job.measure_s) for _ in range(job.size)))
        seconds = time.perf_counter() - began_s
        await asyncio.gather(*tasks)
        watching.cancel()
        after_ms = await _afterwards(stub, job)
    latencies = sorted(tally.latencies_ms)
    figures = {"p50_ms": percentile(latencies, 0.5), "p99_ms": percentile(latencies, 0.99)} if latencies else {}
    return figures | {
        "seconds": seconds,
        "calls_per_s": tally.answered / seconds,
        "steps_per_s": tally.steps / seconds,
        "answered": tally.answered,
        "refused": tally.refused,
        "refused_without_retry": tally.refused_without_retry,
        "other": tally.other,
        "after_ms": after_ms,
        "resident": tally.resident,
    }


async def _arrive(stub: Any, job: Job, tally: Tally, chance: random.Random, tasks: "set[asyncio.Task[None]]", rate: float) -> None:
    """Start calls at a rate, none waiting for another."""
    began_s = time.perf_counter()
    made = 0
    while (now_s := time.perf_counter() - began_s) < job.measure_s:
        while made < now_s * rate:
            kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
            task = asyncio.ensure_future(_one(stub, job, tally, kind))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            made += 1
        await asyncio.sleep(0.005)


async def _repeat(stub: Any, job: Job, tally: Tally, until_s: float) -> None:
    while time.perf_counter() < until_s:
        await _one(stub, job, tally, "generates")


async def _one(stub: Any, job: Job, tally: Tally, kind: str) -> None:
    began_s = time.perf_counter()
    try:
        if kind == "steps":
            await _step(stub, job, tally)
        elif kind == "sends garbage":
            with contextlib.suppress(grpc.aio.AioRpcError):
                await stub.OneToOne(inference_pb2.OneToOneRequest(target=inference_pb2.Target(model=job.model)), timeout=TIME_LIMIT_S)
            return
        else:
            await _generate(stub, job, tally, kind)
    except grpc.aio.AioRpcError as error:
        _count(tally, error)
        return
    tally.answered += 1
    if kind != "reads slowly":
        tally.latencies_ms.append(1000 * (time.perf_counter() - began_s))


def _count(tally: Tally, error: grpc.aio.AioRpcError) -> None:
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        what = f"{error.code().name}: {error.details()}"
        tally.other[what] = tally.other.get(what, 0) + 1
        return
    tally.refused += 1
    status = rpc_status.from_call(error)
    retries = [detail for detail in status.details if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)] if status else []
    tally.refused_without_retry += not retries


async def _generate(stub: Any, job: Job, tally: Tally, kind: str) -> None:
    generation = types_pb2.Generation(max_steps=job.options["steps"], sampling=GREEDY)
    values = types_pb2.Sequence(tokens=types_pb2.TokenIds(ids=[1]))
    call = stub.OneToMany(
        inference_pb2.OneToManyRequest(target=inference_pb2.Target(model=job.model), input=values, output=TOKENS, generation=generation), timeout=TIME_LIMIT_S
    )
    async for answer in call:
        tally.steps += len(answer.output.values.tokens.ids)
        if kind == "vanishes":
            call.cancel()
            return
        if kind == "reads slowly":
            await asyncio.sleep(SLOW_READ_S)


async def _step(stub: Any, job: Job, tally: Tally) -> None:
    call = stub.ManyToMany(timeout=TIME_LIMIT_S)
    opening = inference_pb2.ManyToManyOpen(target=inference_pb2.Target(model=job.model), output=LOGITS)
    await call.write(inference_pb2.ManyToManyRequest(open=opening))
    await call.read()
    chunk = inference_pb2.ManyToManyRequest(input=inference_pb2.InputChunk(values=types_pb2.Sequence(tokens=types_pb2.TokenIds(ids=[1]))))
    for _ in range(job.options["steps"] // 10):
        await call.write(chunk)
        if await call.read() is grpc.aio.EOF:
            break
        tally.steps += 1
    await call.done_writing()
    while await call.read() is not grpc.aio.EOF:
        pass
    if await call.code() is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details())


async def _watch(tally: Tally, server: int, began_s: float) -> None:
    while True:
        tally.resident.append((time.perf_counter() - began_s, resident_bytes(server)))
        await asyncio.sleep(EVERY_S)


async def _afterwards(stub: Any, job: Job) -> float:
    """Return how long one step takes once all is over, in ms."""
    await asyncio.sleep(3.0)
    request = inference_pb2.OneToOneRequest(
        target=inference_pb2.Target(model=job.model), input=types_pb2.Sequence(tokens=types_pb2.TokenIds(ids=[1])), output=LOGITS
    )
    began_s = time.perf_counter()
    await stub.OneToOne(request, timeout=TIME_LIMIT_S)
    return 1000 * (time.perf_counter() - began_s)
