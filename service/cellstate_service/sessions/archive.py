"""Stored sessions as they are in the store: read without being brought in."""

from collections.abc import Callable

import structlog

from cellstate_service.errors import CellstateError, DataLoss, NotFound, Precondition, Reason
from cellstate_service.observability.metrics import Metrics
from cellstate_service.sessions.claims import Claims
from cellstate_service.sessions.keeper import unavailable
from cellstate_service.sessions.session import SessionFacts
from cellstate_service.sessions.snapshots import Snapshot, stored_facts
from cellstate_service.sessions.stores.store import Grave, HeldError, Key, Record, StoreError

Decode = Callable[[bytes], Snapshot]
_log = structlog.get_logger(__name__)


class Archive:
    """Reads the store. Loop only.

    Raises, from each method that asks the store:
        Unavailable: STORE_UNAVAILABLE.
    """

    def __init__(self, claims: Claims, decode: Decode, metrics: Metrics) -> None:
        self._claims = claims
        self._store = claims.store
        self._decode = decode
        self._metrics = metrics

    def read(self, key: Key, record: Record) -> Snapshot:
        """Return the snapshot of a record.

        Raises:
            DataLoss, Precondition: It is torn, or of a format that this server does not know.
        """
        try:
            return self._decode(record.data)
        except CellstateError as error:
            _log.error("a stored session cannot be read", session=key.name, error=error.message)
            self._metrics.unreadable_snapshots_total.inc()
            if isinstance(error, Precondition):
                raise
            raise DataLoss(f"what is stored of the session is damaged, so it cannot go on: delete it and create it again ({error.message})") from error

    async def find(self, key: Key) -> Snapshot | None:
        """Return what is stored of a session.

        Raises:
            DataLoss, Precondition: See `read`.
        """
        try:
            record = await self._store.find(key)
        except StoreError as error:
            raise unavailable(error) from error
        return None if record is None else self.read(key, record)

    async def facts(self, key: Key) -> SessionFacts | None:
        """Return what there is to know of a stored session; None where it is gone or cannot be read."""
        try:
            snapshot = await self.find(key)
        except (DataLoss, Precondition):
            return None
        return None if snapshot is None else stored_facts(snapshot, key.owner)

    async def names(self, owner: str) -> list[str]:
        """Return the names of an owner's stored sessions."""
        try:
            return await self._store.names(owner)
        except StoreError as error:
            raise unavailable(error) from error

    async def delete(self, key: Key, uid: str) -> None:
        """Strike out a session that cannot be brought in; to be called while nobody else looks for it.

        Raises:
            NotFound, Precondition: It is not there, is another one, or another server has it.
        """
        try:
            claim = await self._claims.claim(key)
            if claim.record is None or (uid and uid != claim.record.uid):
                await self._claims.give_back(key, claim.epoch, clean=claim.clean)
                raise NotFound("the session is gone, or another one by now", field="name")
            try:
                await self._store.remove(key, claim.epoch, Grave(Reason.SESSION_CLOSED, claim.record.position))
            except BaseException:
                await self._claims.give_back(key, claim.epoch, clean=claim.clean)
                raise
        except HeldError as error:
            raise Precondition("another server has the session: try again", Reason.SESSION_BUSY, field="name") from error
        except StoreError as error:
            raise unavailable(error) from error

    async def expire(self) -> None:
        """Strike out the stored sessions whose time has run out and that nobody holds."""
        try:
            self._metrics.stored_sessions_expired_total.inc(await self._store.expire())
        except StoreError as error:
            raise unavailable(error) from error
