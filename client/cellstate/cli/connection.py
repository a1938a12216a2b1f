"""How every command reaches the server: the options they share, and the client made from them."""

import os
from pathlib import Path
from typing import Annotated

import typer

from cellstate import TLS, Client

DEFAULT_ADDRESS = "127.0.0.1:50051"

_PANEL = "Connection"
_BEARER_HELP = "File that holds the bearer token. Without one, the variable CELLSTATE_TOKEN is used where it is set."
_TLS_HELP = "PEM file of the authority that signed the server's certificate; turns encryption on."

Address = Annotated[str, typer.Option("--address", "-a", envvar="CELLSTATE_ADDRESS", metavar="HOST:PORT", help="The server.", rich_help_panel=_PANEL)]
TokenFile = Annotated[Path | None, typer.Option("--token-file", envvar="CELLSTATE_TOKEN_FILE", metavar="FILE", help=_BEARER_HELP, rich_help_panel=_PANEL)]
TlsCa = Annotated[Path | None, typer.Option("--tls-ca", envvar="CELLSTATE_TLS_CA", metavar="FILE", help=_TLS_HELP, rich_help_panel=_PANEL)]


def connect(address: str, token_file: Path | None, tls_ca: Path | None) -> Client:
    """Return a client for the server; use it as a context manager.

    Raises:
        typer.BadParameter: A file cannot be read, or the token would travel in plain text.
    """
    authority = read_file("--tls-ca", tls_ca)
    try:
        return Client(address, token=read_token(token_file), tls=None if authority is None else TLS(root_certificates=authority))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def read_token(token_file: Path | None) -> str | None:
    """Return the bearer token from its file or from CELLSTATE_TOKEN; None where there is neither.

    Raises:
        typer.BadParameter: The file cannot be read, or holds no token or more than one line.
    """
    content = read_file("--token-file", token_file)
    if content is None:
        return os.environ.get("CELLSTATE_TOKEN") or None
    lines = [line.strip() for line in content.decode(errors="replace").splitlines() if line.strip()]
    if len(lines) != 1:
        raise typer.BadParameter(f"{token_file} holds {len(lines)} lines: one token is needed, and nothing else", param_hint="--token-file")
    return lines[0]


def read_file(flag: str, path: Path | None) -> bytes | None:
    """Return the bytes of the file that `flag` names, or None where it names none."""
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"cannot read {path}: {error.strerror}", param_hint=flag) from error
