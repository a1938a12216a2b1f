"""The real data that the demo shows beside what the models predict."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

_PIXELS = 64


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


@dataclass(frozen=True, eq=False)
class DemoData:
    """All of it."""

    sunspots: YearlySeries
    digits: Pictures


def read_data(folder: Path) -> DemoData:
    """Read all files of the folder.

    Raises:
        DataError: A file is not there, or a row is not as expected.
    """
    return DemoData(read_sunspots(folder), read_digits(folder))


def read_sunspots(folder: Path) -> YearlySeries:
    """Read `sunspots.csv`: columns year and value."""
    rows = _read(folder / "sunspots.csv", ["year", "value"])
    return YearlySeries(np.array([int(row["year"]) for row in rows]), np.array([float(row["value"]) for row in rows]))


def read_digits(folder: Path) -> Pictures:
    """Read `digits.csv`: columns label and pixel_0 to pixel_63."""
    pixels = [f"pixel_{index}" for index in range(_PIXELS)]
    rows = _read(folder / "digits.csv", ["label", *pixels])
    return Pictures(np.array([[float(row[pixel]) for pixel in pixels] for row in rows], dtype=np.float32), tuple(row["label"] for row in rows))


def _read(path: Path, columns: list[str]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; run from a checkout of the project, or name the folder by --data") from error
    if not rows or any(not row.get(column) for row in rows for column in columns):
        raise DataError(f"{path}: must hold rows of the columns {', '.join(columns[:2])}{' …' if len(columns) > 2 else ''}")
    return rows
