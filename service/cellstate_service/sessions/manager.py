"""The sessions of all owners: who has which, how long they live, and which call is on them."""

import heapq
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cellstate_service.clock import Clock
from cellstate_service.engine.engine import Engine
from cellstate_service.engine.resident import Resident, ResidentState
from cellstate_service.errors import Aborted, AlreadyExists, Exhausted, InvalidInput, NotFound, Precondition, Reason, Unavailable
from cellstate_service.observability.metrics import Metrics
from cellstate_service.sessions.call import Call, CallBounds
from cellstate_service.sessions.filters import parse_filter
from cellstate_service.sessions.session import Durability, Expiration, Session, SessionSpec, check_durability, check_labels
from cellstate_service.sessions.snapshots import Allowances, Snapshot, check_fits, check_state
from cellstate_service.sessions.tombstones import Tombstone, Tombstones, gone


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Limits of sessions and calls.

    Attributes:
        max_sessions: Sessions per model at most.
        max_sessions_per_owner: Sessions of one owner at most; None for no such limit.
        max_calls: Calls at once at most.
        idle_ttl_s: Time to live where the caller gives none.
        max_ttl_s: The longest that a caller may ask for.
        tombstones: Sessions that are gone and still remembered.
        call: How much of one call may wait.
    """

    max_sessions: int = 4096
    max_sessions_per_owner: int | None = None
    max_calls: int = 1024
    idle_ttl_s: float = 3600.0
    max_ttl_s: float = 7 * 86400.0
    tombstones: int = 10_000
    call: CallBounds = field(default_factory=CallBounds)


@dataclass(frozen=True, slots=True)
class CallTarget:
    """What a call runs on: a model, or a session by name with what the caller knows of it."""

    model: str = ""
    name: str = ""
    uid: str = ""
    stream_token: str = ""
    take_over: bool = False


@dataclass(frozen=True, slots=True)
class SessionChange:
    """What UpdateSession changes; None leaves a part as it is."""

    expiration: Expiration | None = None
    durability: Durability | None = None
    labels: Mapping[str, str] | None = None


class SessionManager:
    """Keeps sessions in memory. All methods run in the event loop; what changes the books never awaits in between, so that no two calls interleave."""

    def __init__(self, engines: Mapping[str, Engine], config: SessionConfig, metrics: Metrics, clock: Clock) -> None:
        self._engines = engines
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._owners: dict[str, dict[str, Session]] = {}
        self._counts = dict.fromkeys(engines, 0)
        self._tombstones = Tombstones(config.tombstones)
        self._expiries: list[tuple[float, int, Session]] = []
        self._made_entries = 0
        self._made = 0
        self._calls = 0
        self._draining = False

    # -- lifecycle

    async def create(self, owner: str, spec: SessionSpec, initial: ResidentState | None = None) -> Session:
        """Create a session, from the model's initial state or a given one.

        Raises:
            InvalidInput, NotFound, AlreadyExists, Exhausted: As the contract says of CreateSession.
        """
        spec.check()
        engine = self._engine(spec.model, "session.model")
        if initial is not None:
            check_state(initial, engine.model)
        seed = secrets.randbits(64) if spec.seed is None else spec.seed
        session = self._admit(owner, spec, engine, seed)
        try:
            await engine.acquire(session.resident, None if initial is None else replace(initial, seed=seed))
        except BaseException:
            self._remove(session)
            raise
        self._count_new(session)
        return session

    def get(self, owner: str, name: str, field: str = "name") -> Session:
        """Return a session.

        Raises:
            NotFound: The owner has none of that name; the reason tells why it is gone.
        """
        session = self._owners.get(owner, {}).get(name)
        if session is not None and session.expires_s <= self._clock.now() and session.call is None:
            self._end(session, Reason.SESSION_EXPIRED)
            session = None
        if session is None:
            raise self._tombstones.missing(owner, name, field)
        return session

    async def read(self, session: Session) -> ResidentState:
        """Return a copy of a session's state between two steps."""
        return await session.engine.read(session.resident)

    def page(self, owner: str, text: str, after: int, size: int) -> tuple[list[Session], bool]:
        """Return up to `size` of the owner's sessions made after number `after` that the filter takes, and whether more follow.

        Raises:
            InvalidInput: The filter cannot be read.
        """
        self.expire_due()
        takes = parse_filter(text)
        found = [session for session in self._owners.get(owner, {}).values() if session.number > after and takes(session)]
        return found[:size], len(found) > size

    def update(self, owner: str, name: str, change: SessionChange) -> Session:
        """Change a session's expiry, durability or labels: all that is asked, or nothing.

        Raises:
            InvalidInput, NotFound: As the contract says of UpdateSession.
        """
        session = self.get(owner, name, "session.name")
        check_durability(change.durability)
        if change.labels is not None:
            check_labels(change.labels)
        if change.expiration is not None:
            session.expires_s, session.idle_ttl_s = self._expiry(change.expiration)
            self._watch(session)
        if change.labels is not None:
            session.labels = dict(change.labels)
        return session

    def delete(self, owner: str, name: str, uid: str) -> None:
        """Delete a session; a call on it ends.

        Raises:
            NotFound, Precondition: As the contract says of DeleteSession.
        """
        session = self.get(owner, name)
        _check_uid(session, uid, "uid")
        self._end(session, Reason.SESSION_CLOSED)

    async def reset(self, owner: str, name: str, uid: str, seed: int | None) -> Session:
        """Put a session back to the initial state, with a new uid.

        Raises:
            NotFound, Precondition: As the contract says of ResetSession.
        """
        session = self.get(owner, name)
        _check_uid(session, uid, "uid")
        if session.call is not None:
            raise Precondition("a call is on the session: end it first", Reason.SESSION_BUSY, field="name")
        session.uid = secrets.token_hex(16)
        session.use(self._clock.now())
        await session.engine.reset(session.resident, session.resident.seed if seed is None else seed)
        return session

    async def fork(self, owner: str, name: str, spec: SessionSpec, *, uid: str = "", position: int | None = None) -> Session:
        """Make a second session from one's state, as it is between two steps.

        Raises:
            NotFound, AlreadyExists, Precondition, Exhausted: As the contract says of ForkSession.
        """
        spec.check()
        source = self.get(owner, name)
        _check_uid(source, uid, "uid")
        if spec.model and spec.model != source.engine.model.name:
            raise InvalidInput(f"session.model: a fork stays on {source.engine.model.name!r}", field="session.model")
        if position is not None and source.call is None and position != source.resident.position:
            raise _not_held(position, source.resident.position)
        expiration = spec.expiration if spec.expiration != Expiration() else Expiration(source.idle_ttl_s, None if source.idle_ttl_s else source.expires_s)
        spec = replace(spec, expiration=expiration, labels=spec.labels or source.labels)
        session = self._admit(owner, spec, source.engine, secrets.randbits(64) if spec.seed is None else spec.seed)
        try:
            forked_at = await source.engine.fork(source.resident, session.resident)
        except BaseException:
            self._remove(session)
            raise
        if position is not None and forked_at != position:
            self._remove(session)
            raise _not_held(position, forked_at)
        source.use(self._clock.now())
        self._count_new(session)
        return session

    async def export(self, owner: str, name: str) -> Snapshot:
        """Return a snapshot of a session, as it is between two steps.

        Raises:
            NotFound: As the contract says of ExportSession.
        """
        session = self.get(owner, name)
        session.use(self._clock.now())
        model = session.engine.model
        state = await self.read(session)
        return Snapshot(session.name, session.uid, model.name, model.digest, model.numerics_id, state, session.idle_ttl_s, dict(session.labels))

    async def restore(self, owner: str, snapshot: Snapshot, spec: SessionSpec, allowed: Allowances) -> Session:
        """Create a session from a snapshot.

        Raises:
            NotFound, AlreadyExists, Precondition, Exhausted: As the contract says of ImportSession.
        """
        spec = replace(spec, model=spec.model or snapshot.model, labels=spec.labels or snapshot.labels)
        if spec.expiration == Expiration() and snapshot.idle_ttl_s is not None:
            spec = replace(spec, expiration=Expiration(ttl_s=min(snapshot.idle_ttl_s, self._config.max_ttl_s)))
        check_fits(snapshot, self._engine(spec.model, "open.session.model").model, allowed)
        seed = snapshot.state.seed if spec.seed is None else spec.seed
        return await self.create(owner, replace(spec, seed=seed), snapshot.state)

    # -- calls

    def open_call(self, owner: str, target: CallTarget, field: str = "target") -> Call:
        """Begin a call on a session, or on a fresh state of a model. End it with `close_call`.

        Raises:
            NotFound, Precondition, Exhausted, Unavailable: As the contract says of every call.
        """
        if self._draining:
            raise Unavailable("the server is stopping: call another one, or again later", retry_after_s=1.0)
        if self._calls >= self._config.max_calls:
            raise Exhausted(f"{self._calls} calls are running, the server's limit: try again", Reason.OVERLOADED, retry_after_s=1.0)
        if target.name:
            session = self.get(owner, target.name, f"{field}.session.name")
            _check_uid(session, target.uid, f"{field}.session.uid")
            self._supersede(session, target, field)
            session.use(self._clock.now())
            call = self._new_call(session.engine, session.resident, session)
            session.call = call
        else:
            engine = self._engine(target.model, f"{field}.model")
            call = self._new_call(engine, engine.new_resident(secrets.randbits(64)), None)
        self._calls += 1
        return call

    def close_call(self, call: Call) -> None:
        """End a call; its session is free for the next and begins to idle."""
        self._calls -= 1
        call.end()
        session = call.session
        if session is not None and session.call is call:
            session.call = None
            session.use(self._clock.now())
            self._watch(session)

    def drain(self) -> None:
        """Refuse new calls from now on."""
        self._draining = True

    # -- expiry

    def expire_due(self) -> int:
        """End the sessions whose time has run out and return how many. A session with a call on it waits for the call's end."""
        now_s, ended = self._clock.now(), 0
        while self._expiries and self._expiries[0][0] <= now_s:
            at_s, _, session = heapq.heappop(self._expiries)
            if session.watched_s == at_s:
                session.watched_s = None
            if self._owners.get(session.owner, {}).get(session.name) is not session or session.call is not None:
                continue
            if session.expires_s > now_s:
                self._watch(session)
            else:
                self._end(session, Reason.SESSION_EXPIRED)
                ended += 1
        return ended

    # -- the books

    def _engine(self, model: str, field: str) -> Engine:
        engine = self._engines.get(model)
        if engine is None:
            loaded = ", ".join(sorted(self._engines)) or "none"
            raise NotFound(
                f"no model {model!r} is loaded; loaded are: {loaded}" if model else f"{field}: name a model; loaded are: {loaded}",
                Reason.MODEL_NOT_FOUND,
                field=field,
            )
        return engine

    def _admit(self, owner: str, spec: SessionSpec, engine: Engine, seed: int) -> Session:
        model = engine.model.name
        if self._draining:
            raise Unavailable("the server is stopping: call another one, or again later", retry_after_s=1.0)
        self.expire_due()
        sessions = self._owners.get(owner, {})
        if spec.name in sessions:
            raise AlreadyExists(f"you have a session {spec.name!r} already: use it, delete it, or choose another name", field="session.name")
        if self._counts[model] >= self._config.max_sessions:
            raise Exhausted(
                f"{self._config.max_sessions} sessions are on {model!r}, the server's limit: delete some, or try later",
                Reason.SESSION_LIMIT,
                retry_after_s=10.0,
            )
        limit = self._config.max_sessions_per_owner
        if limit is not None and len(sessions) >= limit:
            raise Exhausted(f"you have {limit} sessions, your limit: delete some first", Reason.QUOTA_EXCEEDED, quota_subject=f"sessions of {owner}")
        expires_s, idle_ttl_s = self._expiry(spec.expiration)
        now_s = self._clock.now()
        self._made += 1
        session = Session(
            owner=owner,
            name=spec.name or self._tombstones.new_name(),
            uid=secrets.token_hex(16),
            number=self._made,
            engine=engine,
            resident=engine.new_resident(seed),
            durability=Durability.MEMORY,
            labels=dict(spec.labels),
            created_s=now_s,
            used_s=now_s,
            expires_s=expires_s,
            idle_ttl_s=idle_ttl_s,
        )
        self._owners.setdefault(owner, sessions)[session.name] = session
        self._counts[model] += 1
        self._tombstones.forget(owner, session.name)
        self._watch(session)
        return session

    def _expiry(self, expiration: Expiration) -> tuple[float, float | None]:
        now_s, longest = self._clock.now(), self._config.max_ttl_s
        if expiration.at_s is not None:
            if not now_s < expiration.at_s <= now_s + longest:
                raise InvalidInput(f"session.expire_time: it is to lie in the future, by at most {longest:.0f} s", field="session.expire_time")
            return expiration.at_s, None
        ttl_s = self._config.idle_ttl_s if expiration.ttl_s is None else expiration.ttl_s
        if not 0 < ttl_s <= longest:
            raise InvalidInput(f"session.ttl: {ttl_s:g} s is not above 0 and at most {longest:.0f} s", field="session.ttl")
        return now_s + ttl_s, ttl_s

    def _watch(self, session: Session) -> None:
        """See to it that the heap holds an entry at or before the session's expiry; one entry serves for many renewals."""
        if session.watched_s is None or session.expires_s < session.watched_s:
            session.watched_s = session.expires_s
            self._made_entries += 1
            heapq.heappush(self._expiries, (session.expires_s, self._made_entries, session))
            if len(self._expiries) > 2 * sum(self._counts.values()) + 1024:
                self._compact_expiries()

    def _compact_expiries(self) -> None:
        """Drop the entries of sessions that are gone, or that an earlier entry watches, so that the heap stays in proportion to the sessions."""
        self._expiries = [
            entry for entry in self._expiries if entry[2].watched_s == entry[0] and self._owners.get(entry[2].owner, {}).get(entry[2].name) is entry[2]
        ]
        heapq.heapify(self._expiries)

    def _count_new(self, session: Session) -> None:
        model = session.engine.model.name
        self._metrics.sessions_created_total.labels(model).inc()
        self._metrics.sessions.labels(model).set(self._counts[model])

    def _remove(self, session: Session) -> None:
        sessions = self._owners.get(session.owner, {})
        if sessions.get(session.name) is session:
            del sessions[session.name]
            if not sessions:
                del self._owners[session.owner]
            self._counts[session.engine.model.name] -= 1
        session.engine.release(session.resident)

    def _end(self, session: Session, reason: Reason) -> None:
        position = session.resident.position
        if session.call is not None:
            session.call.fail(gone(reason, position=position))
            session.call = None
        self._remove(session)
        self._tombstones.bury(session.owner, session.name, Tombstone(reason, position))
        model = session.engine.model.name
        self._metrics.sessions_ended_total.labels(model, reason.removeprefix("SESSION_").lower()).inc()
        self._metrics.sessions.labels(model).set(self._counts[model])

    def _supersede(self, session: Session, target: CallTarget, field: str) -> None:
        old = session.call
        if old is None:
            return
        if not target.take_over and not secrets.compare_digest(target.stream_token.encode(), old.stream_token.encode()):
            raise Precondition(
                "another call is on the session: wait for its end, present its stream_token, or set take_over",
                Reason.SESSION_BUSY,
                field=f"{field}.session.name",
            )
        session.call = None
        old.fail(Aborted("a newer call took the session over", Reason.SUPERSEDED).at(session.resident.position))

    def _new_call(self, engine: Engine, resident: Resident, session: Session | None) -> Call:
        return Call(engine, resident, session, self._config.call)


def _check_uid(session: Session, uid: str, field: str) -> None:
    if uid and uid != session.uid:
        raise Precondition(
            "the session of that name is another one by now (created again, imported or reset): read it to learn its uid", Reason.UID_MISMATCH, field=field
        )


def _not_held(position: int, present: int) -> Precondition:
    error = Precondition(f"position: {position} is not held any more, the session is at {present}", Reason.POSITION_MISMATCH, field="position")
    error.at(present)
    return error
