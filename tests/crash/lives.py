"""A session's life: what it asks, what it has got so far, and what was going on when something went wrong."""

import random
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import cellstate
from tests.crash.faces import Face
from tests.crash.records import Draws, Exchange, Transcript
from tests.models_on_disk import CHARACTERS
from tests.proxy import Proxy

SAMPLINGS = (
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"temperature": 1.0},
    {"temperature": 1.2, "top_k": 9},
    {"temperature": 1.0, "top_p": 0.7},
    {"temperature": 0.9, "top_k": 20, "top_p": 0.9},
)


VOCABULARY = len(CHARACTERS)


@dataclass(frozen=True)
class ModelKind:
    """A model of the harness: what it takes.

    Attributes:
        name: Its name.
        features: Numbers of one step; None where it takes tokens, which are characters.
    """

    name: str
    features: int | None


class Tally:
    """What all lives add up to while they run.

    Attributes:
        recoveries_s: From each kill to the first new output of each session that had been running.
        moves: Times that a session got an output from another server than the one before.
        resumed: Generations that were under way when their connection or server went, and were completed.
        repeats_sent, repeats_answered, repeats_refused: Raw duplicates.
        repeated_by_caller: Calls that the library does not repeat, which the harness made again, by kind.
        lost: Sessions of MEMORY that went with their server, as they may.
        wrong: What should not have happened, in words.
    """

    def __init__(self) -> None:
        self.recoveries_s: list[float] = []
        self.moves = self.resumed = self.lost = self.sessions = 0
        self.repeats_sent = self.repeats_answered = self.repeats_refused = 0
        self.repeated_by_caller: dict[str, int] = {}
        self.wrong: list[str] = []


@dataclass(eq=False)
class Life:
    """One session.

    Attributes:
        model: Its model.
        door: The proxy that it goes through.
        face: Calls the library.
        random: Decides what it asks.
        transcript: For the check.
        tally: Shared.
        session: The library's handle, once it is created.
        current: What it asked and was not answered in full; None between calls.
        interrupted: Its generation was under way when its connection or server went.
        killed_s: When its server was killed, while it waits for its first output since.
    """

    model: ModelKind
    door: Proxy
    face: Face
    random: random.Random
    transcript: Transcript
    tally: Tally
    session: Any = None
    current: Exchange | None = None
    interrupted: bool = False
    killed_s: float | None = None
    _reaches: int | None = field(default=None, repr=False)

    # -- what it asks

    def ask(self, kind: str, chunks: list[Any], **asked: Any) -> Exchange:
        """Note that something is asked, before it is."""
        if self.model.features is None:
            asked.setdefault("draws", self.draws())
        self.current = Exchange(kind, chunks, **asked)
        self.interrupted = False
        self.transcript.exchanges.append(self.current)
        return self.current

    def draws(self) -> Draws:
        """Choose how tokens are drawn: mostly with the session's own seed."""
        seed = None if self.random.random() < 0.7 else self.random.getrandbits(64)
        return Draws(seed=seed, **self.random.choice(SAMPLINGS))

    def chunk(self, most: int) -> Any:
        """Choose one chunk of input."""
        steps = self.random.randint(1, most)
        if self.model.features is None:
            return [self.random.randrange(VOCABULARY) for _ in range(steps)]
        return numbers(self.random, steps, self.model.features)

    def form(self, *more: str) -> str:
        """Choose a form of outputs."""
        return "values" if self.model.features is not None else self.random.choice(("tokens", "text", *more))

    # -- what it gets

    def got(self, output: cellstate.Output) -> None:
        """Note an output."""
        if self.current is None:
            self.tally.wrong.append(f"{self.transcript.name}: an output came that nobody asked for")
            return
        self.current.pieces.append((output.first_position, output.position, output.data))
        now = time.monotonic()
        if self.killed_s is not None and self.door.connected_s > self.killed_s:
            self.tally.recoveries_s.append(now - self.killed_s)
            self.killed_s = None
        reaches = self.door.reaches
        self.tally.moves += self._reaches is not None and reaches != self._reaches
        self._reaches = reaches

    def done(self, completion: cellstate.Completion | None = None, *, position: int | None = None) -> None:
        """Note that it was answered to its end."""
        exchange, self.current, self.killed_s = self.current, None, None
        assert exchange is not None
        exchange.done, exchange.position = True, position
        if completion is not None:
            exchange.reason, exchange.position, exchange.generated = completion.reason.value, completion.position, completion.generated_steps
        self.tally.resumed += self.interrupted and exchange.steps is not None

    # -- what goes wrong

    @property
    def generates(self) -> bool:
        """Whether a generation is under way: something of it came, and not its end."""
        return self.current is not None and self.current.steps is not None and bool(self.current.pieces)

    def lost_connection(self, *, killed: bool) -> None:
        """Hear that its connection, or its server, goes."""
        self.interrupted = self.interrupted or self.generates
        if killed and self.current is not None and self.killed_s is None:
            self.killed_s = time.monotonic()


def numbers(chooser: random.Random, steps: int, features: int) -> Any:
    """Choose numbers float32 [steps, features]."""
    return np.array([[chooser.uniform(-2, 2) for _ in range(features)] for _ in range(steps)], dtype=np.float32)
