"""`cellstate token`."""

import hashlib
import secrets
from typing import Annotated

import typer

from cellstate.cli.console import err


def token(owner: Annotated[str, typer.Argument(help="Whose sessions the token opens.")]) -> None:
    """Make a bearer token, and the line for the server's tokens file.

    The token is printed first and nowhere kept: hand it to the caller (CELLSTATE_TOKEN or --token-file). The second line goes into the file that
    `cellstate serve --tokens-file` reads; it holds only a hash.
    """
    made = secrets.token_urlsafe(32)
    err.print("token, for the caller; then the line for the server's tokens file:", style="dim")
    typer.echo(made)
    typer.echo(f"{owner}:{hashlib.sha256(made.encode()).hexdigest()}")
