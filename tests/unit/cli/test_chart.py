import pytest

from cellstate.cli.chart import Frame, Line, render_chart

NAN = float("nan")


def rows(lines: list[Line], **frame: object) -> list[str]:
    return render_chart(lines, Frame(**frame)).plain.splitlines()  # type: ignore[arg-type]


def test_rising_line_in_plain_characters() -> None:
    assert rows([Line("up", [0, 1, 2], "", "o")], width=3, height=3, braille=False, x_labels=("0", "2")) == [
        "2 |  o",
        "  | o",
        "0 |o",
        "   0 2",
        "   o up",
    ]


def test_rising_line_in_braille_joins_its_points() -> None:
    drawn = rows([Line("up", [0, 3], "", "o")], width=2, height=1, x_labels=("", ""))

    assert drawn[0] == "3 ┤⡠⠊"


def test_later_line_lies_on_top_and_may_start_later() -> None:
    lines = [Line("truth", [1, 1, 1], "", "."), Line("forecast", [1], "", "o", start=2)]

    assert rows(lines, width=3, height=1, braille=False)[0] == "1 |..o"


def test_gaps_are_left_out() -> None:
    assert rows([Line("a", [1, NAN, 1], "", "o")], width=3, height=1, braille=False)[0] == "1 |o o"


def test_constant_line_is_drawn() -> None:
    assert "o" in "".join(rows([Line("a", [5, 5], "", "o")], width=4, height=3, braille=False)[:3])


@pytest.mark.parametrize("values", [[], [NAN]])
def test_nothing_to_draw_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        render_chart([Line("a", values, "", "o")], Frame())


@pytest.mark.parametrize("braille", [True, False])
def test_no_row_is_wider_than_the_frame(braille: bool) -> None:
    lines = [Line("a", [float(i * i % 37) for i in range(500)], "red", "o")]
    chart = render_chart(lines, Frame(width=40, height=8, braille=braille, x_labels=("1700", "2200")))

    assert max(len(row) for row in chart.plain.splitlines()) <= 40 + len("36 |")
