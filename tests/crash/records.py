"""What sessions asked and what they got: plain data that goes to another process to be checked. Nothing of the server or of gRPC."""

from dataclasses import dataclass, field
from typing import Any

Piece = tuple[int, int, Any]
"""An output as it came: position of its first step, position after its last, values: text, token ids or float32 [T, width]; None where there were none."""


@dataclass
class Draws:
    """How tokens are drawn; a seed that is None is the session's."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def options(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p, "seed": self.seed}


@dataclass
class Exchange:
    """What was asked in one go (inputs in chunks, then generation), and what came.

    Attributes:
        kind: The call it was made by, for reports.
        chunks: Inputs: token ids, or numbers [T, features].
        emit: Which of their outputs were asked for: all, last (of each chunk), end (the very last) or none.
        form: text, tokens, values or logits.
        draws: How tokens are drawn; None for numeric models.
        steps: Steps to generate at most; None where nothing was to be generated.
        stops: Stop sequences, as text.
        pieces: Outputs, in the order they came.
        done: It was answered to its end; what follows is what that said (None where that kind of call says nothing).
    """

    kind: str
    chunks: list[Any]
    emit: str
    form: str
    draws: Draws | None = None
    steps: int | None = None
    stops: tuple[str, ...] = ()
    pieces: list[Piece] = field(default_factory=list)
    done: bool = False
    reason: str | None = None
    position: int | None = None
    generated: int | None = None


@dataclass
class Transcript:
    """All that one session asked and got, in order."""

    name: str
    model: str
    modes: str
    durability: str
    seed: int
    exchanges: list[Exchange] = field(default_factory=list)


@dataclass
class Verdict:
    """What a check found: steps that had to be taken, and what differs."""

    steps: int
    differences: list[str]
