"""The parts of a manifest: what a step takes and gives, the tokenizer, settings of generation. `manifest.py` puts them together."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MAX_WIDTH = 1 << 16
MAX_VOCABULARY = 1 << 24
MAX_LAYERS = 64

Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
Vocabulary = Annotated[int, Field(ge=1, le=MAX_VOCABULARY)]
Magnitude = Annotated[float, Field(ge=-1e30, le=1e30)]
Scale = Annotated[float, Field(ge=1e-30, le=1e30)]
Label = Annotated[str, Field(min_length=1, max_length=256)]
Mode = Literal["one_to_one", "many_to_one", "one_to_many", "many_to_many"]


def fault(key: str, detail: str) -> PydanticCustomError:
    """Return the error of a check that concerns `key`, relative to the model that is validated."""
    return PydanticCustomError("manifest", "{detail}", {"key": key, "detail": detail})


def check_length(key: str, values: Sequence[object], features: int) -> None:
    """Raise the fault of `key` unless it has one value for each feature, or none."""
    if values and len(values) != features:
        raise fault(key, f"{len(values)} values for {features} features")


class Section(BaseModel):
    """What all parts of the manifest share: strict types, no unknown keys, no changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Normalization(Section):
    """Model units to normalized units and back: `normalized = (x - mean) / scale`, one value for each feature."""

    mean: Annotated[tuple[Magnitude, ...], Field(strict=False)]
    scale: Annotated[tuple[Scale, ...], Field(strict=False)]


class TokensInput(Section):
    """Token ids, looked up in an embedding."""

    kind: Literal["tokens"]
    vocabulary_size: Vocabulary
    embedding_dim: Width

    @property
    def size(self) -> int:
        """Token ids are below this."""
        return self.vocabulary_size


class NumericValues(Section):
    """Vectors of numbers in model units."""

    kind: Literal["numeric"]
    features: Width
    names: Annotated[tuple[Label, ...], Field(strict=False)] = ()
    normalization: Normalization | None = None

    @property
    def size(self) -> int:
        """Features of a vector."""
        return self.features

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        check_length("names", self.names, self.features)
        if self.normalization:
            for key, values in (("mean", self.normalization.mean), ("scale", self.normalization.scale)):
                if len(values) != self.features:
                    raise fault(f"normalization.{key}", f"{len(values)} values for {self.features} features")
        return self


class NumericInput(NumericValues):
    """Numeric vectors as input."""


class TokensOutput(Section):
    """Logits over a vocabulary."""

    kind: Literal["tokens"]
    vocabulary_size: Vocabulary

    @property
    def size(self) -> int:
        """Token ids are below this."""
        return self.vocabulary_size


class NumericOutput(NumericValues):
    """Numeric vectors as output: `y = activation(head) * scale + mean`."""

    activation: Literal["none", "softmax", "sigmoid"] = "none"
    labels: Annotated[tuple[Label, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        check_length("labels", self.labels, self.features)
        if self.labels and self.activation != "softmax":
            raise fault("labels", "classes are named only where activation is softmax")
        if self.normalization and self.activation != "none":
            raise fault("normalization", f"not taken with activation {self.activation}")
        return self


class CharactersChoice(Section):
    """A token for each character; its id is the character's index."""

    kind: Literal["characters"]
    characters: Annotated[str, Field(min_length=1, max_length=0x110000)]

    @model_validator(mode="after")
    def _check_distinct(self) -> Self:
        seen: set[str] = set()
        for index, character in enumerate(self.characters):
            if character in seen:
                raise fault("characters", f"{character!r} again at index {index}")
            seen.add(character)
        return self


class BytesChoice(Section):
    """A token for each byte of UTF-8 text; ids from 256 on have no text."""

    kind: Literal["bytes"]


class HuggingFaceChoice(Section):
    """A `tokenizer.json` that lies in the model folder."""

    kind: Literal["huggingface"]
    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$")] = "tokenizer.json"


class Generation(Section):
    """Settings of generation that a call may leave unset."""

    max_steps: Annotated[int, Field(ge=1, le=0xFFFF_FFFF)] = 200
    max_steps_limit: Annotated[int, Field(ge=1, le=0xFFFF_FFFF)] = 1_000_000
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=MAX_VOCABULARY)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    @model_validator(mode="after")
    def _check_limit(self) -> Self:
        if self.max_steps > self.max_steps_limit:
            raise fault("max_steps", f"{self.max_steps} is above max_steps_limit, {self.max_steps_limit}")
        return self
