"""Callers that make sessions and leave them idle: each is created, and takes one step so that its state is resident."""

import asyncio
from typing import Any

import grpc.aio

from benchmarks.load.job import Job
from benchmarks.load.wires import LOGITS
from cellstate.v1 import inference_pb2, inference_pb2_grpc, session_pb2, session_pb2_grpc, types_pb2

# Calls at once on a connection. gRPC itself cancels calls once about a thousand wait to be looked at by the server.
TOGETHER = 50


async def make_residents(job: Job) -> dict[str, Any]:
    """Create `size` sessions whose names begin with `options.prefix`; return the state's bytes of one."""
    channels = job.channels()
    numbers = [range(start, min(start + TOGETHER, job.size)) for start in range(0, job.size, TOGETHER)]
    waiting = asyncio.Queue[range]()
    for part in numbers:
        waiting.put_nowait(part)
    state_bytes = await asyncio.gather(*(_work(job, channel, waiting) for channel in channels))
    return {"state_bytes": max(state_bytes)}


async def _work(job: Job, channel: grpc.aio.Channel, waiting: "asyncio.Queue[range]") -> int:
    sessions, inference = session_pb2_grpc.SessionServiceStub(channel), inference_pb2_grpc.InferenceServiceStub(channel)
    state_bytes = 0
    while not waiting.empty():
        names = [f"{job.options['prefix']}-{number}" for number in waiting.get_nowait()]
        requests = [session_pb2.CreateSessionRequest(session=session_pb2.Session(name=name, model=job.model)) for name in names]
        made = await asyncio.gather(*(sessions.CreateSession(request) for request in requests))
        state_bytes = made[0].session.state_bytes
        answers = await inference.Run(inference_pb2.RunRequest(programs=[_one_step(name) for name in names]))
        failures = [result.failure.message for result in answers.results if result.HasField("failure")]
        if failures:
            raise RuntimeError(f"{len(failures)} steps failed: {failures[0]}")
    return state_bytes


def _one_step(name: str) -> inference_pb2.Program:
    target = inference_pb2.Target(session=inference_pb2.SessionReference(name=name))
    return inference_pb2.Program(target=target, input=types_pb2.Sequence(tokens=types_pb2.TokenIds(ids=[1])), output=LOGITS)
