from pathlib import Path

import pytest
import typer

from cellstate.cli.series import parse_arguments, read_csv


def write(folder: Path, text: str) -> Path:
    path = folder / "series.csv"
    path.write_text(text)
    return path


def test_arguments_are_steps() -> None:
    assert parse_arguments(["1", "-2.5", "3e2"]).tolist() == [[1.0], [-2.5], [300.0]]


def test_features_are_separated_by_commas() -> None:
    assert parse_arguments(["1,2", "3,4"]).tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(("texts", "said"), [(["one"], "'one' is not a number"), (["1,2", "3"], "as many features")])
def test_bad_arguments_are_named(texts: list[str], said: str) -> None:
    with pytest.raises(typer.BadParameter, match=said):
        parse_arguments(texts)


def test_last_column_is_taken(tmp_path: Path) -> None:
    assert read_csv(write(tmp_path, "year,value\n1700,5\n1701,11\n"), [], 1).tolist() == [[5.0], [11.0]]


def test_heading_is_optional(tmp_path: Path) -> None:
    assert read_csv(write(tmp_path, "5\n\n11\n"), [], 1).tolist() == [[5.0], [11.0]]


def test_columns_are_taken_by_name(tmp_path: Path) -> None:
    assert read_csv(write(tmp_path, "a, b ,c\n1,2,3\n"), ["c", "b"], 2).tolist() == [[3.0, 2.0]]


@pytest.mark.parametrize(
    ("text", "columns", "said"),
    [
        ("", [], "holds no values"),
        ("a\n1\nx\n", [], r"series\.csv:3: column 1 is not a number"),
        ("a,b\n1,2\n", ["c"], "no column c: it has a, b"),
        ("1,2\n", ["c"], "its first line is not a heading"),
    ],
)
def test_bad_files_are_told(tmp_path: Path, text: str, columns: list[str], said: str) -> None:
    with pytest.raises(typer.BadParameter, match=said):
        read_csv(write(tmp_path, text), columns, 1)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match=r"cannot read .*absent\.csv: No such file"):
        read_csv(tmp_path / "absent.csv", [], 1)
