"""Sees to it that what sessions are to survive is in the store: from time to time, before outputs are answered, and when they leave the server.

The engine copies states between two steps; serializing and writing happen elsewhere. Saves are made one after the other, so that none overtakes a newer one.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from cellstate_service.clock import Clock
from cellstate_service.engine.resident import ResidentState
from cellstate_service.errors import CellstateError, Reason, Unavailable
from cellstate_service.observability.metrics import Metrics
from cellstate_service.sessions.claims import Claims
from cellstate_service.sessions.session import Durability, Saved, Session
from cellstate_service.sessions.snapshots import Snapshot, snapshot_of
from cellstate_service.sessions.stores.store import Grave, Record, StoreError, Write
from cellstate_service.sessions.tombstones import gone

AT_ONCE = 64
"""Sessions saved together from time to time: those that wait for their outputs to be secured come between."""
TICKS = 8
"""How often within the time between two snapshots of a session one looks which are due."""
OPEN_S = 60.0
"""For so long at least the record of a session with a call on it is kept, whatever its expiry."""
Encode = Callable[[Snapshot], bytes]
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Secured:
    """A call whose outputs wait until its session is saved.

    Attributes:
        release: Called with the position up to which they are secured.
        fail: Called with the error where the store cannot be written.
    """

    release: Callable[[int], None]
    fail: Callable[[CellstateError], None]


class Keeper:
    """Saves sessions. Loop only.

    Args:
        claims: What this server has in the store.
        encode: Makes a snapshot's stored form; called on a thread of its own.
        every_s: Time between two snapshots of a session that moves.
        metrics: Counts what is saved.
        clock: Tells when a session is due.

    Attributes:
        claims: As given.
        on_lost: Called with sessions that another server has taken meanwhile.
    """

    def __init__(self, claims: Claims, encode: Encode, every_s: float, metrics: Metrics, clock: Clock) -> None:
        self.claims = claims
        self.on_lost: Callable[[Session], None] = lambda session: None
        self._encode = encode
        self._every_s = every_s
        self._metrics = metrics
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keeper")
        self._saving = asyncio.Lock()
        self._touched: dict[Session, None] = {}
        self._waiting: dict[Secured, Session] = {}
        self._arrived = asyncio.Event()

    def touch(self, session: Session) -> None:
        """Take in that a session may move from now on."""
        if session.durability is not Durability.MEMORY:
            self._touched[session] = None

    def secure(self, session: Session, call: Secured) -> None:
        """Save a session as soon as may be, and tell the call that waits for it."""
        self._waiting[call] = session
        self._arrived.set()

    async def save(self, sessions: Sequence[Session], *, durable: bool = False) -> None:
        """Save sessions as they are now.

        Raises:
            Unavailable: STORE_UNAVAILABLE; nothing is promised.
        """
        try:
            await self._save(sessions, durable=durable)
        except StoreError as error:
            raise unavailable(error) from error

    async def remove(self, session: Session, grave: Grave | None) -> bool:
        """Strike a session out of the store; return False where it is another server's by now.

        Raises:
            Unavailable: STORE_UNAVAILABLE; whether it was struck out is not known.
        """
        try:
            async with self._saving:
                return await self.claims.store.remove(session.key, session.epoch, grave)
        except StoreError as error:
            raise unavailable(error) from error

    async def strike(self, session: Session, grave: Grave | None) -> None:
        """Strike a session that is not resident any more out of the store, now or later."""
        self.forget(session)
        self.claims.owe(session.key, session.epoch, grave)
        async with self._saving:
            await self.claims.pay(session.key)

    def forget(self, session: Session) -> None:
        """Save a session no more."""
        self._touched.pop(session, None)

    async def run(self) -> None:
        """Save what is due and what is waited for, without end."""
        await asyncio.gather(self._run_periodic(), self._run_sync())

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False)

    # -- from time to time

    async def _run_periodic(self) -> None:
        while True:
            await asyncio.sleep(self._every_s / TICKS)
            due = self._due()
            for first in range(0, len(due), AT_ONCE):
                try:
                    await self._save([session for session in due[first : first + AT_ONCE] if session in self._touched], durable=False)
                except StoreError as error:
                    _log.warning("sessions could not be saved; they go on, and are saved when the store can be written again", error=str(error))
                    break
                except Exception:
                    _log.exception("sessions could not be saved")
                    break

    def _due(self) -> list[Session]:
        """Return the sessions that are to be saved now, and watch those no longer that are saved and have no call on them."""
        now_s, found = self._clock.monotonic(), []
        for session in list(self._touched):
            saved = session.saved
            if session.moved or self._lives_longer(session):
                if saved is None or now_s - saved.at_s >= self._every_s:
                    found.append(session)
            elif session.call is None:
                del self._touched[session]
        return found

    def _lives_longer(self, session: Session) -> bool:
        """Whether the store thinks that a session ends long before it does."""
        return session.saved is not None and self._expires_s(session) - session.saved.expires_s > OPEN_S / 2

    def _expires_s(self, session: Session) -> float:
        return session.expires_s if session.call is None else max(session.expires_s, self._clock.now() + OPEN_S)

    # -- before outputs are answered

    async def _run_sync(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            waiting, self._waiting = self._waiting, {}
            try:
                await self._save(list(dict.fromkeys(waiting.values())), durable=True)
            except Exception as error:
                _log.warning("outputs could not be secured", error=str(error), exc_info=not isinstance(error, StoreError))
                for call in waiting:
                    call.fail(unavailable(error))
                continue
            for call, session in waiting.items():
                if session.resident.closed or session.saved is None:
                    call.fail(gone(Reason.SESSION_CLOSED))
                else:
                    call.release(session.saved.position)

    # -- saving

    async def _save(self, sessions: Iterable[Session], *, durable: bool) -> None:
        async with self._saving:
            with self._metrics.checkpoints_in_progress.track_inprogress(), self._metrics.checkpoint_seconds.time():
                try:
                    await self._save_now(sessions, durable=durable)
                except StoreError:
                    self._metrics.store_errors_total.labels("save").inc()
                    raise

    async def _save_now(self, sessions: Iterable[Session], *, durable: bool) -> None:
        at_s, snapshots = self._clock.monotonic(), await self._snapshots(sessions)
        if not snapshots:
            return
        data = await asyncio.get_running_loop().run_in_executor(self._thread, lambda: [self._encode(snapshot) for _, snapshot in snapshots])
        writes = [
            Write(session.key, session.epoch, Record(snapshot.uid, snapshot.state.position, self._expires_s(session), stored))
            for (session, snapshot), stored in zip(snapshots, data, strict=True)
        ]
        refused = await self.claims.store.save(writes, durable=durable)
        for (session, _), write in zip(snapshots, writes, strict=True):
            if write.key in refused:
                self._metrics.refused_epochs_total.inc()
                self.on_lost(session)
            else:
                session.saved = Saved(write.record.position, write.record.expires_s, at_s)
        self._metrics.checkpoints_total.inc(len(writes) - len(refused))
        self._metrics.checkpoint_bytes_total.inc(sum(len(write.record.data) for write in writes))

    async def _snapshots(self, sessions: Iterable[Session]) -> list[tuple[Session, Snapshot]]:
        """Return snapshots of those sessions that still have a state."""
        by_engine = defaultdict(list)
        for session in sessions:
            by_engine[session.engine].append(session)
        found: list[tuple[Session, Snapshot]] = []
        for engine, group in by_engine.items():
            states: list[ResidentState | None] = await engine.read_many([session.resident for session in group])
            found += [(session, snapshot_of(session, state)) for session, state in zip(group, states, strict=True) if state is not None]
        return found


def unavailable(error: Exception) -> CellstateError:
    """Return the error that tells a caller that the store cannot be used."""
    text = (
        "the store of sessions cannot be used at present, so nothing was changed; try again"
        if isinstance(error, StoreError)
        else "a session could not be saved"
    )
    return Unavailable(f"{text} ({error})" if isinstance(error, StoreError) else text, Reason.STORE_UNAVAILABLE, retry_after_s=1.0)
