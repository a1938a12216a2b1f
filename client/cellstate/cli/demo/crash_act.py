"""The act in which the server is killed while it writes, and nobody who reads can tell."""

import threading
import time

from cellstate import Client
from cellstate.cli.demo.server import ServerProcess
from cellstate.cli.demo.stage import ActError, Stage
from cellstate.cli.demo.text_acts import MODEL, SEED

_PROMPT = "HAMLET:\n"
_STEPS = 400
_KILLED_AFTER = 150


def survive(client: Client, stage: Stage, server: ServerProcess) -> None:
    """Kill the server with -9 in the middle of a generation, start it again, and show that the loop that reads went on."""
    stage.heading("a crash", f"the server is killed with -9 after {_KILLED_AFTER} tokens and started again; the loop goes on")
    stage.write(_PROMPT, "bold")
    text, killer, killed, gap_s = "", threading.Thread(target=server.crash), False, 0.0
    with client.session(MODEL, seed=SEED) as session:
        last = time.perf_counter()
        for output in session.one_to_many(_PROMPT, max_steps=_STEPS, temperature=0.7):
            gap_s = max(gap_s, time.perf_counter() - last) if killed else 0.0
            last = time.perf_counter()
            text += output.text
            stage.write(output.text, "bright_magenta" if killed else "bright_cyan")
            if not killed and len(text) >= _KILLED_AFTER:
                killed = True
                killer.start()
        killer.join()
        digest = session.info().state_digest
    stage.say("")
    with client.session(MODEL, seed=SEED) as twin:
        expected = "".join(output.text for output in twin.one_to_many(_PROMPT, max_steps=_STEPS, temperature=0.7))
        same_state = twin.info().state_digest == digest
    if text != expected or not same_state:
        raise ActError("a generation that went on through a crash differs from one that nothing interrupted")
    stage.figures(
        f"{_STEPS} tokens equal a run that nothing interrupted, the state too, bit for bit; the pause was {gap_s:.1f} s, most of it the server's start"
    )
