"""The manifest of a model folder, `model.yaml`: what a model is, checked before anything is read or allocated for it.

Tensors are not looked at here; `weights.py` compares them with what the manifest declares.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from cellstate_service.models.errors import ModelError
from cellstate_service.models.files import parse_yaml, read_model_file
from cellstate_service.models.sections import (
    MAX_LAYERS,
    MAX_WIDTH,
    BytesChoice,
    CharactersChoice,
    Generation,
    HuggingFaceChoice,
    Magnitude,
    Mode,
    NumericInput,
    NumericOutput,
    Section,
    TokensInput,
    TokensOutput,
    Width,
    check_length,
    fault,
)

MANIFEST_FILE = "model.yaml"
MAX_MANIFEST_BYTES = 8 << 20

Input = Annotated[TokensInput | NumericInput, Field(discriminator="kind")]
Output = Annotated[TokensOutput | NumericOutput, Field(discriminator="kind")]
TokenizerChoice = Annotated[CharactersChoice | BytesChoice | HuggingFaceChoice, Field(discriminator="kind")]
Dtype = Literal["float32", "bfloat16"]
"""What matrix products are computed in. State, sums of products and everything between them are float32."""
Start = str | int | float | Annotated[tuple[Magnitude, ...], Field(strict=False)]


class CommonManifest(Section):
    """What both kinds of model declare."""

    format: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    description: Annotated[str, Field(max_length=1024)] = ""
    input: Input
    output: Output
    tokenizer: TokenizerChoice | None = None
    declared_modes: Annotated[tuple[Mode, ...], Field(strict=False, alias="modes")] = ()
    start: Start | None = None
    end_token: Annotated[int, Field(ge=0)] | None = None
    generation: Generation = Generation()
    dtype: Dtype = "float32"

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        vocabularies = {side: values.size for side, values in (("input", self.input), ("output", self.output)) if values.kind == "tokens"}
        if self.tokenizer and not vocabularies:
            raise fault("tokenizer", "neither input nor output is tokens")
        for side, size in vocabularies.items():
            if isinstance(self.tokenizer, CharactersChoice) and len(self.tokenizer.characters) != size:
                raise fault("tokenizer.characters", f"{len(self.tokenizer.characters)} characters for {side}.vocabulary_size {size}")
            if isinstance(self.tokenizer, BytesChoice) and size < 256:
                raise fault("tokenizer", f"256 bytes for {side}.vocabulary_size {size}")
        if self.end_token is not None and self.end_token >= vocabularies.get("output", 0):
            raise fault("end_token", f"{self.end_token} is not below output.vocabulary_size, {vocabularies.get('output', 'which is not declared')}")
        return self

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        start = self.start
        if start is None:
            return self
        if isinstance(self.input, TokensInput):
            if isinstance(start, str) and not self.tokenizer:
                raise fault("start", "text needs a tokenizer")
            if not isinstance(start, str | int):
                raise fault("start", "text or a token id is needed")
            if isinstance(start, int) and not 0 <= start < self.input.vocabulary_size:
                raise fault("start", f"{start} is not a token id below input.vocabulary_size, {self.input.vocabulary_size}")
            return self
        if isinstance(start, str):
            raise fault("start", "a number or a list of numbers is needed")
        check_length("start", start if isinstance(start, tuple) else (start,), self.input.features)
        if start == ():
            raise fault("start", f"0 values for {self.input.features} features")
        return self


class RecurrentManifest(CommonManifest):
    """Embedding or normalization, then stacked cells, then a head."""

    kind: Literal["recurrent"]
    cell: Literal["lstm", "gru", "rnn_tanh", "rnn_relu"]
    num_layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)]
    hidden_size: Width
    bias: bool = True
    proj_size: Annotated[int, Field(ge=0, le=MAX_WIDTH)] = 0
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _check_cell(self) -> Self:
        if self.proj_size and self.cell != "lstm":
            raise fault("proj_size", f"cell {self.cell} takes none")
        if self.proj_size >= self.hidden_size:
            raise fault("proj_size", f"{self.proj_size} is not below hidden_size, {self.hidden_size}")
        if "one_to_many" in self.declared_modes and not self.generates:
            raise fault("modes", "one_to_many needs an output that can be the next input")
        return self

    @property
    def generates(self) -> bool:
        """Its output can be its next input: tokens of the same vocabulary, or as many features in as out."""
        return self.input.kind == self.output.kind and self.input.size == self.output.size

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes declared, else all that make sense."""
        generating: tuple[Mode, ...] = ("one_to_many",) if self.generates else ()
        return self.declared_modes or ("one_to_one", "many_to_one", *generating, "many_to_many")


