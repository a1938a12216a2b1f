"""Small line charts in text: braille dots in a terminal, plain characters elsewhere."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

#: Bit of each dot of a braille character, by row and column.
_BRAILLE_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BRAILLE_BLANK = 0x2800
_DOTS_ACROSS, _DOTS_DOWN = 2, 4


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: What the legend calls it.
        values: Its heights; nan leaves a gap.
        style: Colour in a terminal.
        mark: Character in plain text.
        start: Index on the x axis of the first value.
    """

    name: str
    values: Sequence[float]
    style: str
    mark: str
    start: int = 0


@dataclass(frozen=True)
class Frame:
    """Size and looks of a chart.

    Attributes:
        width: Characters across, without the scale on the left.
        height: Characters down.
        braille: Draw with braille dots; without, with each line's mark.
        x_labels: What stands below the first and the last column.
    """

    width: int = 64
    height: int = 9
    braille: bool = True
    x_labels: tuple[str, str] = ("", "")


def render_chart(lines: Sequence[Line], frame: Frame) -> Text:
    """Draw lines over a common axis; later lines lie on top.

    Raises:
        ValueError: No line has a finite value.
    """
    values = [value for line in lines for value in line.values if math.isfinite(value)]
    if not values:
        raise ValueError("nothing to draw: no finite value")
    low, high = min(values), max(values)
    canvas = _Canvas(frame, columns=max(line.start + len(line.values) for line in lines), low=low, high=high)
    for line in lines:
        canvas.draw(line)
    scale = [f"{high:.4g}", *[""] * (frame.height - 2), f"{low:.4g}"] if frame.height > 1 else [f"{high:.4g}"]
    margin = max(len(label) for label in scale)
    chart = Text()
    for label, row in zip(scale, canvas.rows(), strict=True):
        chart.append(f"{label:>{margin}} {'┤' if frame.braille else '|'}", style="dim")
        chart.append_text(row)
        chart.append("\n")
    chart.append(" " * (margin + 2) + _x_axis(frame) + "\n", style="dim")
    chart.append(" " * (margin + 2))
    chart.append_text(_legend(lines, braille=frame.braille))
    return chart


class _Canvas:
    """Dots of a chart, and the style of each character's last dot."""

    def __init__(self, frame: Frame, columns: int, low: float, high: float) -> None:
        self._frame = frame
        self._across = frame.width * (_DOTS_ACROSS if frame.braille else 1)
        self._down = frame.height * (_DOTS_DOWN if frame.braille else 1)
        self._last_column = max(columns - 1, 1)
        self._low = low
        self._span = (high - low) or 1.0
        self._bits = [[0] * frame.width for _ in range(frame.height)]
        self._marks = [[" "] * frame.width for _ in range(frame.height)]
        self._styles = [[""] * frame.width for _ in range(frame.height)]

    def draw(self, line: Line) -> None:
        previous: tuple[int, int] | None = None
        for index, value in enumerate(line.values):
            if not math.isfinite(value):
                previous = None
                continue
            dot = self._dot(line.start + index, value)
            for x, y in _between(previous, dot) if previous and self._frame.braille else [dot]:
                self._set(x, y, line)
            previous = dot

    def rows(self) -> list[Text]:
        rows = []
        for bits, marks, styles in zip(self._bits, self._marks, self._styles, strict=True):
            row = Text()
            for bit, mark, style in zip(bits, marks, styles, strict=True):
                row.append(chr(_BRAILLE_BLANK + bit) if bit else mark, style=style)
            row.rstrip()
            rows.append(row)
        return rows

    def _dot(self, column: int, value: float) -> tuple[int, int]:
        x = round(column * (self._across - 1) / self._last_column)
        y = round((1.0 - (value - self._low) / self._span) * (self._down - 1))
        return x, y

    def _set(self, x: int, y: int, line: Line) -> None:
        if self._frame.braille:
            row, column = y // _DOTS_DOWN, x // _DOTS_ACROSS
            self._bits[row][column] |= _BRAILLE_BITS[y % _DOTS_DOWN][x % _DOTS_ACROSS]
        else:
            row, column = y, x
            self._marks[row][column] = line.mark
        self._styles[row][column] = line.style


def _between(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the dots of a straight line from `start` to `end`, both included."""
    (x0, y0), (x1, y1) = start, end
    count = max(abs(x1 - x0), abs(y1 - y0), 1)
    return [(round(x0 + (x1 - x0) * i / count), round(y0 + (y1 - y0) * i / count)) for i in range(count + 1)]


def _x_axis(frame: Frame) -> str:
    first, last = frame.x_labels
    return f"{first}{last:>{max(frame.width - len(first), 0)}}"


def _legend(lines: Sequence[Line], *, braille: bool) -> Text:
    legend = Text()
    for line in lines:
        legend.append("━━ " if braille else f"{line.mark} ", style=line.style)
        legend.append(f"{line.name}   ")
    legend.rstrip()
    return legend
