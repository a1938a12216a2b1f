"""The one interceptor, for all four kinds of RPC: who calls, how long it takes, and errors to rich statuses."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
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


@dataclass(frozen=True, slots=True)
class CallContext:
    """What a handler may know of its call.

    Attributes:
        owner: The authenticated principal.
        deadline_s: Monotonic time at which the caller stops waiting; None where it waits for ever.
        refused: Counts an error that is told inside an answer.
    """

    owner: str
    deadline_s: float | None
    refused: Callable[[CellstateError], None]


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
    """The messages of a stream, refusing the first that cannot be read."""

    def __init__(self, messages: AsyncIterator[Any]) -> None:
        self._messages = messages

    def __aiter__(self) -> "_Messages":
        return self

    async def __anext__(self) -> Any:
        return _checked(await anext(self._messages))


def _request(request: Any) -> Any:
    return _Messages(aiter(request)) if hasattr(request, "__aiter__") else _checked(request)


class _Record:
    """Counts one call."""

    def __init__(self, metrics: Metrics, method: str) -> None:
        self._metrics = metrics
        self._method = method
        self._children: MethodMetrics = metrics.for_method(method)
        self._children.calls_in_progress.inc()
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

    def refused(self, error: CellstateError) -> None:
        """Count an error."""
        self.code = status_code(error).name
        self._metrics.refusals_total.labels(error.reason.value).inc()

    def end(self) -> None:
        """Count the end."""
        self._children.calls_in_progress.dec()
        self._children.call_seconds.observe(time.monotonic() - self._began_s)
        self._metrics.calls_total.labels(self._method, self.code).inc()


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Authenticates, measures and translates errors of every call of our services; others (health, reflection) pass untouched."""

    def __init__(self, authenticator: Authenticator, metrics: Metrics) -> None:
        self._authenticator = authenticator
        self._metrics = metrics

    async def intercept_service(self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Wrap the handler of one call."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(PREFIX):
            return handler
        method = handler_call_details.method.rsplit("/", 1)[1]
        behavior = handler.stream_stream or handler.unary_stream or handler.stream_unary or handler.unary_unary
        make: Any = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        wrapped = self._streaming(behavior, method) if handler.response_streaming else self._single(behavior, method)
        return make(wrapped, request_deserializer=_tolerant(handler.request_deserializer), response_serializer=handler.response_serializer)

    def _single(self, behavior: Any, method: str) -> Any:
        async def call(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
            async with self._guarded(method, context) as (record, known):
                response = await behavior(_request(request), known)
                record.output()
                return response

        return call

    def _streaming(self, behavior: Any, method: str) -> Any:
        async def call(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> AsyncIterator[Any]:
            async with self._guarded(method, context) as (record, known), contextlib.aclosing(behavior(_request(request), known)) as responses:
                async for response in responses:
                    record.output()
                    yield response

        return call

    @contextlib.asynccontextmanager
    async def _guarded(self, method: str, context: "grpc.aio.ServicerContext[Any, Any]") -> AsyncIterator[tuple[_Record, CallContext]]:
        record = _Record(self._metrics, method)
        deadline_s: float | None = None
        try:
            owner = self._authenticator.principal(context.invocation_metadata())
            remaining_s = context.time_remaining()
            deadline_s = None if remaining_s is None else time.monotonic() + remaining_s
            yield record, CallContext(owner, deadline_s, self._count_refusal)
        except CellstateError as error:
            await self._abort(context, record, error)
        except (asyncio.CancelledError, GeneratorExit):
            late = deadline_s is not None and time.monotonic() >= deadline_s
            record.code = (grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED).name
            raise
        except Exception:
            fault = unexpected()
            _log.exception("unexpected fault", log_id=fault.metadata["log_id"], method=method)
            await self._abort(context, record, fault)
        finally:
            record.end()

    def _count_refusal(self, error: CellstateError) -> None:
        self._metrics.refusals_total.labels(error.reason.value).inc()

    async def _abort(self, context: "grpc.aio.ServicerContext[Any, Any]", record: _Record, error: CellstateError) -> None:
        record.refused(error)
        await context.abort_with_status(rpc_status.to_status(rich_status(error)))
