"""`cellstate healthcheck`, for containers and scripts."""

from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cellstate.cli.connection import DEFAULT_ADDRESS, Address, TlsCa, read_file
from cellstate.cli.console import fail, out
from cellstate.connection import TLS, Connection


def healthcheck(
    *,
    service: Annotated[str, typer.Option(help="Service to ask about; empty: the server as a whole.")] = "",
    timeout_s: Annotated[float, typer.Option(min=0.01, help="Seconds to wait for an answer.")] = 3.0,
    tls_server_name: Annotated[str | None, typer.Option(metavar="NAME", help="Name in the server's certificate, where it differs from the address.")] = None,
    address: Address = DEFAULT_ADDRESS,
    tls_ca: TlsCa = None,
) -> None:
    """Ask whether the server serves: exit code 0 where it does, 1 where it does not or cannot be reached. Needs no token, and sends none."""
    status = ask_health(_channel(address, read_file("--tls-ca", tls_ca), tls_server_name), service, timeout_s)
    if status != "SERVING":
        fail(f"{address}: {status}")
    out.print(status)


def ask_health(channel: grpc.Channel, service: str, timeout_s: float) -> str:
    """Return `SERVING`, another status of the health protocol, or why there is no answer. Closes the channel."""
    with channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return f"NOT_FOUND: the server knows no service {service!r}"
            return f"{error.code().name}: {error.details()}"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def _channel(address: str, tls_ca: bytes | None, server_name: str | None) -> grpc.Channel:
    connection = Connection(address, tls=None if tls_ca is None else TLS(root_certificates=tls_ca, server_name=server_name))
    credentials = connection.credentials()
    if credentials is None:
        return grpc.insecure_channel(address, connection.options())
    return grpc.secure_channel(address, credentials, connection.options())
