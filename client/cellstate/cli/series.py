"""Reading a numeric series from arguments, a CSV file or standard input."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import typer

Series = npt.NDArray[np.float64]


def parse_arguments(texts: Sequence[str]) -> Series:
    """Return [T, features]: one step per argument, its features separated by commas.

    Raises:
        typer.BadParameter: An argument is no number, or they differ in their number of features.
    """
    rows = []
    for text in texts:
        try:
            rows.append([float(part) for part in text.split(",")])
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not a number (nor numbers separated by commas)") from None
    return _even(rows)


def read_csv(path: Path, columns: Sequence[str], features: int) -> Series:
    """Return [T, features] from a CSV file, or from standard input where the path is `-`.

    Args:
        path: The file. A first line that is not all numbers is its heading.
        columns: Names of the columns to take. None given: the last ones, as many as the model has features.
        features: Features of the model.

    Raises:
        typer.BadParameter: The file cannot be read, a column does not exist, or a value is no number.
    """
    try:
        lines = (sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"cannot read {path}: {getattr(error, 'strerror', None) or error}", param_hint="--file") from error
    rows = [row for row in csv.reader(lines) if row]
    if not rows:
        raise typer.BadParameter(f"{path} holds no values", param_hint="--file")
    heading = None if all(_is_number(cell) for cell in rows[0]) else [cell.strip() for cell in rows[0]]
    chosen = _columns(heading, columns, len(rows[0]), features)
    if heading is not None and len(rows) == 1:
        raise typer.BadParameter(f"{path} holds a heading and no values", param_hint="--file")
    return _even([[_number(path, number, row, column) for column in chosen] for number, row in enumerate(rows, start=1) if heading is None or number > 1])


def _columns(heading: list[str] | None, names: Sequence[str], width: int, features: int) -> list[int]:
    if not names:
        return list(range(max(width - features, 0), width))
    missing = [name for name in names if heading is None or name not in heading]
    if missing or heading is None:
        known = f"it has {', '.join(heading)}" if heading else "its first line is not a heading"
        raise typer.BadParameter(f"no column {', '.join(missing)}: {known}", param_hint="--column")
    return [heading.index(name) for name in names]


def _number(path: Path, number: int, row: list[str], column: int) -> float:
    try:
        return float(row[column])
    except (ValueError, IndexError):
        raise typer.BadParameter(f"{path}:{number}: column {column + 1} is not a number", param_hint="--file") from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _even(rows: list[list[float]]) -> Series:
    if len({len(row) for row in rows}) > 1:
        raise typer.BadParameter("every step must have as many features as the first")
    return np.array(rows, dtype=np.float64)
