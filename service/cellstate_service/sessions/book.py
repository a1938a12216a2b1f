"""The book of sessions: who has which, within which limits, and until when. Loop only; nothing in here awaits."""

import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from cellstate_service.clock import Clock
from cellstate_service.engine.engine import Engine
from cellstate_service.errors import AlreadyExists, CellstateError, Exhausted, InvalidInput, NotFound, Reason
from cellstate_service.observability.metrics import Metrics
from cellstate_service.sessions.call import CallBounds
from cellstate_service.sessions.expiries import Expiries
from cellstate_service.sessions.session import Durability, Expiration, Session, SessionSpec
from cellstate_service.sessions.stores.store import Key
from cellstate_service.sessions.tombstones import Tombstone, Tombstones, gone

NO_LABELS: Mapping[str, str] = MappingProxyType({})
"""Shared by all sessions that have none: most do."""


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Limits of sessions and calls.

    Attributes:
        max_sessions: Resident sessions per model at most.
        max_sessions_per_owner: Sessions of one owner at most, resident or stored; None for no such limit.
        max_calls: Calls at once at most.
        max_wait_s: How long steps may wait where a new call is still taken.
        idle_ttl_s: Time to live where the caller gives none.
        max_ttl_s: The longest that a caller may ask for.
        tombstones: Sessions that are gone and still remembered.
        durability: Of sessions whose caller asks for none.
        offered: Durability that a caller may ask for. More than MEMORY where there is a store, to which sessions are spilled for space.
        call: How much of one call may wait.
    """

    max_sessions: int = 4096
    max_sessions_per_owner: int | None = None
    max_calls: int = 1024
    max_wait_s: float = 0.1
    idle_ttl_s: float = 3600.0
    max_ttl_s: float = 7 * 86400.0
    tombstones: int = 10_000
    durability: Durability = Durability.MEMORY
    offered: frozenset[Durability] = frozenset({Durability.MEMORY})
    call: CallBounds = field(default_factory=CallBounds)

    @property
    def persistent(self) -> bool:
        """Whether sessions can be kept in a store."""
        return len(self.offered) > 1


class SessionBook:
    """Resident sessions by owner and name. All lookups go through the owner's own page, so nobody reaches another's.

    Attributes:
        on_expired: Called with each session that was ended because its time ran out.
    """

    def __init__(self, config: SessionConfig, metrics: Metrics, clock: Clock) -> None:
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._owners: dict[str, dict[str, Session]] = {}
        self._counts: dict[str, int] = {}
        self._tombstones = Tombstones(config.tombstones)
        self._expiries = Expiries()
        self._by_use: dict[str, OrderedDict[Session, None]] = {}
        self.on_expired: Callable[[Session], None] = lambda session: None

    def find(self, owner: str, name: str) -> Session | None:
        """Return a resident session."""
        session = self._owners.get(owner, {}).get(name)
        if session is not None and session.expires_s <= self._clock.now() and session.call is None:
            self.expire(session)
            return None
        return session

    def missing(self, owner: str, name: str, field: str) -> NotFound:
        """Return the error that tells an owner that a session is not there, and why."""
        return self._tombstones.missing(owner, name, field)

    def new_name(self) -> str:
        """Return a name that nobody can guess."""
        return self._tombstones.new_name()

    def used(self, session: Session) -> None:
        """Take in that a session was used just now: its expiry is renewed, and it is the last of its model to be spilled."""
        session.use(self._clock.now())
        self._by_use[session.engine.model.name].move_to_end(session)

    def freed(self, session: Session) -> None:
        """Take in that the call on a session has ended: from now on it idles."""
        if session in self._by_use[session.engine.model.name]:
            self.used(session)
            self.watch(session)

    def is_full(self, model: str) -> bool:
        """Whether a model has as many resident sessions as it may."""
        return self._counts.get(model, 0) >= self._config.max_sessions

    def least_recent(self, model: str) -> Session | None:
        """Return the session of a model that nobody needs resident and that was not used for the longest time."""
        return next((session for session in self._by_use.get(model, ()) if session.is_idle), None)

    def residents(self) -> list[Session]:
        """Return all resident sessions."""
        return [session for sessions in self._owners.values() for session in sessions.values()]

    def epochs(self) -> dict[Key, int]:
        """Return the epochs of this server's claims on all resident sessions; those that are being made may have none yet."""
        return {session.key: session.epoch for session in self.residents() if session.epoch}

    def sessions_of(self, owner: str) -> Iterable[Session]:
        """Return an owner's resident sessions."""
        self.expire_due()
        return self._owners.get(owner, {}).values()

    def admit(self, owner: str, spec: SessionSpec, engine: Engine, seed: int, stored: int = 0) -> Session:
        """Enter a new session, which has no slot yet. `stored` more of its owner's are in the store only.

        Raises:
            AlreadyExists, Exhausted, InvalidInput: The name is in use, a limit is reached, or the expiry is out of bounds.
        """
        self.expire_due()
        sessions = self._owners.get(owner, {})
        if spec.name in sessions:
            raise taken()
        limit = self._config.max_sessions_per_owner
        if limit is not None and len(sessions) + stored >= limit:
            raise Exhausted(f"you have {limit} sessions, your limit: delete some first", Reason.QUOTA_EXCEEDED, quota_subject=f"sessions of {owner}")
        expires_s, idle_ttl_s = self.expiry(spec.expiration)
        now_s = self._clock.now()
        session = Session(
            owner=owner,
            name=spec.name or self.new_name(),
            uid=(spec.name and spec.uid) or secrets.token_hex(16),
            engine=engine,
            resident=engine.new_resident(seed),
            durability=spec.durability or self._config.durability,
            labels=dict(spec.labels) if spec.labels else NO_LABELS,
            created_s=now_s,
            used_s=now_s,
            expires_s=expires_s,
            idle_ttl_s=idle_ttl_s,
        )
        self.enter(session)
        return session

    def enter(self, session: Session) -> None:
        """Enter a session that is to be resident.

        Raises:
            Exhausted: The model has as many as it may.
        """
        model = session.engine.model.name
        if self.is_full(model):
            raise Exhausted(
                f"{self._config.max_sessions} sessions are on {model!r}, the server's limit: delete some, or try later",
                Reason.SESSION_LIMIT,
                retry_after_s=10.0,
            )
        self._owners.setdefault(session.owner, {})[session.name] = session
        self._counts[model] = self._counts.get(model, 0) + 1
        self._by_use.setdefault(model, OrderedDict())[session] = None
        self._tombstones.forget(session.owner, session.name)
        self.watch(session)
        self._metrics.sessions.labels(model).set(self._counts[model])

    def expiry(self, expiration: Expiration) -> tuple[float, float | None]:
        """Return when a session ends (seconds since the epoch) and its idle time to live, None where the end is absolute.

        Raises:
            InvalidInput: Beyond the bounds.
        """
        now_s, longest = self._clock.now(), self._config.max_ttl_s
        if expiration.at_s is not None:
            if not now_s < expiration.at_s <= now_s + longest:
                raise InvalidInput(f"session.expire_time: it is to lie in the future, by at most {longest:.0f} s", field="session.expire_time")
            return expiration.at_s, None
        ttl_s = self._config.idle_ttl_s if expiration.ttl_s is None else expiration.ttl_s
        if not 0 < ttl_s <= longest:
            raise InvalidInput(f"session.ttl: {ttl_s:g} s is not above 0 and at most {longest:.0f} s", field="session.ttl")
        return now_s + ttl_s, ttl_s

    def watch(self, session: Session) -> None:
        """See to it that the session ends when its time has run out."""
        self._expiries.watch(session)

    def count_new(self, session: Session) -> None:
        """Count a session that has got its slot."""
        self._metrics.sessions_created_total.labels(session.engine.model.name).inc()

    def remove(self, session: Session, error: CellstateError | None = None) -> None:
        """Strike a session out and give its slot back; nothing is remembered. A call on it ends with the error."""
        if session.call is not None:
            session.call.fail(error or gone(Reason.SESSION_CLOSED))
            session.call = None
        sessions = self._owners.get(session.owner, {})
        if sessions.get(session.name) is session:
            model = session.engine.model.name
            del sessions[session.name]
            if not sessions:
                del self._owners[session.owner]
            self._counts[model] -= 1
            del self._by_use[model][session]
            self._expiries.forget(session)
            self._metrics.sessions.labels(model).set(self._counts[model])
        session.engine.release(session.resident)

    def end(self, session: Session, reason: Reason) -> None:
        """End a session and the call on it, and remember why for its owner."""
        position = session.resident.position
        self.remove(session, gone(reason))
        self.bury(session.owner, session.name, reason, position)
        self.count_end(session.engine.model.name, reason)

    def bury(self, owner: str, name: str, reason: Reason, position: int) -> None:
        """Remember for an owner why a session is gone."""
        self._tombstones.bury(owner, name, Tombstone(reason, position))

    def count_end(self, model: str, reason: Reason) -> None:
        """Count a session that is gone."""
        self._metrics.sessions_ended_total.labels(model, reason.removeprefix("SESSION_").lower()).inc()

    def expire(self, session: Session) -> None:
        """End a session whose time has run out."""
        self.end(session, Reason.SESSION_EXPIRED)
        self.on_expired(session)

    def expire_due(self) -> int:
        """End the resident sessions whose time has run out and return how many. A session with a call on it waits for the call's end."""
        ended = [session for session in self._expiries.due(self._clock.now()) if session.call is None]
        for session in ended:
            self.expire(session)
        return len(ended)


def taken() -> AlreadyExists:
    """Return the error that a name is in use."""
    return AlreadyExists("you have a session of that name already: use it, delete it, or choose another name", field="session.name")


def engine_of(engines: Mapping[str, Engine], model: str, field: str) -> Engine:
    """Return the engine of a model.

    Raises:
        NotFound: MODEL_NOT_FOUND, telling which models there are.
    """
    engine = engines.get(model)
    if engine is None:
        loaded = ", ".join(sorted(engines)) or "none"
        raise NotFound(
            f"no model {model!r} is loaded; loaded are: {loaded}" if model else f"{field}: name a model; loaded are: {loaded}",
            Reason.MODEL_NOT_FOUND,
            field=field,
        )
    return engine
