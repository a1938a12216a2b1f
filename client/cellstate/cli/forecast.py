"""`cellstate forecast`."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.columns import Columns
from rich.table import Table

from cellstate import ModelInfo, ValueKind, values
from cellstate.cli.chart import Frame, Line, render_chart
from cellstate.cli.connection import DEFAULT_ADDRESS, Address, TlsCa, TokenFile, connect
from cellstate.cli.console import draws_braille, out, print_json
from cellstate.cli.series import Series, parse_arguments, read_csv

_HISTORY_DRAWN = 60
_ROWS_SHOWN = 20


def forecast(  # noqa: PLR0913 (each is a flag)
    *,
    model: Annotated[str, typer.Argument(help="A forecaster that the server has loaded.")],
    numbers: Annotated[
        list[str] | None, typer.Argument(metavar="NUMBERS", help="The history, oldest first; features of a step separated by commas. Or one CSV file.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", metavar="CSV", help="Read the history from a CSV file; - reads standard input.")] = None,
    column: Annotated[list[str] | None, typer.Option("--column", help="Column to take; may be given several times. Default: the last.")] = None,
    steps: Annotated[int, typer.Option("--steps", "-n", min=1, help="Steps to predict.")] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    address: Address = DEFAULT_ADDRESS,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Predict the next values of a series, drawn after its history.

    [bold]Example:[/bold] cellstate forecast sunspots sunspots.csv --steps 22
    """
    only = Path(numbers[0]) if numbers is not None and len(numbers) == 1 else None
    if file is None and only is not None and only.is_file():
        numbers, file = None, only
    if bool(numbers) == (file is not None):
        raise typer.BadParameter("give the history as numbers or by --file (one of both)")
    with connect(address, token_file, tls_ca) as client:
        features = _features(client.model(model))
        history = _history(numbers or [], file, column or [], features)
        stream = client.one_to_many(model, values(history), max_steps=steps)
        predicted = np.concatenate([output.values for output in stream])
    if as_json:
        print_json({"model": model, "steps": steps, "values": predicted.tolist()})
        return
    for feature in range(predicted.shape[1]):
        _show(history[:, feature], predicted[:, feature], f"{model} {feature}" if features > 1 else model)


def _features(model: ModelInfo) -> int:
    """Return the number of features per step, of a model that can forecast."""
    if model.input.kind is not ValueKind.NUMERIC:
        raise typer.BadParameter(f"{model.name} takes tokens, not numbers, so it forecasts nothing; see `cellstate generate`", param_hint="MODEL")
    if not model.generates:
        raise typer.BadParameter(f"{model.name} forecasts nothing: what it gives cannot be its next input", param_hint="MODEL")
    return model.input.size


def _history(numbers: list[str], file: Path | None, columns: list[str], features: int) -> Series:
    history = read_csv(file, columns, features) if file is not None else parse_arguments(numbers)
    if history.shape[1] != features:
        raise typer.BadParameter(f"the model takes {features} features per step, not {history.shape[1]}")
    return history


def _show(history: Series, predicted: Series, title: str) -> None:
    shown = history[-_HISTORY_DRAWN:]
    lines = [
        Line("history", shown.tolist(), "white", "."),
        Line(f"{title}: next {len(predicted)}", [float(shown[-1]), *predicted.tolist()], "bright_cyan", "o", start=len(shown) - 1),
    ]
    frame = Frame(braille=draws_braille(out), height=12, x_labels=(f"{-len(shown) + 1}", f"+{len(predicted)}"))
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("step", justify="right")
    table.add_column("value", justify="right", style="bright_cyan")
    for step, value in enumerate(predicted[:_ROWS_SHOWN], start=1):
        table.add_row(f"+{step}", f"{value:.4g}")
    if len(predicted) > _ROWS_SHOWN:
        table.add_row("…", f"{len(predicted) - _ROWS_SHOWN} more: see --json")
    out.print(Columns([render_chart(lines, frame), table], padding=(0, 3)))
