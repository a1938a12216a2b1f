"""A grpc.aio server of one of two kinds, on 127.0.0.1.

python -m benchmarks.peers.stepper_server plain PORT MODEL_FOLDER    one model call for each message, on the event loop, as most people write it
python -m benchmarks.peers.stepper_server echo PORT MODEL_FOLDER     no model at all, but answers of the same size: the floor of a message
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import torch

from benchmarks.peers.steppers import CellStepper
from benchmarks.peers.wire import SERVICE, GenerateRequest, StepReply, StepRequest


class Plain:
    """One LSTM step for each message; state by stream, or by the session's name where the call is unary."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self._step = CellStepper(folder)
        self._sessions: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def _fresh(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._step.zeros(1), self._step.zeros(1)

    async def step(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        """Unary: one step of a named session."""
        logits, h, c = self._step(torch.tensor([request.token]), *self._sessions.get(request.session) or self._fresh())
        self._sessions[request.session] = h, c
        return StepReply(logits=logits.numpy().tobytes())

    async def stream(self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        """Bidirectional: a stream is a sequence."""
        h, c = self._fresh()
        async for request in requests:
            logits, h, c = self._step(torch.tensor([request.token]), h, c)
            yield StepReply(logits=logits.numpy().tobytes())

    async def generate(self, request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        """Greedy generation, one token for each message."""
        h, c = self._fresh()
        token = torch.tensor([request.token])
        for _ in range(request.steps):
            logits, h, c = self._step(token, h, c)
            token = logits.argmax(1)
            yield StepReply(token=int(token))
            await asyncio.sleep(0)


class Echo:
    """Answers of the right size, without any work."""

    def __init__(self, folder: Path) -> None:
        self._logits = os.urandom(4 * CellStepper(folder).vocabulary)

    async def step(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        """Unary: logits."""
        return StepReply(logits=self._logits)

    async def stream(self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        """Bidirectional: logits for each message."""
        async for _ in requests:
            yield StepReply(logits=self._logits)

    async def generate(self, request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        """Server streaming: token after token."""
        for token in range(request.steps):
            yield StepReply(token=token)


def _handlers(servicer: Plain | Echo) -> grpc.GenericRpcHandler:
    encode = StepReply.SerializeToString
    methods = {
        "Step": grpc.unary_unary_rpc_method_handler(servicer.step, StepRequest.FromString, encode),
        "Stream": grpc.stream_stream_rpc_method_handler(servicer.stream, StepRequest.FromString, encode),
        "Generate": grpc.unary_stream_rpc_method_handler(servicer.generate, GenerateRequest.FromString, encode),
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


async def _serve(kind: str, port: int, folder: Path) -> None:
    servicer = {"plain": Plain, "echo": Echo}[kind](folder)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_handlers(servicer),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(json.dumps({"ready": port}), flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
