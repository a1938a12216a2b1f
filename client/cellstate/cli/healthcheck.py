"""`cellstate healthcheck`, for containers and scripts."""

from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cellstate.cli.connection import DEFAULT_ADDRESS, Address, TlsCa, TokenFile, read_file, read_token
from cellstate.cli.console import fail, out


def healthcheck(
    *,
    service: Annotated[str, typer.Option(help="Service to ask about; empty: the server as a whole.")] = "",
    timeout_s: Annotated[float, typer.Option(min=0.01, help="Seconds to wait for an answer.")] = 3.0,
    tls_server_name: Annotated[str | None, typer.Option(metavar="NAME", help="Name in the server's certificate, where it differs from the address.")] = None,
    address: Address = DEFAULT_ADDRESS,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Ask whether the server serves: exit code 0 where it does, 1 where it does not or cannot be reached."""
    status = ask_health(_channel(address, read_file("--tls-ca", tls_ca), tls_server_name), service, read_token(token_file), timeout_s)
    if status != "SERVING":
        fail(f"{address}: {status}")
    out.print(status)


def ask_health(channel: grpc.Channel, service: str, token: str | None, timeout_s: float) -> str:
    """Return `SERVING`, another status of the health protocol, or why there is no answer. Closes the channel."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def _channel(address: str, tls_ca: bytes | None, server_name: str | None) -> grpc.Channel:
    if tls_ca is None:
        return grpc.insecure_channel(address)
    options = [("grpc.ssl_target_name_override", server_name)] if server_name else []
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(root_certificates=tls_ca), options=options)
