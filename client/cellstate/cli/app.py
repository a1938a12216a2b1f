"""The `cellstate` command: its sub-commands and how errors are told."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cellstate import CellstateError
from cellstate.cli import sessions
from cellstate.cli.console import err, fail
from cellstate.cli.demo.command import demo
from cellstate.cli.forecast import forecast
from cellstate.cli.generate import generate
from cellstate.cli.healthcheck import healthcheck
from cellstate.cli.models import models
from cellstate.cli.tokens import token

app = typer.Typer(
    name="cellstate",
    help="Serve recurrent networks over gRPC, and call them: state kept between calls, callers batched step by step, generation streamed.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_TLS = "Encryption and callers"
_LOGS = "Logs"


@app.command()
def serve(  # noqa: PLR0913 (each is a flag)
    *,
    host: Annotated[
        str | None, typer.Option(help="Address of the gRPC port. Default: 127.0.0.1, or every address where both TLS and a tokens file are set.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="The gRPC port; 0 takes a free one. Default: 50051.")] = None,
    metrics_host: Annotated[str | None, typer.Option(help="Address of the metrics port. Default: 127.0.0.1.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="The HTTP port that Prometheus scrapes; 0 takes a free one. Default: 9464.")] = None,
    no_metrics: Annotated[bool, typer.Option("--no-metrics", help="Offer no metrics.")] = False,
    models: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder whose sub-folders are models. Default: models.")] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", envvar="CELLSTATE_CONFIG", help="YAML file of settings.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, for example engine.max_batch_rows=64. May be repeated.")
    ] = None,
    grace_s: Annotated[float | None, typer.Option(help="Seconds for running calls to finish when asked to stop. Default: 20.")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM file with the server's certificate chain.", rich_help_panel=_TLS)] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM file with its private key.", rich_help_panel=_TLS)] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(metavar="FILE", help="Ask callers for certificates of this authority.", rich_help_panel=_TLS)] = None,
    tokens_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Hashed bearer tokens that name the owners; see `cellstate token`.", rich_help_panel=_TLS)
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error. Default: info.", rich_help_panel=_LOGS)] = None,
    log_format: Annotated[str | None, typer.Option(help="json, console or auto. Default: auto.", rich_help_panel=_LOGS)] = None,
) -> None:
    """Run the server until it is told to stop (SIGTERM, Ctrl-C).

    Every flag is also a variable (CELLSTATE_PORT, CELLSTATE_TLS__KEY, CELLSTATE_ENGINE__MAX_BATCH_ROWS) and a key of the file given by --config. Flags win over
    variables, variables over the file.
    """
    try:
        from cellstate_service.commands import serve as run_server  # noqa: PLC0415 (takes seconds, which no other command should wait)
    except ModuleNotFoundError as missing:
        fail(f"the server is not installed ({missing.name} is missing): pip install '.[service]' in a checkout of cellstate")
    given: dict[str, object] = {
        "host": host,
        "port": port,
        "metrics_host": metrics_host,
        "metrics_port": metrics_port,
        "models": models,
        "grace_s": grace_s,
        "tokens_file": tokens_file,
        "tls.certificate": tls_certificate,
        "tls.key": tls_key,
        "tls.client_ca": tls_client_ca,
        "logging.level": log_level,
        "logging.format": log_format,
    }
    flags = {key: value for key, value in given.items() if value is not None}
    if no_metrics:
        flags["metrics_port"] = None
    raise typer.Exit(run_server(config, flags, setting or []))


app.command()(models)
app.command()(generate)
app.command(context_settings={"ignore_unknown_options": True})(forecast)  # -3.5 is a number, not an option
app.add_typer(sessions.app, name="sessions")
app.command()(healthcheck)
app.command()(token)
app.command()(demo)


def run() -> None:
    """Run the command; an error of the library is one line and exit code 1."""
    try:
        app()
    except CellstateError as error:
        err.print(f"cellstate: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
