"""The grpc.aio server: services, health, reflection, limits and keepalive, put together from parts that are handed in."""

import contextlib
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cellstate.v1 import inference_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc, session_pb2, session_pb2_grpc
from cellstate_service.rpc.inference import InferenceServicer
from cellstate_service.rpc.interceptor import CallInterceptor
from cellstate_service.rpc.models import ModelServicer
from cellstate_service.rpc.sessions import SessionServicer
from cellstate_service.settings import Settings

SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    session_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name,
    model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
)


PENDING_CALLS = 10_000


@dataclass(frozen=True, slots=True)
class Servicers:
    """What answers the calls of each service."""

    inference: InferenceServicer
    sessions: SessionServicer
    models: ModelServicer


def server_options(settings: Settings) -> list[tuple[str, int]]:
    """Return gRPC's channel arguments for the settings."""
    keepalive = settings.keepalive
    return [
        ("grpc.max_receive_message_length", settings.limits.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", settings.limits.max_concurrent_streams),
        ("grpc.keepalive_time_ms", int(keepalive.time_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(keepalive.timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", int(keepalive.min_client_ping_s * 1000)),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.so_reuseport", 0),
        # gRPC's own bounds on calls that nobody looked at yet drop them without a word; ours, which come next, tell why.
        ("grpc.server.max_pending_requests", PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", 2 * PENDING_CALLS),
        ("grpc.enable_channelz", 0),  # it counts every message for a service that is not offered
    ]


class _ToldGoing(Exception):  # noqa: N818 (no error: it ends a watch)
    """A watch has told that the server is going."""


class _Watcher:
    """A watch's context that ends the watch with the last word."""

    def __init__(self, health_servicer: "_Health", context: Any) -> None:
        self._health = health_servicer
        self._context = context

    async def write(self, response: health_pb2.HealthCheckResponse) -> None:
        await self._context.write(response)
        if self._health.draining and response.status == health_pb2.HealthCheckResponse.NOT_SERVING:
            raise _ToldGoing


class _Health(health.aio.HealthServicer):  # type: ignore[misc]
    """Health whose watches end once they have told that the server is going: open, they would hold up its stop for all of the grace period."""

    draining = False

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """Tell the health of a service, now and whenever it changes."""
        with contextlib.suppress(_ToldGoing):
            await super().Watch(request, _Watcher(self, context))


class Server:
    """A gRPC server with health and reflection. Health is NOT_SERVING until `serve`, and again from `drain` on."""

    def __init__(self, settings: Settings, servicers: Servicers, interceptor: CallInterceptor, credentials: grpc.ServerCredentials | None) -> None:
        self._health = _Health()
        self._server = grpc.aio.server(
            interceptors=[interceptor],
            options=server_options(settings),
            # Above what inference calls may take, so that those are refused with a reason, and other calls find room: but bounded.
            maximum_concurrent_rpcs=2 * settings.engine.max_calls + 256,
        )
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicers.inference, self._server)
        session_pb2_grpc.add_SessionServiceServicer_to_server(servicers.sessions, self._server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(servicers.models, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        address = _address(settings.listen_host, settings.port)
        try:
            self.port = self._server.add_secure_port(address, credentials) if credentials else self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: is the port in use? choose another one by --port (0 takes a free one)") from error

    async def serve(self) -> None:
        """Take calls."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Tell health checks that this server is going."""
        self._health.draining = True
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls; let running ones finish within the grace period, then end them."""
        await self._server.stop(grace_s)

    async def _set_health(self, status: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
        for service in ("", *SERVICES):
            await self._health.set(service, status)


def _address(host: str, port: int) -> str:
    """Return host and port as gRPC takes them: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith(("[", "unix:")) else f"{host}:{port}"
