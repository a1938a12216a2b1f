"""What a store of sessions does. Every store keeps this contract, and one suite of tests holds all of them to it.

A store keeps, for each session, its newest record and who holds it. Only the holder may write: a write carries the epoch under which the session was claimed
and is refused where that claim is not the session's any more. Epochs only grow, so whoever lost a session without noticing, or still writes to one that was
deleted and made again, can do no harm. A holder keeps what it claimed for as long as it renews its lease; where it does not, others may claim it.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cellstate_service.errors import Reason

Answering = Callable[[bytes], Awaitable[bytes]]


class Key(NamedTuple):
    """A session's place: nobody reaches another owner's."""

    owner: str
    name: str


@dataclass(frozen=True, slots=True)
class Record:
    """A session as it is stored.

    Attributes:
        uid: The session's uid.
        position: Steps taken; `data` is of this position.
        expires_s: When it ends unless used, in seconds since the epoch.
        data: The snapshot, versioned and checksummed by itself.
    """

    uid: str
    position: int
    expires_s: float
    data: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """A session that is this server's from now on.

    Attributes:
        epoch: Larger than that of any claim before; writes carry it.
        record: What is stored; None where nothing is.
        clean: Whoever held the session last gave it back, so that the record is its newest state. Otherwise there may have been a newer one.
    """

    epoch: int
    record: Record | None
    clean: bool


@dataclass(frozen=True, slots=True)
class Write:
    """A record to be stored by who claimed its session."""

    key: Key
    epoch: int
    record: Record


@dataclass(frozen=True, slots=True)
class Grave:
    """What is remembered of a session that is gone.

    Attributes:
        reason: Why it is gone.
        position: Where it stood; 0 where that is not known.
    """

    reason: Reason
    position: int


class StoreError(Exception):
    """A store cannot do what it was asked; the message says what is wrong with it. Nothing of a batch that raised this is promised."""


class StoreAwayError(StoreError):
    """A store cannot be reached at present. It may be later, without a change to what this server was told."""


class HeldError(Exception):
    """Another server, whose lease runs, holds the session.

    Attributes:
        holder: Which one.
        for_s: Seconds after which its lease ends, unless it renews it.
    """

    def __init__(self, holder: str, for_s: float) -> None:
        super().__init__(f"the session is held by {holder}, whose lease runs for {for_s:.1f} s more")
        self.holder = holder
        self.for_s = for_s


class Store(ABC):
    """Keeps sessions. All methods are called from the event loop and do not block it.

    Args:
        holder: Name of this server, of this start of it.

    Attributes:
        shared: Other servers may have the store too, so that a lease can lapse.

    Raises, from every method but `close`:
        StoreError: The store cannot be reached or written.
    """

    shared = False

    def __init__(self, holder: str) -> None:
        self.holder = holder

    @abstractmethod
    async def open(self, lease_s: float) -> str:
        """Make it ready, with a lease for `lease_s`, and return the incarnation: another one where the store lost what it had."""

    @abstractmethod
    async def close(self) -> None:
        """Finish what was begun, and end the lease."""

    @abstractmethod
    async def renew(self, lease_s: float) -> bool:
        """Renew the lease over all that this server holds; False where it had lapsed: `lost` tells what others have taken since."""

    @abstractmethod
    async def lost(self, epochs: Mapping[Key, int]) -> set[Key]:
        """Return those of the claims that are not this server's any more."""

    @abstractmethod
    async def claim(self, key: Key) -> Claim:
        """Make a session this server's, whether it is stored or not.

        Raises:
            HeldError: Another server holds it.
        """

    @abstractmethod
    async def release(self, key: Key, epoch: int, *, clean: bool = True) -> None:
        """Give a session back. Where that is `clean`, what was saved last is its newest state. Nothing happens where the claim was lost."""

    @abstractmethod
    async def save(self, writes: Sequence[Write], *, durable: bool) -> set[Key]:
        """Store records, each instead of the one before, and return the keys of those that were refused because their claim was lost.

        With `durable` they survive the loss of power once this returns, otherwise the death of this process.
        """

    @abstractmethod
    async def remove(self, key: Key, epoch: int, grave: Grave | None) -> bool:
        """Strike a session out with its claim, and remember why where a grave is given; return False where the claim was lost."""

    @abstractmethod
    async def find(self, key: Key) -> Record | None:
        """Return what is stored, without a claim."""

    @abstractmethod
    async def names(self, owner: str) -> list[str]:
        """Return the names of an owner's stored sessions, sorted."""

    @abstractmethod
    async def grave(self, key: Key) -> Grave | None:
        """Return why a session is gone, where that is remembered and no session of that name is stored."""

    @abstractmethod
    async def expire(self) -> int:
        """Strike out the sessions whose time has run out and that nobody holds, remember that they expired, and return how many, where that is known."""

    @abstractmethod
    async def ask(self, holder: str, question: bytes, timeout_s: float) -> bytes | None:
        """Ask another server that shares this store and return its answer; None where none came in time."""

    @abstractmethod
    def answer(self, answering: Answering) -> None:
        """Have what other servers ask this one answered by `answering`, from now on."""
