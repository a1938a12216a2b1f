"""A store in memory: for servers that keep nothing, and the shortest form of the contract."""

import asyncio
import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from cellstate_service.clock import Clock
from cellstate_service.errors import Reason
from cellstate_service.sessions.stores.store import Answering, Claim, Grave, HeldError, Key, Record, Store, Write

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Kept:
    epoch: int
    holder: str
    clean: bool = False
    record: Record | None = None


@dataclass(slots=True)
class _Shared:
    """What stores have in common, as servers would have a database."""

    incarnation: str = field(default_factory=lambda: uuid.uuid4().hex)
    epochs: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    kept: dict[Key, _Kept] = field(default_factory=dict)
    graves: dict[Key, Grave] = field(default_factory=dict)
    leases: dict[str, float] = field(default_factory=dict)
    answering: dict[str, Answering] = field(default_factory=dict)


class MemoryStore(Store):
    """Keeps sessions in dictionaries. Several stores may share them.

    Args:
        holder: Name of this server.
        clock: Tells when leases and sessions end.
        shared: The store whose sessions this one has too; None for its own.
        graves: Sessions that are gone and remembered, at most.
    """

    def __init__(self, holder: str, clock: Clock, shared: "MemoryStore | None" = None, graves: int = 10_000) -> None:
        super().__init__(holder)
        self._clock = clock
        self._shared: _Shared = _Shared() if shared is None else shared._shared
        self._most_graves = graves
        self.shared = shared is not None

    async def open(self, lease_s: float) -> str:
        """See Store. What it had is lost with each start of the process."""
        await self.renew(lease_s)
        return self._shared.incarnation

    async def close(self) -> None:
        """See Store."""
        self._shared.leases.pop(self.holder, None)
        self._shared.answering.pop(self.holder, None)

    async def renew(self, lease_s: float) -> bool:
        """See Store."""
        ran = self._left_s(self.holder) > 0
        self._shared.leases[self.holder] = self._clock.now() + lease_s
        return ran

    async def lost(self, epochs: Mapping[Key, int]) -> set[Key]:
        """See Store."""
        return {key for key, epoch in epochs.items() if self._own(key, epoch) is None}

    async def claim(self, key: Key) -> Claim:
        """See Store."""
        kept = self._shared.kept.get(key)
        if kept is None:
            kept = self._shared.kept[key] = _Kept(0, "", clean=True)
        elif kept.holder not in ("", self.holder) and self._left_s(kept.holder) > 0:
            raise HeldError(kept.holder, self._left_s(kept.holder))
        kept.epoch, kept.holder = next(self._shared.epochs), self.holder
        clean, kept.clean = kept.clean, False
        return Claim(kept.epoch, kept.record, clean)

    async def release(self, key: Key, epoch: int, *, clean: bool = True) -> None:
        """See Store."""
        kept = self._own(key, epoch)
        if kept is None:
            return
        kept.holder, kept.clean = "", clean
        if kept.record is None:
            del self._shared.kept[key]

    async def save(self, writes: Sequence[Write], *, durable: bool) -> set[Key]:
        """See Store; what it keeps does not survive this process, whatever is asked."""
        refused = set()
        for write in writes:
            kept = self._own(write.key, write.epoch)
            if kept is None:
                refused.add(write.key)
            else:
                kept.record = write.record
        return refused

    async def remove(self, key: Key, epoch: int, grave: Grave | None) -> bool:
        """See Store."""
        if self._own(key, epoch) is None:
            return False
        del self._shared.kept[key]
        self._bury(key, grave)
        return True

    async def find(self, key: Key) -> Record | None:
        """See Store."""
        kept = self._shared.kept.get(key)
        return None if kept is None else kept.record

    async def names(self, owner: str) -> list[str]:
        """See Store."""
        return sorted(key.name for key, kept in self._shared.kept.items() if key.owner == owner and kept.record is not None)

    async def grave(self, key: Key) -> Grave | None:
        """See Store."""
        return None if await self.find(key) is not None else self._shared.graves.get(key)

    async def expire(self) -> int:
        """See Store."""
        now_s = self._clock.now()
        due = [(key, kept.record) for key, kept in self._shared.kept.items() if kept.record is not None and kept.record.expires_s <= now_s and self._free(kept)]
        for key, record in due:
            del self._shared.kept[key]
            self._bury(key, Grave(Reason.SESSION_EXPIRED, record.position))
        return len(due)

    async def ask(self, holder: str, question: bytes, timeout_s: float) -> bytes | None:
        """See Store: those answer that share these dictionaries."""
        answering = self._shared.answering.get(holder)
        if answering is None:
            return None
        try:
            async with asyncio.timeout(timeout_s):
                return await answering(question)
        except TimeoutError:
            return None
        except Exception:
            log.exception("a question of another server could not be answered", holder=holder)
            return None

    def answer(self, answering: Answering) -> None:
        """See Store."""
        self._shared.answering[self.holder] = answering

    def _left_s(self, holder: str) -> float:
        return self._shared.leases.get(holder, 0.0) - self._clock.now()

    def _free(self, kept: _Kept) -> bool:
        """Tell whether nobody holds it: this server keeps what it claimed even where its lease has lapsed."""
        return kept.holder != self.holder and self._left_s(kept.holder) <= 0

    def _own(self, key: Key, epoch: int) -> _Kept | None:
        kept = self._shared.kept.get(key)
        return kept if kept is not None and kept.holder == self.holder and kept.epoch == epoch else None

    def _bury(self, key: Key, grave: Grave | None) -> None:
        graves = self._shared.graves
        graves.pop(key, None)
        if grave is not None:
            graves[key] = grave
        while len(graves) > self._most_graves:
            del graves[next(iter(graves))]
