"""`cellstate sessions`: list, show, delete, reset, fork, export, import."""

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cellstate import SessionInfo
from cellstate.cli.connection import DEFAULT_ADDRESS, Address, TlsCa, TokenFile, connect, read_file
from cellstate.cli.console import err, fail, out, print_json, size

app = typer.Typer(help="Look after the sessions whose state the server keeps for you.", no_args_is_help=True, rich_markup_mode="rich")

Name = Annotated[str, typer.Argument(help="The session's name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.command("list")
def list_sessions(
    *,
    model: Annotated[str | None, typer.Option(help="Only those on this model.")] = None,
    as_json: AsJson = False,
    address: Address = DEFAULT_ADDRESS,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """List your sessions by name."""
    with connect(address, token_file, tls_ca) as client:
        found = list(client.sessions(f'model="{model}"' if model else ""))
    if as_json:
        print_json([_as_dict(session) for session in found])
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("name", "model"):
        table.add_column(heading, overflow="fold")
    for heading in ("position", "state"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("busy", "expires"):
        table.add_column(heading, no_wrap=True)
    for session in found:
        table.add_row(
            session.name, session.model, f"{session.position:,}", size(session.state_bytes), "yes" if session.busy else "", _until(session.expire_time)
        )
    out.print(table)


@app.command()
def show(*, name: Name, as_json: AsJson = False, address: Address = DEFAULT_ADDRESS, token_file: TokenFile = None, tls_ca: TlsCa = None) -> None:
    """Show one session, with a digest of its state."""
    with connect(address, token_file, tls_ca) as client:
        session = client.open_session(name).info()
    if as_json:
        print_json(_as_dict(session))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in _as_dict(session).items():
        if value not in (None, "", {}):
            table.add_row(key.replace("_", " "), value.isoformat(" ", "seconds") if isinstance(value, datetime) else str(value))
    out.print(table)


@app.command()
def delete(
    *,
    names: Annotated[list[str], typer.Argument(help="The sessions' names.")],
    address: Address = DEFAULT_ADDRESS,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Delete sessions; a call that is on one ends."""
    with connect(address, token_file, tls_ca) as client:
        for name in names:
            client.open_session(name).delete()
            err.print(f"deleted {name}", markup=False)


@app.command()
def reset(*, name: Name, address: Address = DEFAULT_ADDRESS, token_file: TokenFile = None, tls_ca: TlsCa = None) -> None:
    """Put a session back to its model's initial state."""
    with connect(address, token_file, tls_ca) as client:
        client.open_session(name).reset()
    err.print(f"reset {name} to position 0", markup=False)


@app.command()
def fork(
    *,
    name: Name,
    new_name: Annotated[str | None, typer.Argument(help="Name of the new session. Without one, the server makes it.")] = None,
    position: Annotated[int | None, typer.Option(min=0, help="Fork the state at this position, where the server still holds it. Default: now.")] = None,
    address: Address = DEFAULT_ADDRESS,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Make a second session from this one's state; each then has its own future. Prints its name."""
    with connect(address, token_file, tls_ca) as client:
        made = client.open_session(name).fork(name=new_name, position=position)
    typer.echo(made.name)


@app.command("export")
def export_session(
    *,
    name: Name,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write; - is standard output.")] = Path("-"),
    address: Address = DEFAULT_ADDRESS,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Write a session as a portable, checksummed snapshot."""
    if str(output) == "-" and sys.stdout.isatty():
        fail("a snapshot is binary: name a file by --output")
    with connect(address, token_file, tls_ca) as client:
        snapshot = client.open_session(name).export()
    if str(output) == "-":
        sys.stdout.buffer.write(snapshot)
    else:
        output.write_bytes(snapshot)
        err.print(f"wrote {size(len(snapshot))} to {output}", markup=False)


@app.command("import")
def import_session(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The snapshot; - is standard input.")],
    name: Annotated[str | None, typer.Option(help="Name of the new session. Without one, the server makes it.")] = None,
    allow_other_numerics: Annotated[
        bool, typer.Option("--allow-other-numerics", help="Take it from a server whose values may differ in their last bits.")
    ] = False,
    address: Address = DEFAULT_ADDRESS,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Make a session from a snapshot. Prints its name."""
    snapshot = sys.stdin.buffer.read() if str(file) == "-" else read_file("FILE", file) or b""
    with connect(address, token_file, tls_ca) as client:
        made = client.import_session(snapshot, name=name, allow_other_numerics=allow_other_numerics)
    typer.echo(made.name)


def _as_dict(session: SessionInfo) -> dict[str, Any]:
    return asdict(session)


def _until(moment: datetime | None) -> str:
    if moment is None:
        return "never"
    seconds = (moment - datetime.now(UTC)).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"in {seconds / length:.0f} {unit}"
    return f"in {max(seconds, 0):.0f} s"
