"""How a client reaches its server: address, TLS, bearer token, keepalive, message sizes, and the published service config. Both faces read the same.

The service config (`service_config.json`, shipped with the package, usable by clients in any language) lets gRPC repeat reads that found no server:
`GetModel`, `ListModels`, `GetSession` and `ListSessions`, and only on UNAVAILABLE. What the library itself repeats is in `_resume.py` and `_repeat.py`.
Calls do not wait for a server that is not there (`waitForReady` is off, so that a wrong address fails at once); `wait_until_ready` is the one that waits.
Calls on sessions are another matter: where the connection is lost, the server drains or dies and comes again, or the session moves, they go on where they were
(`_resume.py`): no step counts twice, no output is lost.
"""

import ipaddress
import re
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

import grpc

from cellstate._version import __version__

DEFAULT_ADDRESS = "localhost:50051"
SERVICE_CONFIG = files("cellstate").joinpath("service_config.json").read_text(encoding="utf-8")

_HOST_AND_PORT = re.compile(r"(?:\[(?P<bracketed>[0-9a-fA-F:.]+)\]|(?P<name>[^:/\[\]]+))(?::[0-9]+)?")

Pem: TypeAlias = bytes | str | Path
"""PEM data as bytes, or the path of a file that holds it."""


@dataclass(frozen=True)
class TLS:
    """How to speak TLS. `TLS()` trusts the certificate authorities that gRPC ships.

    Attributes:
        root_certificates: Certificate authorities to trust instead.
        certificate: The client's own certificate chain, for servers that ask for one; needs `private_key`.
        private_key: Its key.
        server_name: Name that the server's certificate must carry, where it is not the address's.
    """

    root_certificates: Pem | None = None
    certificate: Pem | None = None
    private_key: Pem | None = field(default=None, repr=False)
    server_name: str | None = None

    def __post_init__(self) -> None:
        """Refuse a certificate without its key and the other way round."""
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("a client's certificate and its private_key are given together or not at all")


class ConnectionOptions(TypedDict, total=False):
    """Settings of a client that rarely change.

    Keys:
        keepalive_s: Seconds of silence during a call after which the server is asked for a sign of life; None for never.
        max_message_bytes: Largest message in either direction.
        insecure_token: Send the token over plain text to another machine.
        resume_s: Seconds without progress for which a call on a session is made again after its connection or its server was lost; 0: it fails at once.
    """

    keepalive_s: float | None
    resume_s: float
    max_message_bytes: int
    insecure_token: bool


@dataclass(frozen=True)
class Connection:
    """Settings of one client's channel.

    Attributes:
        address: host:port, unix:path, or any other target that gRPC resolves.
        token: Bearer token sent with each call.
        tls: None for plain text.
        timeout_s: Deadline of calls that answer once, unless they give their own; None for none.
        keepalive_s: See `ConnectionOptions`, as the next two.
        max_message_bytes: See there.
        insecure_token: See there.
        resume_s: See there.
    """

    address: str = DEFAULT_ADDRESS
    token: str | None = field(default=None, repr=False)
    tls: TLS | None = None
    timeout_s: float | None = 30.0
    keepalive_s: float | None = 60.0
    max_message_bytes: int = 64 * 1024 * 1024
    insecure_token: bool = False
    resume_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse settings that would leak the token or mean nothing."""
        if self.token is not None and self.tls is None and not self.insecure_token and not is_local(self.address):
            raise ValueError(f"the token would travel to {self.address} in plain text: give tls=TLS(...), or insecure_token=True where the network is trusted")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip() == self.token != ""):
            raise ValueError("the token must be printable ASCII on one line, without spaces around it")
        if self.resume_s < 0:
            raise ValueError(f"resume_s must not be below 0, not {self.resume_s}")
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise ValueError(f"timeout_s must be above 0, or None for no deadline, not {self.timeout_s}")

    def options(self) -> list[tuple[str, Any]]:
        """Return the channel's options."""
        options: list[tuple[str, Any]] = [
            ("grpc.primary_user_agent", f"cellstate/{__version__}"),
            ("grpc.service_config", SERVICE_CONFIG),
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1000),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        if is_local(self.address):
            options.append(("grpc.enable_http_proxy", 0))  # the variable http_proxy would send even calls to localhost, token included, to another machine
        if self.keepalive_s is not None:
            options += [
                ("grpc.keepalive_time_ms", round(self.keepalive_s * 1000)),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.http2.max_pings_without_data", 0),
            ]
        if self.tls is not None and self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return options

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Return the channel's credentials; None for plain text."""
        if self.tls is None:
            return None
        return grpc.ssl_channel_credentials(
            root_certificates=_read_pem(self.tls.root_certificates),
            private_key=_read_pem(self.tls.private_key),
            certificate_chain=_read_pem(self.tls.certificate),
        )

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of each call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)


def is_local(address: str) -> bool:
    """Tell whether an address cannot leave this machine: a Unix socket, or a loopback address or localhost by itself or as dns:, ipv4: or ipv6:."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    scheme = next((scheme for scheme in ("dns:", "ipv4:", "ipv6:") if address.startswith(scheme)), "")
    rest = address.removeprefix(scheme)
    if scheme == "dns:":
        rest = rest.removeprefix("///")  # two slashes would begin the name server that is asked
    matched = _HOST_AND_PORT.fullmatch(rest)
    host = (matched["bracketed"] or matched["name"]) if matched else rest
    if host == "localhost":
        return scheme in ("", "dns:")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_pem(pem: Pem | None) -> bytes | None:
    return pem if pem is None or isinstance(pem, bytes) else Path(pem).read_bytes()