class FeedForwardManifest(CommonManifest):
    """Embedding or normalization, then hidden layers with an activation, then a head. No state."""

    kind: Literal["feed_forward"]
    hidden_sizes: Annotated[tuple[Width, ...], Field(strict=False, max_length=MAX_LAYERS)] = ()
    activation: Literal["relu", "tanh", "sigmoid", "gelu"] = "relu"

    @model_validator(mode="after")
    def _check_modes(self) -> Self:
        for mode in self.declared_modes:
            if mode not in {"one_to_one", "many_to_many"}:
                raise fault("modes", f"{mode} needs a recurrent model")
        return self

    @property
    def cell(self) -> Literal["feed_forward"]:
        """Without recurrence there is no cell."""
        return "feed_forward"

    @property
    def num_layers(self) -> int:
        """Hidden layers."""
        return len(self.hidden_sizes)

    @property
    def hidden_size(self) -> int:
        """Width of the widest hidden layer, 0 where there is none."""
        return max(self.hidden_sizes, default=0)

    @property
    def proj_size(self) -> int:
        """Without cells nothing is projected."""
        return 0

    @property
    def generates(self) -> bool:
        """Without state nothing is generated."""
        return False

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes declared, else one-to-one."""
        return self.declared_modes or ("one_to_one",)


Manifest = RecurrentManifest | FeedForwardManifest
_KINDS: dict[str, type[RecurrentManifest | FeedForwardManifest]] = {"recurrent": RecurrentManifest, "feed_forward": FeedForwardManifest}
_TAGS = {"tokens", "numeric", "characters", "bytes", "huggingface"}


def load_manifest(folder: Path) -> Manifest:
    """Read and check `folder/model.yaml`.

    Raises:
        ModelError: It cannot be read or fails a check; the message names file and key.
    """
    path = folder / MANIFEST_FILE
    return parse_manifest(read_model_file(path, MAX_MANIFEST_BYTES), path)


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """Check the bytes of a manifest that was read from `path`; `path` is only named in errors.

    Raises:
        ModelError: A check fails; the message names file and key.
    """
    values = parse_yaml(data, path)
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ModelError(path, "kind", f"recurrent or feed_forward is needed, not {kind!r}" if "kind" in values else "missing")
    try:
        return _KINDS[kind].model_validate(values)
    except ValidationError as error:
        raise _told(error, path) from None


def _told(error: ValidationError, path: Path) -> ModelError:
    """Return the error of a manifest: the first fault's key, and all faults in words."""
    faults = [(_key(entry), _detail(entry)) for entry in error.errors(include_url=False)]
    key, detail = faults[0]
    return ModelError(path, key, "; ".join((detail, *(f"{other}: {words}" for other, words in faults[1:8]))))


def _key(entry: ErrorDetails) -> str:
    """Return the dotted key of a fault, without the tags that pydantic puts between a choice and its keys."""
    location = [str(part) for index, part in enumerate(entry["loc"]) if not (index == 1 and part in _TAGS)]
    if entry["loc"][:1] == ("start",):
        location = ["start"]
    if entry["type"] == "manifest":
        location.append(entry["ctx"]["key"])
    return ".".join(location)


def _detail(entry: ErrorDetails) -> str:
    """Return what is wrong, with the value that was given where it is short."""
    words = {"extra_forbidden": "unknown key", "missing": "missing"}.get(entry["type"])
    if words or entry["type"] == "manifest":
        return words or entry["msg"]
    given = repr(entry["input"])
    return f"{entry['msg']}, not {given if len(given) <= 60 else given[:57] + '...'}"
