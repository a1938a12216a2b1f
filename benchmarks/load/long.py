"""A long input beside streams that generate: their time between tokens without it and with it."""

import asyncio
import contextlib
import time
from typing import Any

import grpc.aio

from benchmarks.load.generate import Generating, Heard
from benchmarks.load.job import Job
from benchmarks.load.window import Window, cancelled
from cellstate.v1 import inference_pb2, inference_pb2_grpc, session_pb2, session_pb2_grpc, types_pb2

SESSION = "bench-long"
# All inputs go in one message; only the last output is asked for.
EMIT = types_pb2.EMIT_LAST


async def long_input(job: Job) -> dict[str, Any]:
    """Measure `size` streams for `measure_s`, then again while a session consumes `options.long_steps` inputs, for `options.load_s` at most."""
    window = Window(job.server)
    generating = Generating(job.make_wire(), window, job.options["steps"])
    tasks = generating.start(job.channels(), job.size)
    await window.run(job.warm_s, job.measure_s)
    found = {f"without_{name}": value for name, value in generating.heard.figures(window.seconds).items()}
    async with grpc.aio.insecure_channel(job.address) as channel:
        sessions = session_pb2_grpc.SessionServiceStub(channel)
        await sessions.CreateSession(session_pb2.CreateSessionRequest(session=session_pb2.Session(name=SESSION, model=job.model)))
        try:
            began_s = time.perf_counter()
            consuming = asyncio.ensure_future(_consume(channel, job.options["long_steps"]))
            generating.heard = Heard()
            shared_s = await _open_while(window, consuming, job.options["load_s"])
            found |= {f"with_{name}": value for name, value in generating.heard.figures(shared_s).items()}
            found["shared_s"] = shared_s
            found["shared_steps"] = (await sessions.GetSession(session_pb2.GetSessionRequest(name=SESSION))).session.position
            await cancelled(tasks)
            await consuming
            found["input_s"] = time.perf_counter() - began_s
        finally:
            await sessions.DeleteSession(session_pb2.DeleteSessionRequest(name=SESSION))
    found["p99_ratio"] = found["with_p99_ms"] / found["without_p99_ms"]
    return found


async def _open_while(window: Window, consuming: "asyncio.Task[None]", limit_s: float) -> float:
    """Hold the window open until the input is consumed, for `limit_s` at most; return for how long it was."""
    window.open, began_s = True, time.perf_counter()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(consuming), limit_s)
    window.open = False
    return time.perf_counter() - began_s


async def _consume(channel: grpc.aio.Channel, steps: int) -> None:
    target = inference_pb2.Target(session=inference_pb2.SessionReference(name=SESSION))
    options = types_pb2.OutputOptions(form=types_pb2.OUTPUT_FORM_LOGITS)
    values = types_pb2.Sequence(tokens=types_pb2.TokenIds(ids=[number % 32 for number in range(steps)]))
    opening = inference_pb2.ManyToManyRequest(open=inference_pb2.ManyToManyOpen(target=target, output=options, emit=EMIT))
    chunk = inference_pb2.ManyToManyRequest(input=inference_pb2.InputChunk(values=values))
    position = 0
    async for answer in inference_pb2_grpc.InferenceServiceStub(channel).ManyToMany(iter((opening, chunk))):
        position = max(position, answer.output.position)
    if position != steps:
        raise RuntimeError(f"the long input ended at step {position} of {steps}")
