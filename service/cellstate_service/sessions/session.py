"""A session as the event loop knows it, and the plain data that creates and changes one."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from cellstate_service.engine.engine import Engine
from cellstate_service.engine.resident import Resident, ResidentState
from cellstate_service.errors import InvalidInput
from cellstate_service.sessions.stores.store import Key

if TYPE_CHECKING:
    from cellstate_service.sessions.call import Call

NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
LABEL = re.compile(r"[A-Za-z0-9._/-]{1,63}")
LABEL_VALUE = re.compile(r"[A-Za-z0-9._/-]{0,63}")
MAX_LABELS = 32


class Durability(Enum):
    """What a session survives."""

    MEMORY = auto()
    PERIODIC = auto()
    SYNC = auto()


@dataclass(frozen=True, slots=True)
class Expiration:
    """When a session ends: so many seconds after its last use, or at a time (seconds since the epoch) unless used before. At most one is set."""

    ttl_s: float | None = None
    at_s: float | None = None


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What a caller asks of a new session. What is None or empty, the server chooses.

    Attributes:
        uid: Of a request that may be repeated: where there is a session of that name and uid, it was made by the same request before.
    """

    name: str = ""
    uid: str = ""
    model: str = ""
    seed: int | None = None
    durability: Durability | None = None
    expiration: Expiration = field(default_factory=Expiration)
    labels: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Check name and labels.

        Raises:
            InvalidInput: Naming the field and the bound.
        """
        if self.name and not NAME.fullmatch(self.name):
            raise InvalidInput("session.name: 1 to 128 characters of A-Z a-z 0-9 . _ - are allowed", field="session.name")
        check_labels(self.labels)


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise InvalidInput unless there are at most 32 labels of allowed characters."""
    if len(labels) > MAX_LABELS:
        raise InvalidInput(f"session.labels: {len(labels)} are given, at most {MAX_LABELS} are allowed", field="session.labels")
    for key, value in labels.items():
        if not LABEL.fullmatch(key) or not LABEL_VALUE.fullmatch(value):
            raise InvalidInput("session.labels: keys and values are at most 63 characters of A-Z a-z 0-9 . _ / -, keys at least 1", field="session.labels")


@dataclass(slots=True, eq=False)
class Session:
    """A session that is resident: its state is in a slot of this server.

    Attributes:
        idle_ttl_s: Seconds that it lives unused; None where an absolute end was given.
        expires_s, created_s, used_s: Seconds since the epoch.
        call: The one call that is on it.
        watched_s: When the book looks next whether it has expired.
        pins: Calls and operations that need it to stay resident.
        epoch: Of this server's claim on it in the store.
        saved: What the store has of it; None where that is nothing.
    """

    owner: str
    name: str
    uid: str
    engine: Engine
    resident: Resident
    durability: Durability
    labels: Mapping[str, str]
    created_s: float
    used_s: float
    expires_s: float
    idle_ttl_s: float | None
    call: "Call | None" = None
    watched_s: float | None = None
    pins: int = 0
    epoch: int = 0
    saved: "Saved | None" = None

    @property
    def key(self) -> Key:
        """Its place in the store."""
        return Key(self.owner, self.name)

    @property
    def is_idle(self) -> bool:
        """Whether nobody needs it to stay resident."""
        return self.call is None and not self.pins

    @property
    def safe_position(self) -> int | None:
        """The newest position that the store has; None where whatever is answered is secured."""
        return self.saved.position if self.durability is Durability.PERIODIC and self.saved is not None else None

    @property
    def moved(self) -> bool:
        """Whether it has taken steps since it was saved."""
        return self.saved is None or self.saved.position != self.resident.position

    def use(self, now_s: float) -> None:
        """Renew the expiry."""
        self.used_s = now_s
        if self.idle_ttl_s is not None:
            self.expires_s = now_s + self.idle_ttl_s


class Saved(NamedTuple):
    """What the store has of a session.

    Attributes:
        position: Of the state.
        expires_s: When it ends unless used.
        at_s: When it was saved, in seconds of a clock that never goes back.
    """

    position: int
    expires_s: float
    at_s: float


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What its owner may know of a session, resident or stored. Times in seconds since the epoch."""

    name: str
    uid: str
    owner: str
    model: str
    model_digest: str
    numerics_id: str
    position: int
    seed: int
    durability: Durability
    labels: Mapping[str, str]
    created_s: float
    used_s: float
    expires_s: float
    idle_ttl_s: float | None
    busy: bool
    state_bytes: int
    safe_position: int | None


def facts_of(session: Session) -> SessionFacts:
    """Return what there is to know of a resident session."""
    model = session.engine.model
    return SessionFacts(
        name=session.name,
        uid=session.uid,
        owner=session.owner,
        model=model.name,
        model_digest=model.digest,
        numerics_id=model.numerics_id,
        position=session.resident.position,
        seed=session.resident.seed,
        durability=session.durability,
        labels=session.labels,
        created_s=session.created_s,
        used_s=session.used_s,
        expires_s=session.expires_s,
        idle_ttl_s=session.idle_ttl_s,
        busy=session.call is not None,
        state_bytes=model.state_bytes,
        safe_position=session.safe_position,
    )


def state_digest(state: ResidentState) -> str:
    """Return the SHA-256 over position, state tensors by name and last output, in hexadecimal: equal digests mean equal bits."""
    digest = hashlib.sha256(f"position={state.position}".encode())
    for name in sorted(state.tensors):
        tensor = state.tensors[name]
        digest.update(f";{name}={tensor.shape};".encode())
        digest.update(tensor.astype("<f4", copy=False).tobytes())
    if state.last_output is not None:
        digest.update(b";output;")
        digest.update(state.last_output.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()
