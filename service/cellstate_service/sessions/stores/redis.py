"""A store in Redis 7: what several servers share, so that each can serve any session.

Sessions are changed by scripts only (`redis_scripts.py`, where the keys are listed), so that a claim is compared and its record set in one step. Leases end by
the clock of the Redis server. A session that nobody holds ends by its key's time to live; one that is held has none, because its holder decides: where the
holder dies, `expire` of another one gives it an end. Scripts make up names of keys, so a Redis cluster is not supported; a primary with replicas is.
"""

import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import quote, unquote

from redis.exceptions import ResponseError

from cellstate_service.errors import Reason
from cellstate_service.sessions.stores import redis_scripts as scripts
from cellstate_service.sessions.stores.redis_asking import RedisAsking
from cellstate_service.sessions.stores.redis_link import BATCH, Argument, Call, RedisLink
from cellstate_service.sessions.stores.store import Answering, Claim, Grave, HeldError, Key, Record, Store, StoreError, Write

OLDEST_VERSION = 7
GRAVE_MS = 7 * 86_400_000
"""For so long after its end a session is remembered."""
LEFT_MS = 15 * 60_000
"""For so long a server whose lease lapsed, and that was taken for dead, finds again what nobody else took."""
BATCH_BYTES = 4 << 20
"""Records in one round trip."""
MOST_DOUBTFUL = 10_000
"""Claims that may have been made without this server knowing, at most."""


class _Doubt(NamedTuple):
    """Claims on a session that were not answered.

    Attributes:
        first, last: Their numbers.
    """

    first: int
    last: int


