"""Short ways to make the contract's messages, and the error that a call ended with."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from cellstate.v1 import inference_pb2_grpc, model_pb2_grpc, session_pb2_grpc
from cellstate.v1.inference_pb2 import (
    GenerateDirective,
    InputChunk,
    ManyToManyOpen,
    ManyToManyRequest,
    ManyToManyResponse,
    ManyToOneOpen,
    ManyToOneRequest,
    SessionReference,
    StopDirective,
    Target,
)
from cellstate.v1.types_pb2 import DATA_TYPE_FLOAT32, Generation, Output, OutputOptions, Sampling, Sequence, Tensor, TokenIds


class Stubs:
    """The three services of a channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.inference: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        self.sessions: Any = session_pb2_grpc.SessionServiceStub(channel)
        self.models: Any = model_pb2_grpc.ModelServiceStub(channel)


def values(array: Any) -> Sequence:
    """A numeric sequence; one dimension is time."""
    array = np.asarray(array, dtype="<f4")
    return Sequence(tensor=Tensor(dtype=DATA_TYPE_FLOAT32, shape=array.shape, data=array.tobytes()))


def tokens(ids: Any) -> Sequence:
    return Sequence(tokens=TokenIds(ids=[int(token) for token in ids]))


def text(characters: str) -> Sequence:
    return Sequence(text=characters)


def on_model(name: str) -> Target:
    return Target(model=name)


def on_session(name: str, **reference: Any) -> Target:
    return Target(session=SessionReference(name=name, **reference))


def generation(max_steps: int | None = None, *, stop: tuple[str, ...] = (), **sampling: Any) -> Generation:
    message = Generation(stop_sequences=stop)
    if max_steps is not None:
        message.max_steps = max_steps
    if sampling:
        message.sampling.CopyFrom(Sampling(**sampling))
    return message


def options(form: int, *, log_probabilities: bool = False) -> OutputOptions:
    return OutputOptions(form=form, log_probabilities=log_probabilities)  # type: ignore[arg-type]


def array(output: Output) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The numbers of an output [T, features]."""
    tensor = output.values.tensor
    return np.frombuffer(tensor.data, dtype="<f4").reshape(tuple(tensor.shape))


def many_to_one(target: Target, *chunks: Sequence, output: OutputOptions | None = None, sampling: Sampling | None = None) -> list[ManyToOneRequest]:
    opening = ManyToOneRequest(open=ManyToOneOpen(target=target, output=output, sampling=sampling))
    return [opening, *(ManyToOneRequest(input=InputChunk(values=chunk)) for chunk in chunks)]


def open_many(target: Target, **parts: Any) -> ManyToManyRequest:
    return ManyToManyRequest(open=ManyToManyOpen(target=target, **parts))


def chunk(sequence: Sequence, **parts: Any) -> ManyToManyRequest:
    return ManyToManyRequest(input=InputChunk(values=sequence, **parts))


def generate(message: Generation, **parts: Any) -> ManyToManyRequest:
    return ManyToManyRequest(generate=GenerateDirective(generation=message, **parts))


STOP = ManyToManyRequest(stop=StopDirective())


async def responses(call: Any) -> list[ManyToManyResponse]:
    return [response async for response in call]


@dataclass
class Refusal:
    """What a failed call told."""

    code: grpc.StatusCode
    reason: str
    message: str
    fields: list[str]
    metadata: dict[str, str]
    retry_s: float | None


async def refusal(call: Any) -> Refusal:
    """Await a call that must fail and return what it told."""
    try:
        if (hasattr(call, "__aiter__") and not isinstance(call, Awaitable)) or isinstance(call, grpc.aio.StreamStreamCall | grpc.aio.UnaryStreamCall):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return read_refusal(error)
    raise AssertionError("the call did not fail")


def read_refusal(error: grpc.aio.AioRpcError) -> Refusal:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None, f"no rich status: {error}"
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    fields: list[str] = []
    retry_s: float | None = None
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(bad.DESCRIPTOR):
            detail.Unpack(bad)
            fields = [violation.field for violation in bad.field_violations]
        elif detail.Is(retry.DESCRIPTOR):
            detail.Unpack(retry)
            retry_s = retry.retry_delay.ToNanoseconds() / 1e9
    assert info.domain == "cellstate"
    return Refusal(error.code(), info.reason, status.message, fields, dict(info.metadata), retry_s)
