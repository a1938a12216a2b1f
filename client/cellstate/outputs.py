"""What comes out: outputs, results and completions, with numpy arrays and text in them. No protobuf in here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from cellstate.inputs import Array


class Emit(StrEnum):
    """Which outputs of consumed inputs are answered."""

    NONE = "none"
    LAST = "last"
    ALL = "all"


class Form(StrEnum):
    """The form in which outputs travel."""

    TEXT = "text"
    TOKENS = "tokens"
    VALUES = "values"
    LOGITS = "logits"


class FinishReason(StrEnum):
    """Why a program ended."""

    INPUT_CONSUMED = "input_consumed"
    MAX_STEPS = "max_steps"
    STOP_SEQUENCE = "stop_sequence"
    END_TOKEN = "end_token"  # noqa: S105 - not a secret
    STOP_DIRECTIVE = "stop_directive"
    UNKNOWN = "unknown"


@dataclass(frozen=True, eq=False)
class Output:
    """Outputs of contiguous steps. Read the property that fits the model: `text`, `tokens`, `values` or `logits`.

    Attributes:
        form: The form of the values; None where nothing was to be emitted.
        data: The values as they are: str, int64 [T] or float32 [T, features].
        first_position: Position of the first step whose output this is.
        position: The position after the last step that this covers.
        log_probabilities: float32 [T], one per drawn token, where asked for; natural logarithms.
        labels: Label of each step's most probable class, for models whose manifest names classes.
    """

    form: Form | None = None
    data: str | Array | None = None
    first_position: int = 0
    position: int = 0
    log_probabilities: Array | None = None
    labels: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The text of drawn tokens; "" where nothing was emitted."""
        return str(self._in_form(Form.TEXT, ""))

    @property
    def tokens(self) -> Array:
        """Ids of drawn tokens, int64 [T]; [0] where nothing was emitted."""
        return np.asarray(self._in_form(Form.TOKENS, np.zeros(0, np.int64)))

    @property
    def values(self) -> Array:
        """Numeric outputs in the model's units, float32 [T, features]; [0, 0] where nothing was emitted."""
        return np.asarray(self._in_form(Form.VALUES, np.zeros((0, 0), np.float32)))

    @property
    def logits(self) -> Array:
        """The head's raw outputs, float32 [T, vocabulary]; [0, 0] where nothing was emitted."""
        return np.asarray(self._in_form(Form.LOGITS, np.zeros((0, 0), np.float32)))

    @property
    def steps(self) -> int:
        """Number of steps that this covers."""
        return self.position - self.first_position

    def _in_form(self, form: Form, empty: str | Array) -> str | Array:
        if self.data is None or self.form is None:
            return empty
        if self.form is not form:
            advice = f"read .{self.form.value}, or ask with form={form.value!r} where the model offers it"
            raise TypeError(f"this output carries {self.form.value}, not {form.value}: {advice}")
        return self.data


@dataclass(frozen=True, eq=False)
class Completion:
    """How a program ended and what it took.

    Attributes:
        reason: Why it ended.
        position: Position after its last step.
        consumed_steps: Steps of input that it consumed.
        generated_steps: Steps that it generated.
        stop_sequence: The stop sequence that was completed: text or token ids.
        seed: Seed that the draws used: given again, with the same inputs, it gives the same outputs. None for numeric models.
        queue_wait_s: Seconds from acceptance to the first step.
        run_s: Seconds from the first step to the end of the last.
        safe_position: Newest position that the session's durability has secured; None where whatever is answered is secured.
    """

    reason: FinishReason
    position: int = 0
    consumed_steps: int = 0
    generated_steps: int = 0
    stop_sequence: str | Array | None = None
    seed: int | None = None
    queue_wait_s: float = 0.0
    run_s: float = 0.0
    safe_position: int | None = None

    @property
    def steps(self) -> int:
        """Steps taken in all."""
        return self.consumed_steps + self.generated_steps


@dataclass(frozen=True, eq=False)
class Result:
    """A program's outputs and how it ended. Its `text`, `tokens`, `values` and so on are those of `output`.

    Attributes:
        completion: How it ended.
        emitted: Outputs of its inputs.
        generated: Outputs that it generated; None where nothing was generated.
    """

    completion: Completion
    emitted: Output = field(default_factory=Output)
    generated: Output | None = None

    @property
    def output(self) -> Output:
        """What was generated, or else the outputs of the inputs."""
        return self.emitted if self.generated is None else self.generated

    @property
    def text(self) -> str:
        """See `Output.text`."""
        return self.output.text

    @property
    def tokens(self) -> Array:
        """See `Output.tokens`."""
        return self.output.tokens

    @property
    def values(self) -> Array:
        """See `Output.values`."""
        return self.output.values

    @property
    def logits(self) -> Array:
        """See `Output.logits`."""
        return self.output.logits

    @property
    def labels(self) -> tuple[str, ...]:
        """See `Output.labels`."""
        return self.output.labels

    @property
    def log_probabilities(self) -> Array | None:
        """See `Output.log_probabilities`."""
        return self.output.log_probabilities

    @property
    def position(self) -> int:
        """Position after the last step."""
        return self.completion.position


def join_outputs(outputs: Sequence[Output]) -> Output:
    """Return one output that covers all of `outputs`, which are contiguous and of one form."""
    if not outputs:
        return Output()
    filled = [output for output in outputs if output.data is not None]
    form = filled[0].form if filled else None
    data: str | Array | None = None
    if form is Form.TEXT:
        data = "".join(output.text for output in filled)
    elif filled:
        data = np.concatenate([np.asarray(output.data) for output in filled])
    probabilities = [output.log_probabilities for output in outputs if output.log_probabilities is not None]
    return Output(
        form=form,
        data=data,
        first_position=outputs[0].first_position,
        position=outputs[-1].position,
        log_probabilities=np.concatenate(probabilities) if probabilities else None,
        labels=tuple(label for output in outputs for label in output.labels),
    )
