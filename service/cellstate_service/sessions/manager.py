"""The lifecycle of sessions, resident or stored: created, read, changed, copied, ended."""

import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from cellstate_service.clock import Clock
from cellstate_service.engine.engine import Engine
from cellstate_service.engine.resident import ResidentState
from cellstate_service.errors import AlreadyExists, CellstateError, InvalidInput, NotFound, Precondition, Reason
from cellstate_service.sessions.archive import Archive
from cellstate_service.sessions.book import SessionBook, SessionConfig, engine_of
from cellstate_service.sessions.calling import check_uid, stopping
from cellstate_service.sessions.filters import parse_filter
from cellstate_service.sessions.keeper import Keeper
from cellstate_service.sessions.residency import Residency, Right, lost
from cellstate_service.sessions.session import Durability, Expiration, Session, SessionFacts, SessionSpec, check_labels, facts_of
from cellstate_service.sessions.snapshots import Allowances, Snapshot, check_fits, check_state, snapshot_of, stored_facts
from cellstate_service.sessions.stores.store import Grave, Key

Begin = Callable[[Session], Awaitable[None]]
ANY = Right(take_over=True)


@dataclass(frozen=True, slots=True)
class SessionChange:
    """What UpdateSession changes; None leaves a part as it is."""

    expiration: Expiration | None = None
    durability: Durability | None = None
    labels: Mapping[str, str] | None = None


