"""What the callers say and hear: requests as bytes made once, answers parsed and checked.

Each answer is checked to continue where the one before it ended, so that a lost, doubled or empty answer ends the measurement.
"""

import asyncio
from typing import Any, Protocol

import grpc.aio

from benchmarks.peers import wire as step_wire
from cellstate.v1 import inference_pb2, session_pb2, types_pb2

LOGITS = types_pb2.OutputOptions(form=types_pb2.OUTPUT_FORM_LOGITS)
TOKENS = types_pb2.OutputOptions(form=types_pb2.OUTPUT_FORM_TOKENS)
GREEDY = types_pb2.Sampling(temperature=0.0)
IN_FLIGHT = 64


class WrongAnswerError(Exception):
    """A server answered something else than the next step."""


class Wire(Protocol):
    """A contract for generating and stepping. Positions are counted from what the first answer says."""

    generate_path: str
    stream_path: str
    unary_path: str

    def generation(self, token: int, steps: int) -> bytes:
        """Return a request for greedy generation of `steps` tokens after one."""
        ...

    def generated(self, answer: bytes, position: int) -> tuple[int, int]:
        """Return the tokens of an answer and the position after it; `position` is the one before it, 0 at the first."""
        ...

    def opening(self) -> bytes | None:
        """Return what opens a stepping stream and is answered once; None where nothing does."""
        ...

    def step(self, token: int) -> bytes:
        """Return one step on a stream."""
        ...

    def stepped(self, answer: bytes, position: int) -> None:
        """Check that an answer on a stream is the one output of step `position`."""
        ...

    def unary_step(self, session: str, token: int) -> bytes:
        """Return one step on a session."""
        ...

    def unary_stepped(self, answer: bytes, position: int) -> None:
        """Check that an answer is the one output of step `position`."""
        ...

    async def create(self, channel: grpc.aio.Channel, sessions: list[str]) -> None:
        """Make the sessions that unary steps name."""
        ...

    async def delete(self, channel: grpc.aio.Channel, sessions: list[str]) -> None:
        """Drop them."""
        ...


class CellstateWire:
    """Ours, on the raw stubs' messages.

    Args:
        model: The model's name.
        logits: How many each output has.
    """

    generate_path = "/cellstate.v1.InferenceService/OneToMany"
    stream_path = "/cellstate.v1.InferenceService/ManyToMany"
    unary_path = "/cellstate.v1.InferenceService/OneToOne"

    def __init__(self, model: str, logits: int) -> None:
        self._target = inference_pb2.Target(model=model)
        self._model = model
        self._bytes = 4 * logits

    def generation(self, token: int, steps: int) -> bytes:
        """Return a OneToMany request without a session."""
        generation = types_pb2.Generation(max_steps=steps, sampling=GREEDY)
        request = inference_pb2.OneToManyRequest(target=self._target, input=_tokens(token), output=TOKENS, generation=generation)
        return bytes(request.SerializeToString())

    def generated(self, answer: bytes, position: int) -> tuple[int, int]:
        """Count the tokens of an answer."""
        output = inference_pb2.OneToManyResponse.FromString(answer).output
        count, first = len(output.values.tokens.ids), output.first_position
        if (position and first != position) or output.position - first != count:
            raise WrongAnswerError(f"steps {first} to {output.position} with {count} tokens came after position {position}")
        return count, first + count

    def opening(self) -> bytes | None:
        """Return the opening of a stream without a session, answered by logits."""
        opening = inference_pb2.ManyToManyOpen(target=self._target, output=LOGITS)
        return bytes(inference_pb2.ManyToManyRequest(open=opening).SerializeToString())

    def step(self, token: int) -> bytes:
        """Return a chunk of one step."""
        return bytes(inference_pb2.ManyToManyRequest(input=inference_pb2.InputChunk(values=_tokens(token))).SerializeToString())

    def stepped(self, answer: bytes, position: int) -> None:
        """Check an answer on a stream."""
        self._check(inference_pb2.ManyToManyResponse.FromString(answer).output, position)

    def unary_step(self, session: str, token: int) -> bytes:
        """Return a OneToOne request on a session."""
        target = inference_pb2.Target(session=inference_pb2.SessionReference(name=session))
        return bytes(inference_pb2.OneToOneRequest(target=target, input=_tokens(token), output=LOGITS).SerializeToString())

    def unary_stepped(self, answer: bytes, position: int) -> None:
        """Check an answer to a unary call."""
        self._check(inference_pb2.OneToOneResponse.FromString(answer).output, position)

    async def create(self, channel: grpc.aio.Channel, sessions: list[str]) -> None:
        """Make sessions on the model."""
        path = "/cellstate.v1.SessionService/CreateSession"
        await _unary(channel, path, [session_pb2.CreateSessionRequest(session=session_pb2.Session(name=name, model=self._model)) for name in sessions])

    async def delete(self, channel: grpc.aio.Channel, sessions: list[str]) -> None:
        """Delete sessions."""
        await _unary(channel, "/cellstate.v1.SessionService/DeleteSession", [session_pb2.DeleteSessionRequest(name=name) for name in sessions])

    def _check(self, output: types_pb2.Output, position: int) -> None:
        if output.first_position != position or output.position != position + 1 or len(output.values.tensor.data) != self._bytes:
            raise WrongAnswerError(f"the output of step {output.first_position} with {len(output.values.tensor.data)} bytes came for step {position}")


