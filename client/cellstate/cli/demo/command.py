"""`cellstate demo`: starts a server, shows each act, stops the server."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from cellstate import CellstateError, Client
from cellstate.cli.connection import TlsCa, TokenFile, connect
from cellstate.cli.console import fail, out
from cellstate.cli.demo.crash_act import survive
from cellstate.cli.demo.data import DataError, DemoData, read_data
from cellstate.cli.demo.digits_act import read_digits_aloud
from cellstate.cli.demo.figures import Moves, scrape
from cellstate.cli.demo.metrics_act import show_moves
from cellstate.cli.demo.series_acts import dream_from_one_value, follow, predict_next, predict_sequence
from cellstate.cli.demo.server import ServerError, ServerProcess
from cellstate.cli.demo.stage import ActError, Stage
from cellstate.cli.demo.text_acts import go_on, write_text, write_together
from cellstate.cli.models import models_table

Act = Callable[[], None]


def demo(
    *,
    models: Annotated[Path, typer.Option(metavar="DIR", help="Folder of models for the server that the demo starts.")] = Path("models"),
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder with sunspots.csv and digits.csv.")] = Path("examples/data"),
    address: Annotated[str | None, typer.Option("--address", "-a", metavar="HOST:PORT", help="Call this server instead of starting one.")] = None,
    metrics_address: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Its metrics port. Without it the figures are left out.")] = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Start a server on the bundled models and show the four modes by calling it over gRPC.

    The exit code is 1 if anything failed.
    """
    stage = Stage(out)
    _end_in_order_on_signals()
    begun = time.perf_counter()
    try:
        shown = read_data(data)
        if address is not None:
            failures = _play(stage, connect(address, token_file, tls_ca), metrics_address, shown)
        else:
            with _own_server(stage, models) as server:
                failures = _play(stage, connect(server.address, None, None), server.metrics_address, shown, server)
    except (ServerError, DataError) as error:
        fail(str(error))
    stage.rule()
    if failures:
        fail(f"{len(failures)} of the acts failed: {', '.join(failures)}")
    stage.say(f"All of it over gRPC, in {time.perf_counter() - begun:.1f} s. Next: `cellstate serve`, and `cellstate --help`.", "bold")


@contextmanager
def _own_server(stage: Stage, models: Path) -> Iterator[ServerProcess]:
    if not models.is_dir():
        fail(f"no folder {models.absolute()}: run from a checkout of the project, or name the folder of models by --models")
    begun = time.perf_counter()
    server = ServerProcess(models)
    try:
        if stage.rich:
            with stage.console.status("starting the server: loading, packing and checking the models"):
                server.wait_until_serving()
        else:
            server.wait_until_serving()
        stage.say(f"Server ready on {server.address} after {time.perf_counter() - begun:.1f} s, metrics on {server.metrics_address}")
        yield server
    finally:
        stopped_s = server.stop()
    stage.say(f"\nServer stopped in order, {stopped_s:.1f} s after SIGTERM (exit code 0)", "dim")


def _play(stage: Stage, client: Client, metrics_address: str | None, data: DemoData, server: ServerProcess | None = None) -> list[str]:
    """Show all acts; return what failed. An act that fails does not keep the next from being shown."""
    with client:
        before = scrape(metrics_address) if metrics_address else {}
        stage.show(models_table(client.models()))
        acts: dict[str, Act] = {
            "one-to-many text": lambda: write_text(client, stage),
            "many callers": lambda: write_together(client, stage),
            "session": lambda: go_on(client, stage),
            "many-to-one": lambda: predict_next(client, stage, data.sunspots),
            "one-to-many values": lambda: dream_from_one_value(client, stage, data.sunspots),
            "many-to-many": lambda: predict_sequence(client, stage, data.sunspots),
            "many-to-many, one output per input": lambda: follow(client, stage, data.sunspots),
            "one-to-one": lambda: read_digits_aloud(client, stage, data.digits),
        }
        if metrics_address:
            acts["metrics"] = lambda: show_moves(stage, Moves(before, scrape(metrics_address)), metrics_address)
        if server is not None:
            acts["a crash"] = lambda: survive(client, stage, server)
        return [name for name, act in acts.items() if not _shown(stage, name, act)]


def _shown(stage: Stage, name: str, act: Act) -> bool:
    try:
        act()
    except (CellstateError, ActError, OSError) as error:
        stage.say(f"{name} failed: {error}", "bold red")
        return False
    return True


def _end_in_order_on_signals() -> None:
    """Let SIGTERM and SIGHUP end the demo as an exception does, so that the server is stopped."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for signal_number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, end)
