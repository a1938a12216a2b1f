"""Draw docs/demo.svg: what `make demo` shows in a terminal of 100 columns.

Needs tmux. It plays the demo in a terminal that nobody sees, and draws the lines that are on it at the end.

    .venv/bin/python scripts/demo_picture.py docs/demo-top.svg --first 1 --last 29
"""

import argparse
import io
import subprocess
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS, LINES, PATIENCE_S = 100, 200, 120.0
SESSION = "cellstate-demo-picture"


def play() -> str:
    """Play the demo and return the terminal's lines, with their colours."""
    tmux = ["tmux", "-u"]
    subprocess.run(
        [
            *tmux,
            "new-session",
            "-d",
            "-s",
            SESSION,
            "-x",
            str(COLUMNS),
            "-y",
            str(LINES),
            "env PS1= TERM=xterm-256color COLORTERM=truecolor bash --norc --noprofile",
        ],
        check=True,
    )
    try:
        subprocess.run([*tmux, "send-keys", "-t", SESSION, "clear; .venv/bin/cellstate demo; echo picture-is-$?-done", "Enter"], check=True)
        until_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < until_s:
            screen = subprocess.run([*tmux, "capture-pane", "-t", SESSION, "-e", "-p"], check=True, capture_output=True, text=True).stdout
            if "picture-is-0-done" in screen:
                return screen
            time.sleep(0.5)
        raise SystemExit(f"the demo did not end well within {PATIENCE_S:.0f} s:\n{screen}")
    finally:
        subprocess.run([*tmux, "kill-session", "-t", SESSION], check=False)


def main() -> None:
    """Read the command line, play, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--first", type=int, default=1, help="first line to draw")
    parser.add_argument("--last", type=int, default=LINES, help="last line to draw")
    arguments = parser.parse_args()
    lines = [line for line in play().split("\n") if "picture-is-" not in line and "cellstate demo" not in line]
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi("\n".join(lines[arguments.first - 1 : arguments.last]).rstrip("\n")))
    arguments.out.write_text(console.export_svg(title="make demo"), encoding="utf-8")
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
