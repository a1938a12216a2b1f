"""A small server over a real socket that speaks the contract and keeps what it was sent.

It stands in for the real one where a test is about the client alone.
"""
# ruff: noqa: N802 - the methods are named as the contract names them

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from cellstate.v1 import (
    error_pb2,
    inference_pb2,
    inference_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    types_pb2,
)

FAILS = "fails"  # a model of this name answers SESSION_BUSY at position 41


def refuse(context: Any, code: grpc.StatusCode, reason: str, *, position: int | None = None, retry_after_s: int | None = None) -> None:
    """End a call with rich details."""
    info = error_details_pb2.ErrorInfo(domain="cellstate", reason=reason, metadata={} if position is None else {"position": str(position)})
    status = status_pb2.Status(code=code.value[0], message=f"told: {reason}")
    status.details.add().Pack(info)
    status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[{"field": "target.session"}]))
    if retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.seconds = retry_after_s
        status.details.add().Pack(retry)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, status.message)


class FakeServer(inference_pb2_grpc.InferenceServiceServicer, session_pb2_grpc.SessionServiceServicer, model_pb2_grpc.ModelServiceServicer):
    """Echoes: the output of a step is its input. A session's position grows by one per step; text counts a step per character."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.metadata: list[tuple[str, str]] = []
        self.position = 0
        self.uid = 1
        self.unavailable = 0
        self.cancelled = threading.Event()
        self.address = ""

    def steps(self, values: types_pb2.Sequence) -> int:
        kind = values.WhichOneof("value")
        if kind is None:
            return 0
        return len(values.text) if kind == "text" else len(values.tokens.ids) if kind == "tokens" else values.tensor.shape[0]

    def output(self, values: types_pb2.Sequence) -> types_pb2.Output:
        first, self.position = self.position, self.position + self.steps(values)
        return types_pb2.Output(values=values, first_position=first, position=self.position, labels=["a"])

    def completion(self, reason: Any = types_pb2.FINISH_REASON_INPUT_CONSUMED, seed: int | None = None) -> types_pb2.Completion:
        return types_pb2.Completion(reason=reason, position=self.position, consumed_steps=self.position, seed=seed, queue_wait_s=0.5, run_s=0.25)

    def seen(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata = [(key, value) for key, value in context.invocation_metadata()]
        opening = getattr(request, "open", request)
        if getattr(opening, "target", inference_pb2.Target()).model == FAILS:
            refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "SESSION_BUSY", position=41)

    def OneToOne(self, request: Any, context: Any) -> Any:
        self.seen(request, context)
        return inference_pb2.OneToOneResponse(output=self.output(request.input), completion=self.completion())

    def ManyToOne(self, requests: Any, context: Any) -> Any:
        last = types_pb2.Sequence()
        for request in requests:
            self.seen(request, context)
            if request.WhichOneof("message") == "input":
                last = request.input.values
                output = self.output(last)
        if not self.steps(last):
            refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "EMPTY_SEQUENCE")
        return inference_pb2.ManyToOneResponse(output=output, completion=self.completion())

    def OneToMany(self, request: Any, context: Any) -> Any:
        self.seen(request, context)
        context.add_callback(lambda: self.cancelled.set() if not done else None)
        done = False
        yield inference_pb2.OneToManyResponse(opened=inference_pb2.Opened(uid=str(self.uid), position=self.position, stream_token="token"))
        for character in "abcdefghij"[: request.generation.max_steps or 10]:
            yield inference_pb2.OneToManyResponse(output=self.output(types_pb2.Sequence(text=character)))
        if request.generation.max_steps == 1:
            self.cancelled.wait()
        done = True
        seed = request.generation.sampling.seed
        yield inference_pb2.OneToManyResponse(completion=self.completion(types_pb2.FINISH_REASON_MAX_STEPS, seed))

    def ManyToMany(self, requests: Any, context: Any) -> Any:
        for request in requests:
            self.requests.append(request)
            match request.WhichOneof("message"):
                case "open":
                    opened = inference_pb2.Opened(uid=str(self.uid), position=self.position, stream_token="token", seed=9)
                    yield inference_pb2.ManyToManyResponse(opened=opened)
                    if request.open.target.model == FAILS:
                        refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "SESSION_BUSY", position=41)
                    emit = request.open.emit
                case "input":
                    output = self.output(request.input.values)
                    if (request.input.emit or emit) == types_pb2.EMIT_NONE:
                        output.ClearField("values")
                    yield inference_pb2.ManyToManyResponse(output=output)
                case "generate":
                    for character in "abcdefghij"[: request.generate.generation.max_steps or 10]:
                        yield inference_pb2.ManyToManyResponse(output=self.output(types_pb2.Sequence(text=character)))
                    if request.generate.generation.max_steps == 1:
                        context.add_callback(self.cancelled.set)
                        self.cancelled.wait()
                    yield inference_pb2.ManyToManyResponse(completion=self.completion(types_pb2.FINISH_REASON_MAX_STEPS))
                case "stop":
                    stopped = inference_pb2.Stopped(position=self.position)
                    yield inference_pb2.ManyToManyResponse(output=self.output(types_pb2.Sequence(text="s")))
                    stopped.position = self.position
                    yield inference_pb2.ManyToManyResponse(completion=self.completion(types_pb2.FINISH_REASON_STOP_DIRECTIVE), stopped=stopped)

    def Run(self, request: Any, context: Any) -> Any:
        self.seen(request, context)
        failure = error_pb2.Failure(
            code=5, reason=error_pb2.ERROR_REASON_MODEL_NOT_FOUND, message="no such model", field="programs[0].target.model", position=3
        )
        results = []
        for program in request.programs:
            if program.target.model == FAILS:
                results.append(inference_pb2.ProgramResult(failure=failure))
            else:
                results.append(inference_pb2.ProgramResult(emitted=self.output(program.input), completion=self.completion()))
        return inference_pb2.RunResponse(results=results)

    def session_message(self, **fields: Any) -> session_pb2.Session:
        return session_pb2.Session(**({"name": "s", "model": "m", "uid": str(self.uid), "position": self.position, "seed": 5} | fields))

    def CreateSession(self, request: Any, context: Any) -> Any:
        self.seen(request, context)
        return session_pb2.CreateSessionResponse(session=self.session_message(name=request.session.name or "s", model=request.session.model))

    def GetSession(self, request: Any, context: Any) -> Any:
        self.seen(request, context)
        if request.name == "gone":
            refuse(context, grpc.StatusCode.NOT_FOUND, "SESSION_EXPIRED")
        return session_pb2.GetSessionResponse(session=self.session_message(name=request.name))

    def ListSessions(self, request: Any, context: Any) -> Any:
        self.seen(request, context)
        page = int(request.page_token or 0)
        token = str(page + 1) if page < 2 else ""
        return session_pb2.ListSessionsResponse(sessions=[self.session_message(name=f"s{page}")], next_page_token=token)

    def UpdateSession(self, request: Any, context: Any) -> Any:
        self.seen(request, context)
        return session_pb2.UpdateSessionResponse(session=self.session_message(labels=request.session.labels))

    def DeleteSession(self, request: Any, context: Any) -> Any:
        self.seen(request, context)
        return session_pb2.DeleteSessionResponse()

    def ResetSession(self, request: Any, context: Any) -> Any:
        self.seen(request, context)
        self.uid, self.position = self.uid + 1, 0
        return session_pb2.ResetSessionResponse(session=self.session_message())

    def ForkSession(self, request: Any, context: Any) -> Any:
        self.seen(request, context)
        return session_pb2.ForkSessionResponse(session=self.session_message(name=request.session.name, uid="fork"))

    def ExportSession(self, request: Any, context: Any) -> Any:
        self.seen(request, context)
        yield session_pb2.ExportSessionResponse(data=b"snap", total_bytes=8)
        yield session_pb2.ExportSessionResponse(data=b"shot")

    def ImportSession(self, requests: Any, context: Any) -> Any:
        received = list(requests)
        self.requests += received
        return session_pb2.ImportSessionResponse(session=self.session_message(name=received[0].open.session.name, uid="imported"))

    def ListModels(self, request: Any, context: Any) -> Any:
        self.seen(request, context)
        return model_pb2.ListModelsResponse(models=[model_pb2.Model(name="m")])

    def GetModel(self, request: Any, context: Any) -> Any:
        self.seen(request, context)
        if self.unavailable:
            self.unavailable -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return model_pb2.GetModelResponse(model=model_pb2.Model(name=request.name, cell=model_pb2.CELL_KIND_LSTM))


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A running fake, with its address and what it was sent."""
    fake = FakeServer()
    running = grpc.server(ThreadPoolExecutor(4))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(fake, running)
    session_pb2_grpc.add_SessionServiceServicer_to_server(fake, running)
    model_pb2_grpc.add_ModelServiceServicer_to_server(fake, running)
    fake.address = f"localhost:{running.add_insecure_port('localhost:0')}"
    running.start()
    yield fake
    fake.cancelled.set()
    running.stop(None).wait()