class RedisStore(Store):
    """Keeps sessions in a Redis server.

    Args:
        holder: Name of this server, of this start of it.
        url: `redis://[[user]:password@]host[:port][/database]`, or `rediss://` for TLS.
        prefix: Of all keys.
        timeout_s: For connecting and for each answer; whatever is asked of a Redis that is away fails after twice that at the latest.
        slack_s: For so long after its end a session is still there, for servers whose clocks differ.

    Raises:
        StoreError: The URL cannot be read.
    """

    shared = True

    def __init__(self, holder: str, url: str, prefix: str = "cellstate", timeout_s: float = 2.0, slack_s: float = 60.0) -> None:
        super().__init__(holder)
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._slack_ms = _ms(slack_s)
        self._me = quote(holder, safe="")
        self._by = uuid.uuid4().hex
        self._link = RedisLink(url, timeout_s)
        self._asking = RedisAsking(self._link, prefix, self._me)
        self._numbers = itertools.count(1)
        self._renewed: int | None = None
        self._run = b""
        self._highest_epoch = 0
        self._doubtful: dict[Key, _Doubt] = {}

    async def open(self, lease_s: float) -> str:
        """See Store.

        Raises:
            StoreError: It cannot be reached, is older than Redis 7, or is a cluster.
        """
        facts = await self._link.told(self._link.client.info("server"))
        if int(str(facts["redis_version"]).partition(".")[0]) < OLDEST_VERSION:
            raise StoreError(f"the Redis server is of version {facts['redis_version']}: version {OLDEST_VERSION} or newer is needed")
        if facts.get("redis_mode") == "cluster":
            raise StoreError("the Redis server is a cluster, which is not supported: name one that is not, with or without replicas")
        self._renewed = None
        _, incarnation = await self._renew(lease_s)
        await self._asking.start(self._timeout_s)
        return incarnation

    async def secures(self) -> bool:
        """Tell whether what was answered survives the loss of power: an append-only file that is synced with each write. False where Redis does not say."""
        try:
            facts = await self._link.told(self._link.client.config_get("append*"))
        except StoreError as error:
            if isinstance(error.__cause__, ResponseError):
                return False
            raise
        return bool(facts.get("appendonly") == "yes" and facts.get("appendfsync") == "always")

    async def close(self) -> None:
        """See Store."""
        await self._asking.close()
        with suppress(StoreError):
            await self._link.told(self._link.client.delete(self._lease(self._me)))
        await self._link.close()

    async def renew(self, lease_s: float) -> bool:
        """See Store. False also where Redis was started anew, or has older data than before: what was claimed last may be missing then."""
        before, run = self._renewed, self._run
        since, _ = await self._renew(lease_s)
        await self._undo_doubtful()
        return before is not None and since <= before and self._run == run

    async def lost(self, epochs: Mapping[Key, int]) -> set[Key]:
        """See Store."""
        calls = [Call(scripts.KEEP, [self._session(key), self._held(self._me)], [self._me, epoch]) for key, epoch in epochs.items()]
        return {key for key, kept in zip(epochs, await self._link.together(calls), strict=True) if not kept}

    async def claim(self, key: Key) -> Claim:
        """See Store. Where the answer was lost, the session may be claimed all the same: it is given back with the next renewal."""
        number = next(self._numbers)
        doubt = self._doubtful.pop(key, None)
        first = number if doubt is None else doubt.first
        keys = [self._session(key), self._key("epoch"), self._held(self._me)]
        arguments: list[Argument] = [self._me, self._by, number, first, self._highest_epoch, self._lease("")]
        try:
            kind, *rest = await self._link.call(Call(scripts.CLAIM, keys, arguments))
        except BaseException:
            self._doubt(key, _Doubt(first, number))
            raise
        if kind == b"held":
            raise HeldError(unquote(rest[0].decode()), int(rest[1]) / 1000)
        if kind == b"late":
            raise StoreError("the session was claimed twice at once: claim it again")
        epoch, clean, *values = rest
        self._highest_epoch = max(self._highest_epoch, int(epoch))
        return Claim(int(epoch), _record(values), clean == b"1")

    async def release(self, key: Key, epoch: int, *, clean: bool = True) -> None:
        """See Store."""
        keys = [self._session(key), self._held(self._me), self._names(key.owner)]
        await self._link.call(Call(scripts.RELEASE, keys, [*self._as(epoch), key.name, self._slack_ms, GRAVE_MS, int(clean)]))

    async def save(self, writes: Sequence[Write], *, durable: bool) -> set[Key]:
        """See Store. Whether it survives the loss of power is up to how the Redis server is set up: see `secures`."""
        refused: set[Key] = set()
        for batch in _batches(writes):
            keys = [name for write in batch for name in (self._session(write.key), self._names(write.key.owner), self._grave(write.key))]
            arguments: list[Argument] = [self._me, self._by, next(self._numbers), GRAVE_MS]
            for write in batch:
                record = write.record
                arguments += [write.epoch, write.key.name, record.uid, record.position, repr(record.expires_s), record.data]
            stored = await self._link.call(Call(scripts.SAVE, keys, arguments))
            refused.update(write.key for write, done in zip(batch, stored, strict=True) if not done)
        return refused

    async def remove(self, key: Key, epoch: int, grave: Grave | None) -> bool:
        """See Store."""
        text = "" if grave is None else f"{grave.reason.value} {grave.position}"
        keys = [self._session(key), self._held(self._me), self._names(key.owner), self._grave(key)]
        return bool(await self._link.call(Call(scripts.REMOVE, keys, [*self._as(epoch), key.name, text, GRAVE_MS])))

    async def find(self, key: Key) -> Record | None:
        """See Store."""
        return _record(await self._link.told(self._link.client.hmget(self._session(key), ["uid", "position", "expires_s", "data"])))

    async def names(self, owner: str) -> list[str]:
        """See Store."""
        index = self._names(owner)
        found = sorted(name.decode() for name in await self._link.told(self._link.client.smembers(index)))
        batches = [found[first : first + BATCH] for first in range(0, len(found), BATCH)]
        calls = [Call(scripts.STORED, [index, *(self._session(Key(owner, name)) for name in batch)], batch) for batch in batches]
        stored = itertools.chain.from_iterable(await self._link.together(calls))
        return list(itertools.compress(found, stored))

    async def grave(self, key: Key) -> Grave | None:
        """See Store."""
        text = await self._link.told(self._link.client.get(self._grave(key)))
        if text is None or await self._link.told(self._link.client.hexists(self._session(key), "data")):
            return None
        reason, _, position = text.decode().partition(" ")
        return Grave(Reason(reason), int(position))

    async def expire(self) -> int:
        """See Store: Redis strikes out by itself, uncounted, once it is told the end of what dead servers held."""
        for holder in await self._link.told(self._link.client.smembers(self._key("holders"))):
            other = holder.decode()
            call = Call(scripts.SWEEP, [self._lease(other), self._held(other), self._key("holders")], [other, BATCH, self._slack_ms, LEFT_MS])
            while other != self._me and await self._link.call(call) == BATCH:
                pass
        return 0

    async def ask(self, holder: str, question: bytes, timeout_s: float) -> bytes | None:
        """See Store."""
        return await self._asking.ask(quote(holder, safe=""), question, timeout_s)

    def answer(self, answering: Answering) -> None:
        """See Store."""
        self._asking.answer(answering)

    async def _renew(self, lease_s: float) -> tuple[int, str]:
        """Renew the lease; return the number of the renewal since which it has not lapsed, and the incarnation."""
        number = next(self._numbers)
        keys = [self._lease(self._me), self._key("holders"), self._key("incarnation")]
        last = "" if self._renewed is None else self._renewed
        since, incarnation, run = await self._link.call(Call(scripts.RENEW, keys, [self._me, number, last, _ms(lease_s), uuid.uuid4().hex]))
        self._renewed, self._run = number, run
        return int(since), incarnation.decode()

    def _doubt(self, key: Key, doubt: _Doubt) -> None:
        self._doubtful[key] = doubt
        if len(self._doubtful) > MOST_DOUBTFUL:
            del self._doubtful[next(iter(self._doubtful))]

    async def _undo_doubtful(self) -> None:
        """Give back the claims that were not answered: nobody here knows of them."""
        doubtful = dict(self._doubtful)
        calls = [
            Call(scripts.UNCLAIM, [self._session(key), self._held(self._me)], [self._me, self._by, next(self._numbers), doubt.first, self._slack_ms])
            for key, doubt in doubtful.items()
        ]
        with suppress(StoreError):
            await self._link.together(calls)
            for key, doubt in doubtful.items():
                if self._doubtful.get(key) == doubt:  # otherwise it was claimed meanwhile
                    del self._doubtful[key]

    def _as(self, epoch: int) -> list[Argument]:
        return [self._me, self._by, next(self._numbers), epoch]

    def _key(self, *parts: str) -> str:
        return ":".join([self._prefix, *parts])

    def _lease(self, holder: str) -> str:
        return self._key("holder", holder)

    def _held(self, holder: str) -> str:
        return self._key("held", holder)

    def _session(self, key: Key) -> str:
        return self._key("session", *_escaped(key))

    def _names(self, owner: str) -> str:
        return self._key("names", quote(owner, safe=""))

    def _grave(self, key: Key) -> str:
        return self._key("grave", *_escaped(key))


def _escaped(key: Key) -> tuple[str, str]:
    return quote(key.owner, safe=""), quote(key.name, safe="")


def _record(values: Sequence[bytes | None]) -> Record | None:
    uid, position, expires_s, data = values
    if uid is None or position is None or expires_s is None or data is None:
        return None
    return Record(uid.decode(), int(position), float(expires_s), data)


def _batches(writes: Sequence[Write]) -> Iterator[list[Write]]:
    batch: list[Write] = []
    size = 0
    for write in writes:
        if batch and (len(batch) == BATCH or size + len(write.record.data) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(write)
        size += len(write.record.data)
    if batch:
        yield batch


def _ms(seconds: float) -> int:
    return max(1, round(1000 * seconds))