class SessionManager:
    """Creates, reads, changes and ends sessions, resident or stored. Loop only."""

    def __init__(
        self, engines: Mapping[str, Engine], config: SessionConfig, book: SessionBook, keeper: Keeper, residency: Residency, archive: Archive, clock: Clock
    ) -> None:
        self._engines = engines
        self._config = config
        self._book = book
        self._keeper = keeper
        self._residency = residency
        self._archive = archive
        self._clock = clock
        self._draining = False

    async def create(self, owner: str, spec: SessionSpec, initial: ResidentState | None = None) -> Session:
        """Create a session, from the model's initial state or a given one.

        Raises:
            InvalidInput, NotFound, AlreadyExists, Exhausted, Unavailable: As the contract says of CreateSession.
        """
        spec.check()
        self._check_durability(spec.durability)
        engine = engine_of(self._engines, spec.model, "session.model")
        if initial is not None:
            check_state(initial, engine.model)
        seed = secrets.randbits(64) if spec.seed is None else spec.seed

        async def begin(session: Session) -> None:
            await engine.acquire(session.resident, None if initial is None else replace(initial, seed=seed))

        return await self._make(owner, spec, engine, seed, begin)

    async def _make(self, owner: str, spec: SessionSpec, engine: Engine, seed: int, begin: Begin) -> Session:
        """Make a session, or return the one that the same request made before: its caller may not have heard of it, because the server died."""
        try:
            return await self._make_new(owner, spec, engine, seed, begin)
        except AlreadyExists as taken:
            made = await self._made(owner, spec)
            if made is None:
                raise taken from None
            return made

    async def _made(self, owner: str, spec: SessionSpec) -> Session | None:
        if not spec.uid:
            return None
        with contextlib.suppress(NotFound, Precondition):
            session = await self._residency.find(owner, spec.name, "session.name")
            return session if session.uid == spec.uid else None
        return None

    async def _make_new(self, owner: str, spec: SessionSpec, engine: Engine, seed: int, begin: Begin) -> Session:
        """Make a session: its name is claimed, its state begun, and stored where it is to survive; or nothing of it is left."""
        if self._draining:
            raise stopping()
        spec = replace(spec, name=spec.name or self._book.new_name())
        key = Key(owner, spec.name)
        async with self._residency.alone(key):
            if self._book.find(owner, spec.name) is None:
                await self._residency.make_room(engine.model.name)
            session = self._book.admit(owner, spec, engine, seed, await self._stored_only(owner))
            try:
                session.epoch = await self._residency.claim_new(key)
                await begin(session)
                if session.durability is not Durability.MEMORY:
                    await self._keeper.save([session], durable=session.durability is Durability.SYNC)
                if self._book.find(owner, spec.name) is not session:
                    raise lost()
            except BaseException:
                self._book.remove(session)
                if session.epoch:
                    await self._keeper.strike(session, None)
                raise
        self._book.count_new(session)
        return session

    async def read(self, owner: str, name: str) -> tuple[SessionFacts, ResidentState]:
        """Return what there is to know of a session, and a copy of its state between two steps.

        Raises:
            NotFound, DataLoss, Unavailable: As the contract says of GetSession.
        """
        try:
            async with self._held(owner, name) as session:
                state = await session.engine.read(session.resident)
                return replace(facts_of(session), position=state.position), state
        except Precondition as error:
            snapshot = await self._archive.find(Key(owner, name))
            if snapshot is None:
                raise
            return stored_facts(snapshot, owner, busy=error.reason is Reason.SESSION_BUSY), snapshot.state

    async def page(self, owner: str, text: str, after: str, size: int) -> tuple[list[SessionFacts], bool]:
        """Return up to `size` of the owner's sessions with names after `after` that the filter takes, by name, and whether more follow.

        Raises:
            InvalidInput: The filter cannot be read.
            Unavailable: The store cannot be used.
        """
        takes = parse_filter(text)
        resident = {session.name: session for session in self._book.sessions_of(owner)}
        found: list[SessionFacts] = []
        for name in sorted(resident.keys() | set(await self._archive.names(owner))):
            if name <= after:
                continue
            facts = facts_of(resident[name]) if name in resident else await self._archive.facts(Key(owner, name))
            if facts is not None and (facts.busy or facts.expires_s > self._clock.now()) and takes(facts):
                found.append(facts)
            if len(found) > size:
                break
        return found[:size], len(found) > size

    async def update(self, owner: str, name: str, change: SessionChange) -> Session:
        """Change a session's expiry, durability or labels: all that is asked, or nothing.

        Raises:
            InvalidInput, NotFound, Unavailable: As the contract says of UpdateSession.
        """
        async with self._held(owner, name, "session.name") as session:
            self._check_durability(change.durability)
            if change.labels is not None:
                check_labels(change.labels)
            if change.durability is Durability.SYNC and session.durability is not Durability.SYNC and session.call is not None:
                text = "session.durability: a call is on the session, whose outputs are not held until they are stored: end it first"
                raise Precondition(text, Reason.SESSION_BUSY, field="session.durability")
            expiry = None if change.expiration is None else self._book.expiry(change.expiration)
            before = (session.expires_s, session.idle_ttl_s, session.durability, session.labels)
            self._book.used(session)
            if expiry is not None:
                session.expires_s, session.idle_ttl_s = expiry
                self._book.watch(session)
            session.durability = change.durability or session.durability
            self._keeper.touch(session)
            session.labels = session.labels if change.labels is None else dict(change.labels)
            try:
                await self._save(session, stored=before[2] is not Durability.MEMORY)
            except CellstateError:
                session.expires_s, session.idle_ttl_s, session.durability, session.labels = before
                self._book.watch(session)
                raise
            return session

    async def delete(self, owner: str, name: str, uid: str) -> None:
        """Delete a session; a call on it ends.

        Raises:
            NotFound, Precondition, Unavailable: As the contract says of DeleteSession.
        """
        try:
            session = await self._residency.find(owner, name, "name", ANY)
        except CellstateError as error:
            if error.reason not in (Reason.SNAPSHOT_CORRUPT, Reason.SNAPSHOT_MISMATCH, Reason.MODEL_NOT_FOUND):
                raise
            async with self._residency.alone(Key(owner, name)):
                await self._archive.delete(Key(owner, name), uid)
            return
        check_uid(session, uid, "uid")
        async with self._residency.alone(session.key):
            if self._book.find(owner, name) is session:
                if not await self._keeper.remove(session, Grave(Reason.SESSION_CLOSED, session.resident.position)):
                    self._keeper.on_lost(session)
                    raise lost()
                self._keeper.forget(session)
                self._book.end(session, Reason.SESSION_CLOSED)

    async def reset(self, owner: str, name: str, uid: str, seed: int | None, new_uid: str = "") -> Session:
        """Put a session back to the initial state, with a new uid; where it has `new_uid` already the same request did that before.

        Raises:
            NotFound, Precondition, Unavailable: As the contract says of ResetSession.
        """
        async with self._held(owner, name) as session, self._residency.alone(session.key):
            if self._book.find(owner, name) is not session:
                raise lost()
            if new_uid and session.uid == new_uid:
                return session
            check_uid(session, uid, "uid")
            if session.call is not None:
                raise Precondition("a call is on the session: end it first", Reason.SESSION_BUSY, field="name")
            engine, old_uid = session.engine, session.uid
            before = await engine.read(session.resident)
            await engine.reset(session.resident, before.seed if seed is None else seed)
            session.uid = new_uid or secrets.token_hex(16)
            self._book.used(session)
            try:
                await self._save(session)
            except CellstateError:
                session.uid = old_uid
                await engine.write(session.resident, before)
                raise
            return session

    async def fork(self, owner: str, name: str, spec: SessionSpec, *, uid: str = "", position: int | None = None) -> Session:
        """Make a second session from one's state, as it is between two steps.

        Raises:
            NotFound, AlreadyExists, Precondition, Exhausted, Unavailable: As the contract says of ForkSession.
        """
        spec.check()
        self._check_durability(spec.durability)
        async with self._held(owner, name) as source:
            check_uid(source, uid, "uid")
            if spec.model and spec.model != source.engine.model.name:
                raise InvalidInput(f"session.model: a fork stays on {source.engine.model.name!r}", field="session.model")
            if position is not None and source.call is None and position != source.resident.position:
                raise _not_held(position, source.resident.position)
            expiration = spec.expiration if spec.expiration != Expiration() else Expiration(source.idle_ttl_s, None if source.idle_ttl_s else source.expires_s)
            spec = replace(spec, expiration=expiration, labels=spec.labels or source.labels, durability=spec.durability or source.durability)

            async def begin(session: Session) -> None:
                forked_at = await source.engine.fork(source.resident, session.resident)
                if position is not None and forked_at != position:
                    raise _not_held(position, forked_at)

            session = await self._make(owner, spec, source.engine, secrets.randbits(64) if spec.seed is None else spec.seed, begin)
            self._book.used(source)
            return session

    async def export(self, owner: str, name: str) -> Snapshot:
        """Return a snapshot of a session, as it is between two steps; of one that this server cannot bring in, what is stored.

        Raises:
            NotFound, DataLoss, Unavailable: As the contract says of ExportSession.
        """
        try:
            async with self._held(owner, name) as session:
                self._book.used(session)
                state = await session.engine.read(session.resident)
                return snapshot_of(session, replace(state, journal=None, rolled_back=False))
        except Precondition:
            snapshot = await self._archive.find(Key(owner, name))
            if snapshot is None:
                raise
            return replace(snapshot, state=replace(snapshot.state, journal=None, rolled_back=False))

    async def restore(self, owner: str, snapshot: Snapshot, spec: SessionSpec, allowed: Allowances) -> Session:
        """Create a session from a snapshot.

        Raises:
            NotFound, AlreadyExists, Precondition, Exhausted, Unavailable: As the contract says of ImportSession.
        """
        spec = replace(spec, model=spec.model or snapshot.model, labels=spec.labels or snapshot.labels)
        if spec.expiration == Expiration():
            spec = replace(spec, expiration=self._expiration_of(snapshot))
        check_fits(snapshot, engine_of(self._engines, spec.model, "open.session.model").model, allowed)
        seed = snapshot.state.seed if spec.seed is None else spec.seed
        return await self.create(owner, replace(spec, seed=seed), replace(snapshot.state, journal=None, rolled_back=False))

    def _expiration_of(self, snapshot: Snapshot) -> Expiration:
        """Return a snapshot's own expiry, within the bounds; an absolute end that has passed counts as none."""
        longest, now_s = self._config.max_ttl_s, self._clock.now()
        if snapshot.idle_ttl_s is not None:
            return Expiration(ttl_s=min(snapshot.idle_ttl_s, longest))
        if snapshot.expires_s is not None and snapshot.expires_s > now_s:
            return Expiration(at_s=min(snapshot.expires_s, now_s + longest))
        return Expiration()

    def drain(self) -> None:
        """Make no new sessions from now on."""
        self._draining = True

    async def expire_stored(self) -> None:
        """Strike out the stored sessions whose time has run out and that nobody holds.

        Raises:
            Unavailable: STORE_UNAVAILABLE.
        """
        await self._archive.expire()

    def expire_due(self) -> int:
        """End the resident sessions whose time has run out and return how many. A session with a call on it waits for the call's end."""
        return self._book.expire_due()

    @contextlib.asynccontextmanager
    async def _held(self, owner: str, name: str, field: str = "name") -> AsyncIterator[Session]:
        """Find a session and keep it resident meanwhile."""
        session = await self._residency.find(owner, name, field)
        session.pins += 1
        try:
            yield session
        finally:
            session.pins -= 1

    async def _save(self, session: Session, *, stored: bool = False) -> None:
        """Store a change that was asked for before it is answered, where the session is to survive, or is `stored` as one that was."""
        if stored or session.durability is not Durability.MEMORY:
            await self._keeper.save([session], durable=session.durability is Durability.SYNC)

    async def _stored_only(self, owner: str) -> int:
        """Return how many sessions of an owner are in the store only, where that counts."""
        if self._config.max_sessions_per_owner is None:
            return 0
        resident = {session.name for session in self._book.sessions_of(owner)}
        return len(set(await self._archive.names(owner)) - resident)

    def _check_durability(self, durability: Durability | None) -> None:
        if durability is None or durability in self._config.offered:
            return
        text = "this server keeps no store, so it offers MEMORY only; leave it unset for the default"
        if self._config.persistent:
            text = "the server's Redis does not write through to its disk (appendonly yes, appendfsync always), so SYNC is not offered; ask for PERIODIC"
        raise InvalidInput(f"session.durability: {text}", field="session.durability")


def _not_held(position: int, present: int) -> Precondition:
    error = Precondition(f"position: {position} is not held any more, the session is at {present}", Reason.POSITION_MISMATCH, field="position")
    error.at(present)
    return error
