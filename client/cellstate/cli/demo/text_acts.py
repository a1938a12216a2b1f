"""Acts on the language model: text that appears token by token, many callers in one batch, a session that goes on."""

import time
from concurrent.futures import ThreadPoolExecutor

from rich.columns import Columns
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from cellstate import Client
from cellstate.cli.console import speed
from cellstate.cli.demo.stage import ActError, Stage

MODEL = "shakespeare"
SEED = 1616
_PROMPT = "ROMEO:\n"
_STEPS = 500
_CALLERS = ("ROMEO", "JULIET", "KING RICHARD III", "MENENIUS", "GLOUCESTER", "LADY ANNE", "PETRUCHIO", "PROSPERO")
_CALLER_STEPS = 220
_SESSION_STEPS = 60
_FRAMES_PER_S = 6
_PANEL_LINES = 5


def write_text(client: Client, stage: Stage) -> None:
    """One-to-many: a prompt predicts text, shown as it is generated."""
    stage.heading("one-to-many", "a prompt predicts a sequence: text, token by token")
    stage.write(_PROMPT, "bold")
    begun = time.perf_counter()
    first_s: float | None = None
    stream = client.one_to_many(MODEL, _PROMPT, max_steps=_STEPS, temperature=0.7, seed=SEED)
    for output in stream:
        first_s = first_s if first_s is not None else time.perf_counter() - begun
        stage.write(output.text, "bright_cyan")
    seconds = time.perf_counter() - begun
    stage.say("")
    steps = stream.completion.generated_steps if stream.completion else 0
    stage.figures(f"{speed(steps, 'tokens', seconds)}, the first after {(first_s or 0.0) * 1e3:.1f} ms")
    if steps != _STEPS:
        raise ActError(f"asked for {_STEPS} tokens and got {steps}")


def write_together(client: Client, stage: Stage) -> None:
    """One-to-many, eight callers at once: one batch advances them all."""
    stage.heading("one-to-many", f"{len(_CALLERS)} callers at once: every step advances them all together")
    texts = dict.fromkeys(_CALLERS, "")
    begun = time.perf_counter()
    with ThreadPoolExecutor(len(_CALLERS)) as pool:
        calls = [pool.submit(_write_one, client, name, SEED + index, texts) for index, name in enumerate(_CALLERS)]
        if stage.rich:
            with Live(console=stage.console, auto_refresh=False, transient=False) as live:
                while not all(call.done() for call in calls):
                    live.update(_panels(texts, stage.width), refresh=True)
                    time.sleep(1 / _FRAMES_PER_S)
                live.update(_panels(texts, stage.width), refresh=True)
        steps = sum(call.result() for call in calls)
    seconds = time.perf_counter() - begun
    if not stage.rich:
        for name, text in texts.items():
            stage.say(f"  {name}: {' '.join(text.split())[:100]}")
    stage.figures(f"{speed(steps, 'tokens', seconds)} over {len(_CALLERS)} streams")


def go_on(client: Client, stage: Stage) -> None:
    """A session: two calls give what one call gives."""
    stage.heading("session", "the server keeps the state: two calls give what one call gives")
    with client.session(MODEL, seed=SEED) as whole, client.session(MODEL, seed=SEED) as halves:
        expected = "".join(output.text for output in whole.one_to_many(_PROMPT, max_steps=2 * _SESSION_STEPS))
        first = "".join(output.text for output in halves.one_to_many(_PROMPT, max_steps=_SESSION_STEPS))
        stage.write(_PROMPT, "bold")
        stage.write(first, "bright_cyan")
        second = "".join(output.text for output in halves.one_to_many(max_steps=_SESSION_STEPS))
        stage.say(second, "bright_magenta")
        same_state = whole.info().state_digest == halves.info().state_digest
    if first + second != expected or not same_state:
        raise ActError("a session that went on differs from one call")
    stage.figures(f"{_SESSION_STEPS} + {_SESSION_STEPS} tokens equal one call of {2 * _SESSION_STEPS}; the state too, bit for bit")


def _write_one(client: Client, name: str, seed: int, texts: dict[str, str]) -> int:
    stream = client.one_to_many(MODEL, f"{name}:\n", max_steps=_CALLER_STEPS, temperature=0.7, seed=seed)
    for output in stream:
        texts[name] += output.text
    return stream.completion.generated_steps if stream.completion else 0


def _panels(texts: dict[str, str], width: int) -> Columns:
    inner = width // 2 - 4
    panels = []
    for name, text in texts.items():
        lines = [line[start : start + inner] for line in text.splitlines() for start in range(0, max(len(line), 1), inner)]
        body = "\n".join(lines[-_PANEL_LINES:])
        panels.append(Panel(Text(body, style="bright_cyan"), title=name, title_align="left", width=width // 2, height=_PANEL_LINES + 2, border_style="dim"))
    return Columns(panels, padding=0, width=width // 2)
