"""The one interceptor, for all four kinds of RPC: who calls, how long it takes, and errors to rich statuses."""

import asyncio
import contextlib
import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from cellstate_service.errors import CellstateError, InvalidInput
from cellstate_service.observability.metrics import MethodMetrics, Metrics
from cellstate_service.rpc.auth import Authenticator
from cellstate_service.rpc.status import rich_status, status_code, unexpected

PREFIX = "/cellstate.v1."
_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class CallContext:
    """What a handler may know of its call, and how it writes a stream of answers.

    Attributes:
        owner: The authenticated principal.
        deadline_s: Monotonic time at which the caller stops waiting; None where it waits for ever.
        refused: Counts an error that is told inside an answer.
        write: Write one message of a streamed answer, and wait until gRPC has taken it.
    """

    owner: str
    deadline_s: float | None
    refused: Callable[[CellstateError], None]
    write: Callable[[Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Malformed:
    """Stands for a message whose bytes cannot be read; raising while gRPC deserializes would end the call as UNKNOWN."""

    problem: str


def _tolerant(deserializer: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return a deserializer that gives `_Malformed` instead of raising."""

    def deserialize(data: bytes) -> Any:
        try:
            return deserializer(data)
        except DecodeError as error:
            return _Malformed(str(error))

    return deserialize


def _checked(message: Any) -> Any:
    if isinstance(message, _Malformed):
        raise InvalidInput(f"the message cannot be read: {message.problem}")
    return message


class _Messages:
    """The messages of a stream, refusing the first that cannot be read. Reads by the context: gRPC's own iterator costs two generators more per message."""

    __slots__ = ("_read",)

    def __init__(self, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        self._read = context.read

    def __aiter__(self) -> "_Messages":
        return self

    async def __anext__(self) -> Any:
        message = await self._read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return _checked(message)


class _Record:
    """Counts one call."""

    __slots__ = ("_began_s", "_children", "_last_output_s", "code")

    def __init__(self, children: MethodMetrics) -> None:
        self._children = children
        children.calls_in_progress.inc()
        self._began_s = time.monotonic()
        self._last_output_s: float | None = None
        self.code = grpc.StatusCode.OK.name

    def output(self) -> None:
        """Count an output message."""
        now_s = time.monotonic()
        if self._last_output_s is None:
            self._children.time_to_first_output_seconds.observe(now_s - self._began_s)
        else:
            self._children.time_between_outputs_seconds.observe(now_s - self._last_output_s)
        self._last_output_s = now_s

    def end(self) -> None:
        """Count the end."""
        self._children.calls_in_progress.dec()
        self._children.call_seconds.observe(time.monotonic() - self._began_s)
        self._children.ended(self.code).inc()


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Authenticates, measures and translates errors of every call of our services; others (health, reflection) pass untouched."""

    def __init__(self, authenticator: Authenticator, metrics: Metrics) -> None:
        self._authenticator = authenticator
        self._metrics = metrics
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Wrap the handler of one call."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(PREFIX):
            return handler
        wrapped = self._wrapped.get(handler_call_details.method)
        if wrapped is None:
            wrapped = self._wrapped[handler_call_details.method] = self._wrap(handler, handler_call_details.method.rsplit("/", 1)[1])
        return wrapped

    def _wrap(self, handler: Any, method: str) -> Any:
        behavior = handler.stream_stream or handler.unary_stream or handler.stream_unary or handler.unary_unary
        make: Any = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        if inspect.isasyncgenfunction(behavior):
            behavior = _written(behavior)
        guarded = self._guarded(behavior, self._metrics.for_method(method), streams=handler.request_streaming, answers_once=not handler.response_streaming)
        return make(guarded, request_deserializer=_tolerant(handler.request_deserializer), response_serializer=handler.response_serializer)

    def _guarded(self, behavior: Any, children: MethodMetrics, *, streams: bool, answers_once: bool) -> Any:
        """Return what gRPC calls: a coroutine, since that writes a stream of answers with the fewest steps in between."""

        async def call(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
            record = _Record(children)
            deadline_s: float | None = None
            try:
                owner = self._authenticator.principal(context.invocation_metadata())
                remaining_s = context.time_remaining()
                deadline_s = None if remaining_s is None else time.monotonic() + remaining_s
                known = CallContext(owner, deadline_s, self._count_refusal, _writer(record, context))
                response = await behavior(_Messages(context) if streams else _checked(request), known)
                if answers_once:
                    record.output()
                return response
            except CellstateError as error:
                await self._abort(context, record, error)
            except asyncio.CancelledError:
                late = deadline_s is not None and time.monotonic() >= deadline_s
                record.code = (grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED).name
                raise
            except Exception:
                fault = unexpected()
                _log.exception("unexpected fault", log_id=fault.metadata["log_id"], behavior=behavior.__qualname__)
                await self._abort(context, record, fault)
            finally:
                record.end()

        return call

    def _count_refusal(self, error: CellstateError) -> None:
        self._metrics.refusals_total.labels(error.reason.value).inc()

    async def _abort(self, context: "grpc.aio.ServicerContext[Any, Any]", record: _Record, error: CellstateError) -> None:
        record.code = status_code(error).name
        self._count_refusal(error)
        await context.abort_with_status(rpc_status.to_status(rich_status(error)))


def _writer(record: _Record, context: "grpc.aio.ServicerContext[Any, Any]") -> Callable[[Any], Awaitable[None]]:
    """Return what counts a message and writes it."""
    count, write = record.output, context.write

    def counted(response: Any) -> Awaitable[None]:
        count()
        return write(response)

    return counted


def _written(behavior: Any) -> Any:
    """Return a handler that writes what another one, an asynchronous generator, yields."""

    async def write(request: Any, known: CallContext) -> None:
        async with contextlib.aclosing(behavior(request, known)) as responses:
            async for response in responses:
                await known.write(response)

    return write
