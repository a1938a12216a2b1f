"""Where the demo is shown: rich in a terminal, plain text elsewhere."""

from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.rule import Rule
from rich.style import Style
from rich.text import Text

from cellstate.cli.chart import Frame, Line, render_chart
from cellstate.cli.console import draws_braille

_MAX_WIDTH = 100


class ActError(Exception):
    """An act did not show what it promises; the message tells what came instead."""


class Stage:
    """A console, and what all acts of the demo do on it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rich = draws_braille(console)
        self._colors = console.color_system is not None and not console.no_color
        self.width = min(console.width, _MAX_WIDTH)

    def heading(self, mode: str, title: str) -> None:
        """Announce an act by its mode and what it shows."""
        self.console.print()
        if self.rich:
            text = Text.assemble((f" {mode} ", "bold black on bright_cyan"), "  ", (title, "bold"))
            self.say(text)
        else:
            self.say(f"== {mode}: {title}")

    def say(self, text: str | Text, style: str = "") -> None:
        """Print a line."""
        self.console.print(text, style=style, markup=False, soft_wrap=True)

    def figures(self, text: str) -> None:
        """Print a line of figures that closes an act."""
        self.say(f"  {'▸' if self.rich else '->'} {text}", style="dim")

    def write(self, text: str, style: str = "") -> None:
        """Print a piece of text that goes on, at once. Cheap, since the server need not wait for a reader that is slow."""
        self.console.file.write(Style.parse(style).render(text) if self._colors else text)
        self.console.file.flush()

    def show(self, renderable: RenderableType) -> None:
        """Print anything that rich renders."""
        self.console.print(renderable)

    def chart(self, lines: Sequence[Line], x_labels: tuple[str, str], height: int = 10) -> None:
        """Draw lines."""
        self.show(render_chart(lines, Frame(width=min(self.width - 12, 76), height=height, braille=self.rich, x_labels=x_labels)))

    def rule(self, title: str = "") -> None:
        """Draw a line across."""
        self.console.print(Rule(title, style="dim", characters="─" if self.rich else "-"), width=self.width)
