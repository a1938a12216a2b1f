"""The sessions of all owners: who has which, how long they live, and which call is on them."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cellstate_service.clock import Clock
from cellstate_service.engine.engine import Engine
from cellstate_service.engine.resident import ResidentState
from cellstate_service.errors import Aborted, InvalidInput, NotFound, Precondition, Reason, Unavailable
from cellstate_service.observability.metrics import Metrics
from cellstate_service.sessions.admission import Admission
from cellstate_service.sessions.book import SessionBook, SessionConfig
from cellstate_service.sessions.call import Call
from cellstate_service.sessions.filters import parse_filter
from cellstate_service.sessions.session import Durability, Expiration, Session, SessionSpec, check_durability, check_labels
from cellstate_service.sessions.snapshots import Allowances, Snapshot, check_fits, check_state


@dataclass(frozen=True, slots=True)
class CallTarget:
    """What a call runs on: a model, or a session by name with what the caller knows of it."""

    model: str = ""
    name: str = ""
    uid: str = ""
    stream_token: str = ""
    take_over: bool = False
    acknowledged: int | None = None


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
        self._clock = clock
        self._book = SessionBook(config, metrics, clock)
        self.admission = Admission(config.max_calls, config.max_wait_s)
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
            self._book.remove(session)
            raise
        self._book.count_new(session)
        return session

    def get(self, owner: str, name: str, field: str = "name") -> Session:
        """Return a session.

        Raises:
            NotFound: The owner has none of that name; the reason tells why it is gone.
        """
        return self._book.find(owner, name, field)

    async def read(self, session: Session) -> ResidentState:
        """Return a copy of a session's state between two steps."""
        return await session.engine.read(session.resident)

    def page(self, owner: str, text: str, after: int, size: int) -> tuple[list[Session], bool]:
        """Return up to `size` of the owner's sessions made after number `after` that the filter takes, and whether more follow.

        Raises:
            InvalidInput: The filter cannot be read.
        """
        takes = parse_filter(text)
        found = [session for session in self._book.sessions_of(owner) if session.number > after and takes(session)]
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
        expiry = None if change.expiration is None else self._book.expiry(change.expiration)
        session.use(self._clock.now())
        if expiry is not None:
            session.expires_s, session.idle_ttl_s = expiry
            self._book.watch(session)
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
        self._book.end(session, Reason.SESSION_CLOSED)

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
            self._book.remove(session)
            raise
        if position is not None and forked_at != position:
            self._book.remove(session)
            raise _not_held(position, forked_at)
        source.use(self._clock.now())
        self._book.count_new(session)
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
        return Snapshot(
            name=session.name,
            uid=session.uid,
            model=model.name,
            model_digest=model.digest,
            numerics_id=model.numerics_id,
            state=state,
            idle_ttl_s=session.idle_ttl_s,
            expires_s=session.expires_s,
            created_s=session.created_s,
            used_s=session.used_s,
            labels=dict(session.labels),
        )

    async def restore(self, owner: str, snapshot: Snapshot, spec: SessionSpec, allowed: Allowances) -> Session:
        """Create a session from a snapshot.

        Raises:
            NotFound, AlreadyExists, Precondition, Exhausted: As the contract says of ImportSession.
        """
        spec = replace(spec, model=spec.model or snapshot.model, labels=spec.labels or snapshot.labels)
        if spec.expiration == Expiration():
            spec = replace(spec, expiration=self._expiration_of(snapshot))
        check_fits(snapshot, self._engine(spec.model, "open.session.model").model, allowed)
        seed = snapshot.state.seed if spec.seed is None else spec.seed
        return await self.create(owner, replace(spec, seed=seed), snapshot.state)

    def _expiration_of(self, snapshot: Snapshot) -> Expiration:
        """Return a snapshot's own expiry, within the bounds; an absolute end that has passed counts as none."""
        longest, now_s = self._config.max_ttl_s, self._clock.now()
        if snapshot.idle_ttl_s is not None:
            return Expiration(ttl_s=min(snapshot.idle_ttl_s, longest))
        if snapshot.expires_s is not None and snapshot.expires_s > now_s:
            return Expiration(at_s=min(snapshot.expires_s, now_s + longest))
        return Expiration()

    # -- calls

    def open_call(self, owner: str, target: CallTarget, field: str = "target") -> Call:
        """Open a call on a session, or on a fresh state of a model. Begin it with `begin_call`, end it with `close_call`.

        Raises:
            NotFound, Precondition, Exhausted, Unavailable: As the contract says of every call.
        """
        if self._draining:
            raise Unavailable("the server is stopping: call another one, or again later", retry_after_s=1.0)
        if target.name:
            session = self.get(owner, target.name, f"{field}.session.name")
            _check_uid(session, target.uid, f"{field}.session.uid")
            engine = session.engine
            call = Call(engine, session.resident, session, self._config.call)
        else:
            engine = self._engine(target.model, f"{field}.model")
            call = Call(engine, engine.new_resident(secrets.randbits(64)), None, self._config.call)
        self.admission.enter(engine)
        return call

    def begin_call(self, call: Call, target: CallTarget, field: str = "target") -> None:
        """Make a call, whose first message was found good, the one that is on its session. Until then whoever was on it goes on undisturbed.

        Raises:
            NotFound, Precondition: The session is gone or another one by now, or it is busy.
        """
        session = call.session
        if session is None:
            return
        if self.get(session.owner, session.name, f"{field}.session.name") is not session:
            raise _replaced(f"{field}.session.uid")
        _check_uid(session, target.uid, f"{field}.session.uid")
        self._supersede(session, target, field)
        session.use(self._clock.now())
        session.call = call
        if target.acknowledged is not None:
            call.acknowledge(target.acknowledged, running=False)

    def close_call(self, call: Call) -> None:
        """End a call; its session is free for the next and begins to idle."""
        self.admission.leave()
        call.end()
        session = call.session
        if session is not None and session.call is call:
            session.call = None
            session.use(self._clock.now())
            self._book.watch(session)

    def expire_due(self) -> int:
        """End the sessions whose time has run out and return how many. A session with a call on it waits for the call's end."""
        return self._book.expire_due()

    def drain(self) -> None:
        """Refuse new calls from now on."""
        self._draining = True

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
        if self._draining:
            raise Unavailable("the server is stopping: call another one, or again later", retry_after_s=1.0)
        return self._book.admit(owner, spec, engine, seed)

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
        old.fail(Aborted("a newer call took the session over", Reason.SUPERSEDED))


def _check_uid(session: Session, uid: str, field: str) -> None:
    if uid and uid != session.uid:
        raise _replaced(field)


def _replaced(field: str) -> Precondition:
    text = "the session of that name is another one by now (created again, imported or reset): read it to learn its uid"
    return Precondition(text, Reason.UID_MISMATCH, field=field)


def _not_held(position: int, present: int) -> Precondition:
    error = Precondition(f"position: {position} is not held any more, the session is at {present}", Reason.POSITION_MISMATCH, field="position")
    error.at(present)
    return error
