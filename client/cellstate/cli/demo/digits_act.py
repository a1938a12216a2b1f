"""One-to-one: pictures of digits, each drawn with what the feed-forward model reads in it."""

import time

import numpy as np
import numpy.typing as npt
from rich.text import Text

from cellstate import Client, values
from cellstate.cli.demo.data import Pictures
from cellstate.cli.demo.stage import Stage

MODEL = "digits"
_SHOWN = 4
_SIDE = 8
_GAP = "   "
_BRIGHTEST = 16.0
_SHADES = " ░▒▓█"
_PLAIN_SHADES = " .:*#"


def read_digits_aloud(client: Client, stage: Stage, pictures: Pictures) -> None:
    """Show a few pictures with the predicted label and its probability."""
    stage.heading("one-to-one", "one value in, one value out: handwritten digits")
    chosen = _one_per_label(pictures)
    begun = time.perf_counter()
    results = [client.one_to_one(MODEL, values(pictures.pixels[index])) for index in chosen]
    seconds = time.perf_counter() - begun
    for row in range(_SIDE):
        stage.say(Text("  ") + _row(pictures.pixels[chosen], row, stage))
    captions, right = Text("  "), 0
    for index, result in zip(chosen, results, strict=True):
        label, probability = result.labels[0], float(result.values[0].max())
        correct = label == pictures.labels[index]
        right += correct
        note = f"{label}  {probability:.0%}" if correct else f"{label}  {probability:.0%} (is {pictures.labels[index]})"
        captions.append(f"{note:^{2 * _SIDE}}{_GAP}", style="bold bright_green" if correct else "bold bright_red")
    stage.say(captions)
    stage.figures(f"read by a feed-forward network: {right} of {len(chosen)} right, {seconds / len(chosen) * 1e3:.1f} ms per call")


def _one_per_label(pictures: Pictures) -> list[int]:
    """Return the first picture of each of the first few labels that come."""
    chosen: dict[str, int] = {}
    for index, label in enumerate(pictures.labels):
        chosen.setdefault(label, index)
    return list(chosen.values())[:_SHOWN]


def _row(pixels: npt.NDArray[np.float32], row: int, stage: Stage) -> Text:
    shades = _SHADES if stage.rich else _PLAIN_SHADES
    line = Text()
    for picture in pixels:
        for value in picture.reshape(_SIDE, _SIDE)[row]:
            line.append(2 * shades[min(int(value / _BRIGHTEST * len(shades)), len(shades) - 1)], style="bright_yellow")
        line.append(_GAP)
    return line
