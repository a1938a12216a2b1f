"""The real data that the demo shows beside what the models predict."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt


class DataError(Exception):
    """A file of the demo's data is not there or not as expected; the message names it."""


@dataclass(frozen=True, eq=False)
class YearlySeries:
    """Years [T] and their values, float64 [T]."""

    years: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures, float32 [N, 64] in rows of 8 with values from 0 to 16, and their labels."""

    pixels: npt.NDArray[np.float32]
    labels: tuple[str, ...]


def read_sunspots(folder: Path) -> YearlySeries:
    """Read `sunspots.csv`: columns year and value.

    Raises:
        DataError: The file is not there, or a row is not as expected.
    """
    rows = _read(folder / "sunspots.csv", 2)
    return YearlySeries(np.array([int(float(row[0])) for row in rows]), np.array([float(row[1]) for row in rows]))


def read_digits(folder: Path) -> Pictures:
    """Read `digits.csv`: 64 pixels and a label.

    Raises:
        DataError: The file is not there, or a row is not as expected.
    """
    rows = _read(folder / "digits.csv", 65)
    return Pictures(np.array([[float(cell) for cell in row[:64]] for row in rows], dtype=np.float32), tuple(row[64] for row in rows))


def _read(path: Path, columns: int) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(line for line in file if not line.startswith("#")) if row]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; run from a checkout of the project, or name the folder by --data") from error
    if len(rows) < 2 or any(len(row) != columns for row in rows):
        raise DataError(f"{path}: must hold a heading and rows of {columns} columns")
    return rows[1:]
