"""The parts that keep sessions, put together from settings, and run and stopped as one."""

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable

import structlog

from cellstate_service.clock import Clock
from cellstate_service.engine.engine import Engine
from cellstate_service.errors import CellstateError, Precondition, Reason
from cellstate_service.observability.metrics import Metrics
from cellstate_service.rpc.snapshot_codec import decode_snapshot, encode_snapshot
from cellstate_service.sessions.archive import Archive
from cellstate_service.sessions.book import SessionBook, SessionConfig
from cellstate_service.sessions.calling import Calling
from cellstate_service.sessions.claims import Claims
from cellstate_service.sessions.engines import Engines
from cellstate_service.sessions.keeper import Keeper
from cellstate_service.sessions.lease import Lease
from cellstate_service.sessions.manager import SessionManager
from cellstate_service.sessions.residency import Residency, ResidencyConfig
from cellstate_service.sessions.session import Durability, Session
from cellstate_service.sessions.stores.memory import MemoryStore
from cellstate_service.sessions.stores.redis import RedisStore
from cellstate_service.sessions.stores.sqlite import SqliteStore
from cellstate_service.sessions.stores.store import Store, StoreAwayError, StoreError
from cellstate_service.settings import StoreSettings

SWEEPS = 10
"""Stored sessions that have expired are struck out every so many sweeps of the resident ones."""
RETRY_S, TOLD_EVERY = 0.5, 20
"""How often a store that is away is tried when a server starts, and every how many times that is told."""
_log = structlog.get_logger(__name__)


async def open_store(settings: StoreSettings, graves: int, clock: Clock) -> tuple[Store, frozenset[Durability]]:
    """Return the store that the settings name, ready, and what sessions of it can survive. Where it is away, wait until it is there.

    Raises:
        ValueError: It cannot be used, or does not offer the settings' default durability; the message says what to do.
    """
    store, attempts = _store(settings, graves, clock), 0
    try:
        while True:
            try:
                await store.open(settings.lease_s)
                return store, await _offered(store, settings)
            except StoreAwayError as error:
                if attempts % TOLD_EVERY == 0:
                    _log.warning("calls are taken as soon as the store can be reached", why=str(error))
            attempts += 1
            await asyncio.sleep(RETRY_S)
    except BaseException as error:
        await store.close()
        if isinstance(error, StoreError):
            raise ValueError(str(error)) from error
        raise


def _store(settings: StoreSettings, graves: int, clock: Clock) -> Store:
    holder = f"{socket.gethostname()[:32]}-{secrets.token_hex(6)}"
    if settings.kind == "redis" and settings.url is not None:
        return RedisStore(holder, settings.url.get_secret_value(), timeout_s=settings.timeout_s)
    if settings.kind == "sqlite":
        return SqliteStore(holder, settings.path, clock, graves)
    return MemoryStore(holder, clock, graves=graves)


async def _offered(store: Store, settings: StoreSettings) -> frozenset[Durability]:
    offered = {Durability.MEMORY}
    if settings.kind != "memory":
        offered.add(Durability.PERIODIC)
        if not isinstance(store, RedisStore) or await store.secures():
            offered.add(Durability.SYNC)
    if Durability[settings.default_durability.upper()] not in offered:
        raise ValueError("store.durability: sync needs a Redis server that writes through to its disk: set appendonly yes and appendfsync always there")
    return frozenset(offered)


async def without_end(work: Callable[[], Awaitable[None]]) -> None:
    """Do what is not to end; where it fails, that is logged, and it begins again."""
    while True:
        try:
            await work()
            return  # there is nothing to be done
        except Exception:
            _log.exception("what goes on beside calls has failed, and begins again")
        await asyncio.sleep(RETRY_S)


class Sessions:
    """Everything that keeps sessions.

    Attributes:
        calling: Puts calls on sessions.
        manager: Creates, reads, changes and ends sessions.
    """

    def __init__(self, engines: Engines, store: Store, config: SessionConfig, settings: StoreSettings, metrics: Metrics, clock: Clock) -> None:
        self._store = store
        self._persistent = config.persistent
        book = self._book = SessionBook(config, metrics, clock)
        self._claims = Claims(store, metrics)
        archive = Archive(self._claims, decode_snapshot, metrics)
        self._keeper = Keeper(self._claims, encode_snapshot, settings.checkpoint_s, metrics, clock)
        self._residency = Residency(engines, book, self._keeper, archive, ResidencyConfig(settings.lease_s, config.persistent), metrics, clock)
        self._lease = Lease(store, settings.lease_s, clock, book.epochs, self._suspend, self._residency.drop_lost)
        self.calling = Calling(engines, config, book, self._keeper, self._residency, self._lease, metrics)
        self._residency.check = self.calling.check_lease
        self.manager = SessionManager(engines, config, book, self._keeper, self._residency, archive, clock)
        self._sweeps = 0
        self._renewing: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Save what is due, without end; and renew the lease, until `close`."""
        self._renewing = asyncio.ensure_future(without_end(self._lease.run))
        await without_end(self._keeper.run)

    async def expire_due(self) -> None:
        """End the sessions whose time has run out."""
        self.manager.expire_due()
        await self._claims.settle()
        self._sweeps += 1
        if self._sweeps % SWEEPS == 0:
            try:
                await self.manager.expire_stored()
            except CellstateError as error:
                _log.warning("stored sessions that have expired stay until the store can be written", error=error.message)

    def uses(self, engine: Engine) -> bool:
        """Whether a session or a call is on an engine."""
        return self.calling.uses(engine) or any(session.engine is engine for session in self._book.residents())

    async def leave_engine(self, engine: Engine) -> None:
        """Have the sessions of a version that is not served any more leave, and their calls end."""
        for session in self._book.residents():
            if session.engine is engine:
                if session.call is not None:
                    text = "the version of the model that the session is on is not served any more: export it, or create another one"
                    session.call.fail(Precondition(text, Reason.SNAPSHOT_MISMATCH))
                    session.call = None
                    self._book.freed(session)
                if self._persistent:
                    await self._leave(session)
                else:
                    self._residency.evict(session)

    async def _leave(self, session: Session) -> None:
        try:
            await self._residency.leave(session)
        except CellstateError as error:
            _log.warning("a session on a version that is not served any more stays until it can be saved", session=session.name, error=error.message)

    def drain(self) -> None:
        """Take no new calls and sessions; tell the calls that can go on elsewhere to do so."""
        self.manager.drain()
        self.calling.drain()

    async def close(self) -> None:
        """Give all sessions back to the store, which is then closed. No call may be on any."""
        self.calling.end_all()
        try:
            if self._persistent:
                await self._residency.leave_all()
        except CellstateError as error:
            _log.error("not all sessions could be saved: what is stored of them is their last snapshot", error=error.message)
        await self._claims.settle()
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        self._keeper.close()
        await self._store.close()

    def _suspend(self) -> None:
        self.calling.suspend()
