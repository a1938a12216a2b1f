"""What this server has claimed in the store and does not need any more: it is given back at once, or as soon as a store that is away is there again.

A debt is harmless while it waits: it carries the epoch of its claim, so it changes nothing that was claimed anew since.
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from cellstate_service.observability.metrics import Metrics
from cellstate_service.sessions.stores.store import Claim, Grave, Key, Store, StoreError

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Debt:
    """What is to be done about a claim.

    Attributes:
        clean: It is given back, and this is said of it; None where the session is struck out.
        grave: Why it is gone, where it is struck out and that is to be remembered.
    """

    epoch: int
    clean: bool | None
    grave: Grave | None = None


class Claims:
    """Claims sessions, and sees to it that they are given back. Loop only; one at a time for each name.

    Attributes:
        store: Where they are claimed.
    """

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self.store = store
        self._metrics = metrics
        self._debts: dict[Key, _Debt] = {}

    async def claim(self, key: Key) -> Claim:
        """Make a session this server's, after what is still to be done about an earlier claim on it.

        Raises:
            HeldError: Another server holds it.
            StoreError: The store cannot be used.
        """
        await self._pay(key)
        return await self.store.claim(key)

    async def give_back(self, key: Key, epoch: int, *, clean: bool = True) -> None:
        """Give a session back, now or later; see `Store.release`."""
        self._debts[key] = _Debt(epoch, clean)
        await self.pay(key)

    async def strike(self, key: Key, epoch: int, grave: Grave | None) -> None:
        """Strike a session out, now or later; see `Store.remove`."""
        self.owe(key, epoch, grave)
        await self.pay(key)

    def owe(self, key: Key, epoch: int, grave: Grave | None) -> None:
        """Note that a session is to be struck out; `pay` does it."""
        self._debts[key] = _Debt(epoch, None, grave)

    async def give_back_all(self, claims: Iterable[tuple[Key, int]]) -> None:
        """Give sessions back, now or later, as their newest states."""
        await asyncio.gather(*(self.give_back(key, epoch) for key, epoch in claims))

    async def settle(self) -> None:
        """Do what could not be done before, as far as that can be done now."""
        for key in list(self._debts):
            if not await self.has_paid(key):
                return

    async def has_paid(self, key: Key) -> bool:
        """Tell whether nothing is to be done about earlier claims on a session any more; what is, is tried now."""
        with suppress(StoreError):
            await self._pay(key)
        return key not in self._debts

    async def pay(self, key: Key) -> None:
        """Do what is to be done about a claim, or see to it that it is done later."""
        try:
            await self._pay(key)
        except StoreError as error:
            self._metrics.store_errors_total.labels("release").inc()
            _log.warning("a session is given back, or struck out, when the store can be written again", session=key.name, error=str(error))

    async def _pay(self, key: Key) -> None:
        debt = self._debts.get(key)
        if debt is None:
            return
        if debt.clean is None:
            await self.store.remove(key, debt.epoch, debt.grave)
        else:
            await self.store.release(key, debt.epoch, clean=debt.clean)
        if self._debts.get(key) is debt:
            del self._debts[key]