class StepWire:
    """The two plain servers' contract.

    Args:
        logits: How many each output has.
    """

    generate_path = f"/{step_wire.SERVICE}/Generate"
    stream_path = f"/{step_wire.SERVICE}/Stream"
    unary_path = f"/{step_wire.SERVICE}/Step"

    def __init__(self, logits: int) -> None:
        self._bytes = 4 * logits

    def generation(self, token: int, steps: int) -> bytes:
        """Return a request for generation."""
        return bytes(step_wire.GenerateRequest(token=token, steps=steps).SerializeToString())

    def generated(self, answer: bytes, position: int) -> tuple[int, int]:
        """Count one token."""
        step_wire.StepReply.FromString(answer)
        return 1, position + 1

    def opening(self) -> bytes | None:
        """Return nothing: a stream begins with its first step."""
        return None

    def step(self, token: int) -> bytes:
        """Return one step."""
        return bytes(step_wire.StepRequest(token=token).SerializeToString())

    def stepped(self, answer: bytes, position: int) -> None:
        """Check the size of an answer."""
        if len(step_wire.StepReply.FromString(answer).logits) != self._bytes:
            raise WrongAnswerError(f"the output of step {position} has {len(answer)} bytes")

    def unary_step(self, session: str, token: int) -> bytes:
        """Return one step on a session."""
        return bytes(step_wire.StepRequest(token=token, session=session).SerializeToString())

    def unary_stepped(self, answer: bytes, position: int) -> None:
        """Check the size of an answer."""
        self.stepped(answer, position)

    async def create(self, channel: grpc.aio.Channel, sessions: list[str]) -> None:
        """Do nothing: a session begins with its first step."""

    async def delete(self, channel: grpc.aio.Channel, sessions: list[str]) -> None:
        """Do nothing: these servers keep sessions forever."""


def make_wire(kind: str, model: str, logits: int) -> Wire:
    """Return the contract of a kind of server: `cellstate` or `step`."""
    return CellstateWire(model, logits) if kind == "cellstate" else StepWire(logits)


def _tokens(token: int) -> types_pb2.Sequence:
    return types_pb2.Sequence(tokens=types_pb2.TokenIds(ids=[token]))


async def _unary(channel: grpc.aio.Channel, path: str, requests: list[Any]) -> None:
    call, places = channel.unary_unary(path), asyncio.Semaphore(IN_FLIGHT)

    async def one(request: Any) -> None:
        async with places:
            await call(request.SerializeToString())

    await asyncio.gather(*(one(request) for request in requests))
