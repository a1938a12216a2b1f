"""A session as the event loop knows it, and the plain data that creates and changes one."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from cellstate_service.engine.engine import Engine
from cellstate_service.engine.resident import Resident, ResidentState
from cellstate_service.errors import InvalidInput

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
    """What a caller asks of a new session. What is None or empty, the server chooses."""

    name: str = ""
    model: str = ""
    seed: int | None = None
    durability: Durability | None = None
    expiration: Expiration = field(default_factory=Expiration)
    labels: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Check name, labels and durability.

        Raises:
            InvalidInput: Naming the field and the bound.
        """
        if self.name and not NAME.fullmatch(self.name):
            raise InvalidInput("session.name: 1 to 128 characters of A-Z a-z 0-9 . _ - are allowed", field="session.name")
        check_labels(self.labels)
        check_durability(self.durability)


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise InvalidInput unless there are at most 32 labels of allowed characters."""
    if len(labels) > MAX_LABELS:
        raise InvalidInput(f"session.labels: {len(labels)} are given, at most {MAX_LABELS} are allowed", field="session.labels")
    for key, value in labels.items():
        if not LABEL.fullmatch(key) or not LABEL_VALUE.fullmatch(value):
            raise InvalidInput("session.labels: keys and values are at most 63 characters of A-Z a-z 0-9 . _ / -, keys at least 1", field="session.labels")


def check_durability(durability: Durability | None) -> None:
    """Raise InvalidInput unless the server offers the durability."""
    if durability not in (None, Durability.MEMORY):
        raise InvalidInput(
            "session.durability: this server keeps no store, so it offers MEMORY only; leave it unset for the default",
            field="session.durability",
        )


@dataclass(slots=True, eq=False)
class Session:
    """A caller's conversation with a model.

    Attributes:
        number: Rises with each session made: the order of listing.
        idle_ttl_s: Seconds that it lives unused; None where an absolute end was given.
        expires_s, created_s, used_s: Seconds since the epoch.
        call: The one call that is on it.
        watched_s: When the manager looks next whether it has expired.
    """

    owner: str
    name: str
    uid: str
    number: int
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

    def use(self, now_s: float) -> None:
        """Renew the expiry."""
        self.used_s = now_s
        if self.idle_ttl_s is not None:
            self.expires_s = now_s + self.idle_ttl_s


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
