"""The book of sessions: who has which, within which limits, and until when. Loop only; nothing in here awaits."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from cellstate_service.clock import Clock
from cellstate_service.engine.engine import Engine
from cellstate_service.errors import AlreadyExists, Exhausted, InvalidInput, Reason
from cellstate_service.observability.metrics import Metrics
from cellstate_service.sessions.call import CallBounds
from cellstate_service.sessions.expiries import Expiries
from cellstate_service.sessions.session import Durability, Expiration, Session, SessionSpec
from cellstate_service.sessions.tombstones import Tombstone, Tombstones, gone

NO_LABELS: Mapping[str, str] = MappingProxyType({})
"""Shared by all sessions that have none: most do."""


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Limits of sessions and calls.

    Attributes:
        max_sessions: Sessions per model at most.
        max_sessions_per_owner: Sessions of one owner at most; None for no such limit.
        max_calls: Calls at once at most.
        max_wait_s: How long steps may wait where a new call is still taken.
        idle_ttl_s: Time to live where the caller gives none.
        max_ttl_s: The longest that a caller may ask for.
        tombstones: Sessions that are gone and still remembered.
        call: How much of one call may wait.
    """

    max_sessions: int = 4096
    max_sessions_per_owner: int | None = None
    max_calls: int = 1024
    max_wait_s: float = 0.1
    idle_ttl_s: float = 3600.0
    max_ttl_s: float = 7 * 86400.0
    tombstones: int = 10_000
    call: CallBounds = field(default_factory=CallBounds)


class SessionBook:
    """Sessions by owner and name. All lookups go through the owner's own page, so nobody reaches another's."""

    def __init__(self, config: SessionConfig, metrics: Metrics, clock: Clock) -> None:
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._owners: dict[str, dict[str, Session]] = {}
        self._counts: dict[str, int] = {}
        self._tombstones = Tombstones(config.tombstones)
        self._expiries = Expiries()
        self._made = 0

    def find(self, owner: str, name: str, field: str) -> Session:
        """Return a session.

        Raises:
            NotFound: The owner has none of that name; the reason tells why it is gone.
        """
        session = self._owners.get(owner, {}).get(name)
        if session is not None and session.expires_s <= self._clock.now() and session.call is None:
            self.end(session, Reason.SESSION_EXPIRED)
            session = None
        if session is None:
            raise self._tombstones.missing(owner, name, field)
        return session

    def sessions_of(self, owner: str) -> Iterable[Session]:
        """Return an owner's sessions in the order in which they were made."""
        self.expire_due()
        return self._owners.get(owner, {}).values()

    def admit(self, owner: str, spec: SessionSpec, engine: Engine, seed: int) -> Session:
        """Enter a new session, which has no slot yet.

        Raises:
            AlreadyExists, Exhausted, InvalidInput: The name is in use, a limit is reached, or the expiry is out of bounds.
        """
        model = engine.model.name
        self.expire_due()
        sessions = self._owners.get(owner, {})
        if spec.name in sessions:
            raise AlreadyExists(f"you have a session {spec.name!r} already: use it, delete it, or choose another name", field="session.name")
        if self._counts.get(model, 0) >= self._config.max_sessions:
            raise Exhausted(
                f"{self._config.max_sessions} sessions are on {model!r}, the server's limit: delete some, or try later",
                Reason.SESSION_LIMIT,
                retry_after_s=10.0,
            )
        limit = self._config.max_sessions_per_owner
        if limit is not None and len(sessions) >= limit:
            raise Exhausted(f"you have {limit} sessions, your limit: delete some first", Reason.QUOTA_EXCEEDED, quota_subject=f"sessions of {owner}")
        expires_s, idle_ttl_s = self.expiry(spec.expiration)
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
            labels=dict(spec.labels) if spec.labels else NO_LABELS,
            created_s=now_s,
            used_s=now_s,
            expires_s=expires_s,
            idle_ttl_s=idle_ttl_s,
        )
        self._owners.setdefault(owner, sessions)[session.name] = session
        self._counts[model] = self._counts.get(model, 0) + 1
        self._tombstones.forget(owner, session.name)
        self.watch(session)
        return session

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
        model = session.engine.model.name
        self._metrics.sessions_created_total.labels(model).inc()
        self._metrics.sessions.labels(model).set(self._counts[model])

    def remove(self, session: Session) -> None:
        """Strike a session out and give its slot back; nothing is remembered."""
        if session.call is not None:
            session.call.fail(gone(Reason.SESSION_CLOSED))
            session.call = None
        sessions = self._owners.get(session.owner, {})
        if sessions.get(session.name) is session:
            del sessions[session.name]
            if not sessions:
                del self._owners[session.owner]
            self._counts[session.engine.model.name] -= 1
            self._expiries.forget(session)
        session.engine.release(session.resident)

    def end(self, session: Session, reason: Reason) -> None:
        """End a session and the call on it, and remember why for its owner."""
        position = session.resident.position
        if session.call is not None:
            session.call.fail(gone(reason))
            session.call = None
        self.remove(session)
        self._tombstones.bury(session.owner, session.name, Tombstone(reason, position))
        model = session.engine.model.name
        self._metrics.sessions_ended_total.labels(model, reason.removeprefix("SESSION_").lower()).inc()
        self._metrics.sessions.labels(model).set(self._counts[model])

    def expire_due(self) -> int:
        """End the sessions whose time has run out and return how many. A session with a call on it waits for the call's end."""
        ended = [session for session in self._expiries.due(self._clock.now()) if session.call is None]
        for session in ended:
            self.end(session, Reason.SESSION_EXPIRED)
        return len(ended)
