"""What is handed to the engine (requests) and what comes back (events). Plain data: no tensors, no I/O."""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cellstate_service.errors import CellstateError

if TYPE_CHECKING:
    from cellstate_service.engine.outbox import Outbox

MANY_STEPS = 1 << 62
Inputs = NDArray[np.int64] | NDArray[np.float32]


class Emit(Enum):
    """Which outputs of consumed inputs are answered."""

    NONE = auto()
    LAST = auto()
    ALL = auto()


class Form(Enum):
    """The form in which outputs are answered."""

    TEXT = auto()
    TOKENS = auto()
    VALUES = auto()
    LOGITS = auto()

    @property
    def draws(self) -> bool:
        """Whether a token is drawn from the output."""
        return self in (Form.TEXT, Form.TOKENS)


class Finish(Enum):
    """Why a request ended."""

    INPUT_CONSUMED = auto()
    MAX_STEPS = auto()
    STOP_SEQUENCE = auto()
    END_TOKEN = auto()
    STOP_DIRECTIVE = auto()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn. Temperature 0 takes the most probable; `top_k` 0 keeps all; without a seed the session's counts."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """What to generate: at most `max_steps` steps, or up to the end of a stop sequence."""

    max_steps: int
    stop_texts: tuple[str, ...] = ()
    stop_tokens: tuple[tuple[int, ...], ...] = ()


@dataclass(slots=True, eq=False)
class Request:
    """Consume T inputs, emit (all, last or none) of their outputs, then generate N steps.

    Without inputs and without generation it takes no step and answers the session's last output.

    Attributes:
        outbox: Where its events go.
        inputs: Token ids int64 [T] or values float32 [T, features] in model units; None consumes nothing.
        emit: Which outputs of the inputs are answered.
        form: The form of the outputs.
        sampling: How tokens are drawn.
        generation: What to generate afterwards; None generates nothing.
        generation_sampling: How tokens are drawn in generation, where that differs from `sampling`.
        log_probabilities: Also answer the log-probability of each drawn token.
        position: Position that the session must have before the first step.
        end_position: Position at which it ends before its time: it was ended there when it was made first. Together with `position`, or behind one that has it.
        deadline_s: Monotonic time after which no further step is taken.
        of_text: Its inputs were text, so its caller does not know how many steps they are.
        is_stop: A marker behind a stopped generation: taking its turn answers the stop.
        refusal: A message that cannot be applied: taking its turn fails the call, after all that came before it.
        accepted_s: Monotonic time of acceptance.

    The fields after these are the engine thread's own record of progress.
    """

    outbox: "Outbox"
    inputs: Inputs | None = None
    emit: Emit = Emit.NONE
    form: Form = Form.VALUES
    sampling: Sampling = field(default_factory=Sampling)
    generation: Generation | None = None
    generation_sampling: Sampling | None = None
    log_probabilities: bool = False
    position: int | None = None
    end_position: int | None = None
    deadline_s: float | None = None
    of_text: bool = False
    is_stop: bool = False
    refusal: CellstateError | None = None
    accepted_s: float = 0.0

    consumed: int = 0
    generated: int = 0
    started_s: float | None = None
    stop_requested: bool = False

    @property
    def input_steps(self) -> int:
        """Number of steps of input."""
        return 0 if self.inputs is None else len(self.inputs)

    def drawing(self, *, generated: bool) -> Sampling:
        """Return how tokens are drawn, in generation or from outputs of inputs."""
        return self.generation_sampling or self.sampling if generated else self.sampling

    def taking(self, steps: int) -> Inputs:
        """Return the next steps of input."""
        if self.inputs is None:
            raise ValueError("the request has no inputs")
        return self.inputs[self.consumed : self.consumed + steps]

    @property
    def steps_left(self) -> int:
        """Steps of input that it has left, and those that it may generate after them, as far as its reader has room for them."""
        generated = 0 if self.generation is None else min(self.generation.max_steps - self.generated, self.outbox.room)
        return min(self.input_steps - self.consumed + generated, self.steps_to_end)

    @property
    def steps_to_end(self) -> int:
        """Steps to the position at which it ends before its time; without one, more than anybody takes."""
        if self.end_position is None or self.position is None:
            return MANY_STEPS
        return self.end_position - self.position - self.consumed - self.generated

    @property
    def runs_ahead(self) -> bool:
        """Whether several steps may be taken before anything is told: it generates, after one more input at most, and no stop sequence may end it meanwhile."""
        generation = self.generation
        if generation is None or generation.stop_texts or generation.stop_tokens:
            return False
        left = self.input_steps - self.consumed
        return left == 0 or (left == 1 and self.emit is Emit.NONE)

    def answered(self, steps: int, asked: int) -> int:
        """Return how many outputs are answered of the next steps of input; `asked` of them were to be taken, and fewer were where a row failed."""
        if self.emit is Emit.ALL:
            return steps
        return int(self.emit is Emit.LAST and steps == asked and self.consumed + steps == self.input_steps)

    @property
    def consuming(self) -> bool:
        """Whether the next step takes an input (otherwise it generates)."""
        return self.consumed < self.input_steps


class Outputs(NamedTuple):
    """What contiguous steps emitted.

    Attributes:
        first_position: Position of the first step.
        values: One per step: token ids, or rows float32 [steps, features or vocabulary].
        text: Text that became complete with these tokens (form TEXT).
        log_probabilities: One per step where asked for, of the drawn tokens; else empty.
        generated: Whether the steps generated (otherwise they consumed inputs).
    """

    first_position: int
    values: "list[int] | NDArray[np.float32]"
    text: str
    log_probabilities: list[float]
    generated: bool

    @property
    def position(self) -> int:
        """Position after the last step."""
        return self.first_position + len(self.values)


class Finished(NamedTuple):
    """A request ended. `emit` and `generates` are the request's, so that whoever answers it need not keep it."""

    reason: Finish
    position: int
    consumed_steps: int
    generated_steps: int
    stop_sequence: "str | tuple[int, ...] | None"
    seed: int | None
    queue_wait_s: float
    run_s: float
    emit: Emit
    generates: bool


class StopTaken(NamedTuple):
    """A stop directive took effect."""

    position: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A request failed; those behind it in the same call are dropped."""

    error: CellstateError


Event = Outputs | Finished | StopTaken | Failed
