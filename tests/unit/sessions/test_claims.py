"""What a server has claimed and does not need any more is given back, at once or when the store is there again."""

import pytest

from cellstate_service.errors import Reason
from cellstate_service.observability.metrics import Metrics
from cellstate_service.sessions.claims import Claims
from cellstate_service.sessions.stores.memory import MemoryStore
from cellstate_service.sessions.stores.store import Claim, Grave, HeldError, Key, Record, StoreError, Write
from tests.fake_clock import FakeClock

KEY = Key("ada", "a")
CLOSED = Grave(Reason.SESSION_CLOSED, 3)


class Away(MemoryStore):
    """A store that can be away."""

    away = False

    async def release(self, key: Key, epoch: int, *, clean: bool = True) -> None:
        if self.away:
            raise StoreError("away")
        await super().release(key, epoch, clean=clean)

    async def remove(self, key: Key, epoch: int, grave: Grave | None) -> bool:
        if self.away:
            raise StoreError("away")
        return await super().remove(key, epoch, grave)


class Pair:
    """Two servers that share a store, which can be away for the first one."""

    def __init__(self, store: Away, other: MemoryStore) -> None:
        self.store, self.other = store, other
        self.claims = Claims(store, Metrics())

    async def claimed(self) -> Claim:
        claim = await self.claims.claim(KEY)
        await self.store.save([Write(KEY, claim.epoch, Record("uid", 3, 1e12, b"data"))], durable=False)
        return claim


@pytest.fixture
async def pair() -> Pair:
    clock = FakeClock()
    store = Away("one", clock)
    other = MemoryStore("two", clock, store)
    for each in (store, other):
        await each.open(10.0)
    return Pair(store, other)


async def test_what_could_not_be_given_back_is_when_the_store_is_there_again(pair: Pair) -> None:
    claim = await pair.claimed()
    pair.store.away = True
    await pair.claims.give_back(KEY, claim.epoch)
    await pair.claims.settle()
    with pytest.raises(HeldError):
        await pair.other.claim(KEY)
    assert not await pair.claims.has_paid(KEY)
    pair.store.away = False
    await pair.claims.settle()
    again = await pair.other.claim(KEY)
    assert again.clean
    assert again.record is not None
    assert await pair.claims.has_paid(KEY)


async def test_what_could_not_be_struck_out_is_when_the_store_is_there_again(pair: Pair) -> None:
    claim = await pair.claimed()
    pair.store.away = True
    await pair.claims.strike(KEY, claim.epoch, CLOSED)
    assert await pair.other.find(KEY) is not None
    pair.store.away = False
    await pair.claims.settle()
    assert await pair.other.find(KEY) is None
    assert await pair.other.grave(KEY) == CLOSED


async def test_who_claims_again_what_is_still_to_be_given_back_finds_it_clean(pair: Pair) -> None:
    claim = await pair.claimed()
    pair.store.away = True
    await pair.claims.give_back(KEY, claim.epoch)
    with pytest.raises(StoreError):
        await pair.claims.claim(KEY)
    pair.store.away = False
    assert (await pair.claims.claim(KEY)).clean
    await pair.claims.settle()
    with pytest.raises(HeldError):
        await pair.other.claim(KEY)


async def test_a_debt_changes_nothing_that_another_server_has_claimed_since(pair: Pair) -> None:
    claim = await pair.claimed()
    pair.store.away = True
    await pair.claims.strike(KEY, claim.epoch, CLOSED)
    await pair.store.close()  # its lease ends
    taken = await pair.other.claim(KEY)
    assert not taken.clean
    pair.store.away = False
    await pair.claims.settle()
    assert await pair.other.find(KEY) is not None
    assert not await pair.other.lost({KEY: taken.epoch})
