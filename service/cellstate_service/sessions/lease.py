"""This server's lease over the sessions that it has: renewed while it runs; without it nothing is answered, since others may have taken them."""

import asyncio
from collections.abc import Callable

import structlog

from cellstate_service.clock import Clock
from cellstate_service.sessions.stores.store import Key, Store, StoreError

RENEWALS = 3
"""In the time of a lease, so that one or two may fail."""
RETRY_S = 0.25
_log = structlog.get_logger(__name__)


class Lease:
    """Renews the lease. Loop only.

    Args:
        store: Where it is.
        lease_s: How long it runs.
        clock: Tells when it lapses.
        held: Returns the epochs of what this server has.
        lapsed: Called when it has lapsed.
        lost: Called with the epochs of what others have taken, once it runs again.
    """

    def __init__(
        self, store: Store, lease_s: float, clock: Clock, held: Callable[[], dict[Key, int]], lapsed: Callable[[], None], lost: Callable[[dict[Key, int]], None]
    ) -> None:
        self._store = store
        self._lease_s = lease_s
        self._clock = clock
        self._held = held
        self._lapsed = lapsed
        self._lost = lost
        self._until_s = clock.monotonic() + lease_s
        self._runs = True
        self._doubted = False  # others may have taken sessions since it was last known to run whole

    @property
    def runs(self) -> bool:
        """Whether this server may answer for its sessions."""
        return not self._store.shared or (self._runs and self._clock.monotonic() < self._until_s)

    async def run(self) -> None:
        """Renew it, without end; nothing is to be done where nobody shares the store."""
        while self._store.shared:
            renewed = await self._renew()
            await asyncio.sleep(self._lease_s / RENEWALS if renewed else min(RETRY_S, self._lease_s / RENEWALS))

    async def _renew(self) -> bool:
        asked_s = self._clock.monotonic()
        try:
            async with asyncio.timeout(max(RETRY_S, self._until_s - asked_s) if self._runs else None):
                whole = await self._store.renew(self._lease_s)
            self._doubted = self._doubted or not whole or not self._runs
            if self._doubted and (held := self._held()):
                _log.warning("the lease over this server's sessions had lapsed; those that others have taken are dropped")
                self._lost({key: held[key] for key in await self._store.lost(held)})
        except (StoreError, TimeoutError) as error:
            if self._runs and self._clock.monotonic() >= self._until_s:
                _log.error(
                    "the store cannot be reached, and the lease over this server's sessions has lapsed: their calls end",
                    error=str(error) or "no answer in time",
                )
                self._runs = False
                self._lapsed()
            return False
        self._until_s, self._runs, self._doubted = asked_s + self._lease_s, True, False
        return True
