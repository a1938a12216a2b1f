"""Which sessions are resident: they come from the store when they are called, and leave for it for space, for another server, or when this one stops.

Whatever moves a session in or out is done once at a time for each name; whoever looks for it meanwhile waits.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog

from cellstate_service.clock import Clock
from cellstate_service.engine.engine import Engine
from cellstate_service.errors import Aborted, CellstateError, NotFound, Precondition, Reason, Unavailable
from cellstate_service.observability.metrics import Metrics
from cellstate_service.sessions.archive import Archive
from cellstate_service.sessions.book import SessionBook, taken
from cellstate_service.sessions.engines import Engines
from cellstate_service.sessions.keeper import Keeper, unavailable
from cellstate_service.sessions.session import Durability, Saved, Session
from cellstate_service.sessions.snapshots import Allowances, Snapshot, check_fits
from cellstate_service.sessions.stores.store import Claim, Grave, HeldError, Key, Record, StoreError
from cellstate_service.sessions.tombstones import gone

ASK_S = 2.0
"""For so long one waits for another server's answer."""
AGAIN_S = 0.1
"""After so long one tries again to claim a session whose holder does not answer."""
AT_ONCE = 64
"""Sessions that leave together when the server stops."""
GIVEN, BUSY, WAIT, KEPT = b"given", b"busy", b"wait", b"kept"
"""What another server answers that is asked for a session."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Right:
    """With what right a caller may take a session from another server that has a call on it."""

    stream_token: str = ""
    take_over: bool = False


@dataclass(frozen=True, slots=True)
class ResidencyConfig:
    """How sessions move.

    Attributes:
        lease_s: How long another server's lease may run that does not answer.
        spills: Space is made by moving sessions to the store.
    """

    lease_s: float = 5.0
    spills: bool = True


class Residency:
    """Brings sessions in and out. Loop only.

    Attributes:
        check: Called before a session is found that is resident already; raises where this server must not answer for what it has.
    """

    def __init__(self, engines: Engines, book: SessionBook, keeper: Keeper, archive: Archive, config: ResidencyConfig, metrics: Metrics, clock: Clock) -> None:
        self._engines = engines
        self._book = book
        self._keeper = keeper
        self._claims = keeper.claims
        self._store = keeper.claims.store
        self._archive = archive
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._moving: dict[Key, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Future[None]] = set()
        self.check: Callable[[], None] = lambda: None
        keeper.on_lost = self._lost
        book.on_expired = self._expired
        self._store.answer(self._answer)

    # -- in

    async def find(self, owner: str, name: str, field: str, right: Right | None = None) -> Session:
        """Return a session, brought in from the store where it is not resident.

        Raises:
            NotFound: The owner has none of that name; the reason tells why it is gone.
            Precondition: Another server has a call on it, or its snapshot belongs to what this server has not.
            DataLoss: Its snapshot is torn.
            Unavailable: The store cannot be used, or this server's lease over its sessions has lapsed.
        """
        key = Key(owner, name)
        while True:
            if (moving := self._moving.get(key)) is not None:
                await asyncio.wait([moving])
            elif (session := self._book.find(owner, name)) is not None:
                self.check()
                return session
            else:
                await self._to_the_end(self._bring_alone(key, field, right or Right()))

    def moves(self, key: Key) -> bool:
        """Whether the session of a name is being brought in, taken out or put back to its beginning: no call may begin on it meanwhile."""
        return key in self._moving

    @contextlib.asynccontextmanager
    async def alone(self, key: Key) -> AsyncIterator[None]:
        """Let nobody else look for, bring in or take out the session of a name meanwhile."""
        while (moving := self._moving.get(key)) is not None:
            await asyncio.wait([moving])
        mine = self._moving[key] = asyncio.get_running_loop().create_future()
        try:
            yield
        finally:
            self._let_go(key, mine)

    async def claim_new(self, key: Key) -> int:
        """Claim the name of a new session and return the claim's epoch; to be called alone.

        Raises:
            AlreadyExists: There is one of that name in the store, or another server has it.
            Unavailable: The store cannot be used, or another server that had the name neither answers nor lets go of it.
        """
        try:
            claim = await self._claim(key, "session.name", None)
            if claim.record is not None and claim.record.expires_s > self._clock.now():
                await self._claims.give_back(key, claim.epoch, clean=claim.clean)
                raise taken()
        except StoreError as error:
            raise unavailable(error) from error
        return claim.epoch

    async def make_room(self, model: str) -> None:
        """Spill sessions that were not used for the longest time until the model has room for another one, as far as there are any that may leave."""
        while self._config.spills and self._book.is_full(model) and (session := self._book.least_recent(model)) is not None:
            await self.leave(session)
            self._metrics.spills_total.labels(model).inc()

    async def _bring_alone(self, key: Key, field: str, right: Right) -> None:
        async with self.alone(key):
            if self._book.find(key.owner, key.name) is None:
                await self._bring(key, field, right)

    async def _to_the_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what is not to be left half done where whoever waits for it is cancelled: a claim that nobody knows of."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        await asyncio.shield(task)

    def _ended(self, task: "asyncio.Future[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever still waits

    async def _bring(self, key: Key, field: str, right: Right) -> None:
        try:
            claim = await self._claim(key, field, right)
            if claim.record is None and not claim.clean:  # whoever had it is gone, and never stored it
                await self._claims.strike(key, claim.epoch, Grave(Reason.SESSION_LOST, 0))
            elif claim.record is None:
                await self._claims.give_back(key, claim.epoch)
            if claim.record is None:
                grave = await self._store.grave(key)
                raise self._book.missing(key.owner, key.name, field) if grave is None else gone(grave.reason, field, grave.position or None)
            await self._enter(key, claim, claim.record, field)
        except StoreError as error:
            raise unavailable(error) from error

    async def _enter(self, key: Key, claim: Claim, record: Record, field: str) -> None:
        """Make a session resident that was claimed; where that cannot be done, give it back as it was."""
        try:
            snapshot = self._archive.read(key, record)
            if record.expires_s <= self._clock.now():
                await self._bury(key, claim, snapshot, Reason.SESSION_EXPIRED, field)
            if snapshot.durability is Durability.MEMORY and not claim.clean:
                await self._bury(key, claim, snapshot, Reason.SESSION_LOST, field)
            engine = self._engines.of(snapshot.model, snapshot.model_digest)
            if engine is None:
                text = f"the session is on the model {snapshot.model!r}, which this server has not loaded: load it, or delete the session"
                raise Precondition(text, Reason.MODEL_NOT_FOUND, field=field)
            check_fits(snapshot, engine.model, Allowances())
            await self.make_room(snapshot.model)
            session = self._session(key, claim, record, snapshot, engine)
            self._book.enter(session)
            try:
                rolled_back = snapshot.state.rolled_back or (not claim.clean and snapshot.durability is Durability.PERIODIC)
                await engine.acquire(session.resident, replace(snapshot.state, rolled_back=rolled_back))
            except BaseException:
                self._book.remove(session)
                raise
        except NotFound:
            raise
        except BaseException:
            await self._claims.give_back(key, claim.epoch, clean=claim.clean)
            raise
        self._metrics.returns_total.labels(snapshot.model, "clean" if claim.clean else "recovered").inc()

    def _session(self, key: Key, claim: Claim, record: Record, snapshot: Snapshot, engine: Engine) -> Session:
        return Session(
            owner=key.owner,
            name=key.name,
            uid=snapshot.uid,
            engine=engine,
            resident=engine.new_resident(snapshot.state.seed),
            durability=snapshot.durability,
            labels=snapshot.labels,
            created_s=snapshot.created_s,
            used_s=snapshot.used_s,
            expires_s=record.expires_s,
            idle_ttl_s=snapshot.idle_ttl_s,
            epoch=claim.epoch,
            saved=Saved(record.position, record.expires_s, self._clock.monotonic()),
        )

    async def _bury(self, key: Key, claim: Claim, snapshot: Snapshot, reason: Reason, field: str) -> None:
        await self._claims.strike(key, claim.epoch, Grave(reason, snapshot.state.position))
        self._book.count_end(snapshot.model, reason)
        raise gone(reason, field, snapshot.state.position)

    # -- out

    async def leave(self, session: Session) -> None:
        """Save a session and give it back in the store; it is not resident any more. It stays where it is used meanwhile, or cannot be saved."""
        await self._to_the_end(self._leave_alone(session))

    async def _leave_alone(self, session: Session) -> None:
        async with self.alone(session.key):
            if self._book.find(session.owner, session.name) is session and session.is_idle:
                await self._leave([session])

    async def leave_all(self, most: int = AT_ONCE) -> None:
        """Save all sessions and give them back: the server stops. No call is on any of them. Where some cannot be, the others are all the same."""
        residents, failed = self._book.residents(), None
        for first in range(0, len(residents), most):
            async with contextlib.AsyncExitStack() as stack:
                for session in residents[first : first + most]:
                    await stack.enter_async_context(self.alone(session.key))
                try:
                    await self._leave([session for session in residents[first : first + most] if self._book.find(session.owner, session.name) is session])
                except CellstateError as error:
                    failed = error
        if failed is not None:
            raise failed

    async def _leave(self, sessions: list[Session]) -> None:
        await self._keeper.save(sessions)
        for session in sessions:
            self._keeper.forget(session)
            self._book.remove(session)
        await self._claims.give_back_all((session.key, session.epoch) for session in sessions)

    def evict(self, session: Session) -> None:
        """End a session where there is no store that it could leave for."""
        self._book.end(session, Reason.SESSION_EVICTED)
        self._strike_soon(session, Reason.SESSION_EVICTED)

    def _lost(self, session: Session) -> None:
        """Drop a session that another server has taken, or that the store does not know any more."""
        _log.warning("a session belongs to another server by now", session=session.name)
        self._keeper.forget(session)
        self._book.remove(session, lost())

    def drop_lost(self, epochs: Mapping[Key, int]) -> None:
        """Drop sessions that others have taken while this server's lease had lapsed, unless they were claimed anew since."""
        for key, epoch in epochs.items():
            session = self._book.find(key.owner, key.name)
            if session is not None and session.epoch == epoch:
                self._lost(session)

    def _expired(self, session: Session) -> None:
        self._strike_soon(session, Reason.SESSION_EXPIRED)

    def _strike_soon(self, session: Session, reason: Reason) -> None:
        """Strike a session that is not resident any more out of the store, before anybody looks for it there."""
        key, grave = session.key, Grave(reason, session.resident.position)
        before = self._moving.get(key)
        mine = self._moving[key] = asyncio.get_running_loop().create_future()

        async def alone() -> None:
            if before is not None:
                await asyncio.wait([before])
            try:
                await self._keeper.strike(session, grave)
            finally:
                self._let_go(key, mine)

        task = asyncio.ensure_future(alone())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _let_go(self, key: Key, mine: "asyncio.Future[None]") -> None:
        if self._moving.get(key) is mine:
            del self._moving[key]
        mine.set_result(None)

    # -- other servers

    async def _claim(self, key: Key, field: str, right: Right | None) -> Claim:
        """Claim a session, asking another server that holds it to give it back; without a right, only whether it has it: a claim may be all there is."""
        until_s, asked = self._clock.monotonic() + 2 * self._config.lease_s, False
        wanted = {"keep": True} if right is None else {"stream_token": right.stream_token, "take_over": right.take_over}
        question = json.dumps({"owner": key.owner, "name": key.name, **wanted}).encode()
        while True:
            try:
                return await self._claims.claim(key)
            except HeldError as held:
                if self._clock.monotonic() >= until_s:
                    text = "the server that has the session neither answers nor lets go of it: try again"
                    raise Unavailable(text, Reason.SESSION_MOVED, field=field, retry_after_s=self._config.lease_s) from None
                answer = await self._store.ask(held.holder, question, ASK_S)
                if answer == KEPT:
                    raise taken() from None
                if answer == BUSY:
                    text = "another call is on the session, at another server: wait for its end, present its stream_token, or set take_over"
                    raise Precondition(text, Reason.SESSION_BUSY, field=field) from None
                if answer == GIVEN and not asked:
                    asked = True
                    self._metrics.moves_total.labels("in").inc()
                    continue
                await asyncio.sleep(AGAIN_S)

    async def _answer(self, question: bytes) -> bytes:
        """Give a session back that another server asks for, unless a call is on it that the asking one may not end."""
        asked = json.loads(question)
        key = Key(asked["owner"], asked["name"])
        async with self.alone(key):
            session = self._book.find(*key)
            if session is None:
                return GIVEN if await self._claims.has_paid(key) else WAIT
            if asked.get("keep"):
                return KEPT
            if session.call is not None:
                if not asked["take_over"] and not session.call.is_presented(asked["stream_token"]):
                    return BUSY
                session.call.fail(Aborted("a newer call, at another server, took the session over", Reason.SUPERSEDED))
                session.call = None
                self._book.freed(session)
            elif session.pins:
                return WAIT
            await self._leave([session])
            self._metrics.moves_total.labels("out").inc()
            return GIVEN if await self._claims.has_paid(key) else WAIT


def lost() -> CellstateError:
    """Return the error that a session is another server's by now."""
    return Aborted("another server has the session by now: call again", Reason.SESSION_MOVED)
