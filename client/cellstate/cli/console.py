"""Where the command writes: results to standard output, everything else to standard error."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import typer
from rich.console import Console

#: Width of lines where nobody watches and the environment says nothing: wide enough for every table.
_PLAIN_WIDTH = 140


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PLAIN_WIDTH
    return console


out = _console(stderr=False)
err = _console(stderr=True)


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print `value` as JSON, for programs."""
    typer.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def draws_braille(console: Console) -> bool:
    """Tell whether to draw with braille dots: a terminal, and an encoding that has them."""
    return console.is_terminal and not console.options.ascii_only


def fail(message: str, exit_code: int = 1) -> NoReturn:
    """Say in one line what is wrong, and end."""
    err.print(f"cellstate: {message}", style="red", markup=False, soft_wrap=True)
    raise typer.Exit(exit_code)


def speed(count: int, unit: str, seconds: float) -> str:
    """Return for example `512 tokens in 0.43 s (1,190 tokens/s)`."""
    rate = f" ({count / seconds:,.0f} {unit}/s)" if seconds > 0 else ""
    return f"{count:,} {unit} in {seconds:.2f} s{rate}"


def size(count: int) -> str:
    """Return a count of bytes for people: `512 B`, `16.0 KiB`, `7.6 MiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
