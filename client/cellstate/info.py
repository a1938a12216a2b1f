"""What the server tells of models and sessions, as frozen dataclasses. No protobuf in here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from cellstate.inputs import Array


class Mode(StrEnum):
    """The four ways of mapping sequences, one for each kind of RPC."""

    ONE_TO_ONE = "one_to_one"
    MANY_TO_ONE = "many_to_one"
    ONE_TO_MANY = "one_to_many"
    MANY_TO_MANY = "many_to_many"
    UNKNOWN = "unknown"


class CellKind(StrEnum):
    """What computes a step."""

    LSTM = "lstm"
    GRU = "gru"
    RNN_TANH = "rnn_tanh"
    RNN_RELU = "rnn_relu"
    FEED_FORWARD = "feed_forward"
    MODULE = "module"
    UNKNOWN = "unknown"


class ValueKind(StrEnum):
    """What a step takes or gives."""

    TOKENS = "tokens"
    NUMERIC = "numeric"
    UNKNOWN = "unknown"


class Durability(StrEnum):
    """What a session survives: a cut connection; also the death of the server or of the caller; both at once."""

    MEMORY = "memory"
    PERIODIC = "periodic"
    SYNC = "sync"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class ValueSignature:
    """What a step takes or gives.

    Attributes:
        kind: Tokens or numeric.
        size: Vocabulary size or feature count.
        text: Text is taken or given too.
        names: Names of the features or classes, where the manifest gives them.
    """

    kind: ValueKind
    size: int
    text: bool = False
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class StateSignature:
    """A state tensor of one session: its name, numpy dtype and shape [layers, width]."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class GenerationDefaults:
    """Settings of generation that a call may leave out. Those of draws are None for numeric models."""

    max_steps: int
    max_steps_limit: int
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None


@dataclass(frozen=True, eq=False)
class ModelInfo:
    """A loaded model.

    Attributes:
        name: Its name.
        description: One sentence from its manifest.
        version: Version, where the repository has several.
        cell: What computes a step.
        num_layers: Layers of cells, or of the feed-forward network.
        hidden_size: Width of a layer.
        proj_size: Width of a layer's output where it is projected, else 0.
        parameters: Number of parameters.
        input: What a step takes.
        output: What a step gives.
        state: State tensors of a session.
        state_bytes: Bytes of a session's state tensors.
        modes: Modes that it serves.
        generates: Its output can be its next input.
        start: What generation begins with at position 0 (text, token ids, or values); None where that is refused.
        defaults: Defaults of generation; None where the model does not generate.
        digest: SHA-256 of its manifest and weights, in hexadecimal.
        numerics_id: What its values depend on besides model and inputs; within one, values have the same bits.
        batch_invariant: A session's values do not depend on who shares its batch.
        batch_invariant_reason: Why not, where they do.
        dtype: Numpy dtype of the computation.
        load_time: When it was loaded.
    """

    name: str
    description: str
    version: str
    cell: CellKind
    num_layers: int
    hidden_size: int
    proj_size: int
    parameters: int
    input: ValueSignature
    output: ValueSignature
    state: tuple[StateSignature, ...]
    state_bytes: int
    modes: tuple[Mode, ...]
    generates: bool
    start: str | Array | None
    defaults: GenerationDefaults | None
    digest: str
    numerics_id: str
    batch_invariant: bool
    batch_invariant_reason: str
    dtype: str
    load_time: datetime | None


@dataclass(frozen=True)
class SessionInfo:
    """A session as the server sees it.

    Attributes:
        name: Scoped by its owner.
        uid: Made by the server; create, import and reset make a new one.
        model: Name of its model.
        position: Number of steps it has taken.
        seed: Seed of draws that name none; None for numeric models.
        durability: What it survives.
        labels: Labels.
        owner: The principal that created it.
        model_digest: Digest of the model that it is bound to.
        numerics_id: See `ModelInfo.numerics_id`.
        state_bytes: Bytes of its state tensors.
        state_digest: SHA-256 over position, state and last output: equal digests mean equal bits. Answered by `info` only.
        busy: A call is on it.
        create_time: When it was created.
        use_time: Last call that used it.
        expire_time: When it ends unless used before.
        idle_ttl_s: Seconds that it lives unused; None where an absolute end was given.
        safe_position: See `Completion.safe_position`.
    """

    name: str
    uid: str
    model: str
    position: int = 0
    seed: int | None = None
    durability: Durability = Durability.UNKNOWN
    labels: Mapping[str, str] = field(default_factory=dict)
    owner: str = ""
    model_digest: str = ""
    numerics_id: str = ""
    state_bytes: int = 0
    state_digest: str = ""
    busy: bool = False
    create_time: datetime | None = None
    use_time: datetime | None = None
    expire_time: datetime | None = None
    idle_ttl_s: float | None = None
    safe_position: int | None = None
