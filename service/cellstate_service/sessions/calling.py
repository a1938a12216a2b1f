"""Which call is on which session: opened, begun once its first message was found good, ended in any case."""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from cellstate_service.engine.engine import Engine
from cellstate_service.errors import Aborted, CellstateError, Precondition, Reason, Unavailable
from cellstate_service.observability.metrics import Metrics
from cellstate_service.sessions.admission import Admission
from cellstate_service.sessions.book import SessionBook, SessionConfig, engine_of
from cellstate_service.sessions.call import Call
from cellstate_service.sessions.keeper import Keeper, Secured
from cellstate_service.sessions.lease import Lease
from cellstate_service.sessions.residency import Residency, Right
from cellstate_service.sessions.session import Durability, Session
from cellstate_service.sessions.stores.store import Key


@dataclass(frozen=True, slots=True)
class CallTarget:
    """What a call runs on: a model, or a session by name with what the caller knows of it.

    Attributes:
        acknowledged: Position up to which the caller has outputs, where it says so.
        position: Position of the first step, where the caller names it.
    """

    model: str = ""
    name: str = ""
    uid: str = ""
    stream_token: str = ""
    take_over: bool = False
    acknowledged: int | None = None
    position: int | None = None

    @property
    def goes_on(self) -> bool:
        """Whether its caller can go on elsewhere: it knows of positions."""
        return self.acknowledged is not None or self.position is not None


class Calling:
    """Puts calls on sessions, one at a time on each. Loop only.

    Attributes:
        admission: Refuses calls where the machine is busy.
        draining: New calls are refused.
        on_drain: What is called when that begins.
    """

    def __init__(
        self, engines: Mapping[str, Engine], config: SessionConfig, book: SessionBook, keeper: Keeper, residency: Residency, lease: Lease, metrics: Metrics
    ) -> None:
        self._engines = engines
        self._config = config
        self._book = book
        self._keeper = keeper
        self._residency = residency
        self._lease = lease
        self._metrics = metrics
        self.admission = Admission(config.max_calls, config.max_wait_s)
        self._on_sessions: dict[Call, CallTarget] = {}
        self._open: Counter[Engine] = Counter()
        self.draining = False
        self.on_drain: set[Callable[[], None]] = set()

    def is_near(self, owner: str, name: str) -> bool:
        """Whether a call can be opened without waiting for the store: on no session, or on a resident one."""
        return not name or (self._book.find(owner, name) is not None and not self._residency.moves(Key(owner, name)))

    async def open(self, owner: str, target: CallTarget, field: str = "target") -> Call:
        """Open a call on a session, or on a fresh state of a model. Begin it with `begin`, end it with `close`.

        Raises:
            NotFound, Precondition, Exhausted, Unavailable: As the contract says of every call.
        """
        if self.draining:
            raise stopping()
        if not target.name:
            engine = engine_of(self._engines, target.model, f"{field}.model")
            call = Call(engine, engine.new_resident(secrets.randbits(64)), None, self._config.call)
            self.admission.enter(engine)
            self._open[engine] += 1
            return call
        session = await self._residency.find(owner, target.name, f"{field}.session.name", Right(target.stream_token, target.take_over))
        check_uid(session, target.uid, f"{field}.session.uid")
        self.check_lease()
        call = Call(session.engine, session.resident, session, self._config.call)
        self.admission.enter(session.engine)
        self._open[session.engine] += 1
        session.pins += 1
        return call

    def begin(self, call: Call, target: CallTarget, field: str = "target") -> None:
        """Make a call, whose first message was found good, the one that is on its session. Until then whoever was on it goes on undisturbed.

        Raises:
            NotFound, Precondition: The session is gone or another one by now, or it is busy.
            Unavailable: This server must not answer for its sessions at present.
        """
        session = call.session
        if session is None:
            return
        if self._book.find(session.owner, session.name) is not session:
            gone = self._book.missing(session.owner, session.name, f"{field}.session.name")
            raise _moved() if gone.reason is Reason.SESSION_NOT_FOUND else gone
        check_uid(session, target.uid, f"{field}.session.uid")
        self.check_lease()
        if self._residency.moves(session.key):
            raise _moved()
        self._supersede(session, target, field)
        self._book.used(session)
        session.call = call
        self._on_sessions[call] = target
        if target.stream_token:
            self._metrics.resumes_total.labels(session.engine.model.name).inc()
        if session.durability is Durability.SYNC:
            secured = Secured(call.outbox.secure, call.abandon)
            call.outbox.hold(lambda: self._keeper.secure(session, secured))
        self._keeper.touch(session)
        call.outbox.positioned = target.goes_on
        if target.goes_on:
            call.acknowledge(target.acknowledged or 0, running=False)

    def close(self, call: Call) -> None:
        """End a call; its session is free for the next and begins to idle."""
        self.admission.leave()
        self._open[call.engine] -= 1
        call.end()
        self._on_sessions.pop(call, None)
        session = call.session
        if session is None:
            return
        session.pins -= 1
        if session.call is call:
            session.call = None
            self._book.freed(session)

    def uses(self, engine: Engine) -> bool:
        """Whether a call is open on an engine."""
        return self._open[engine] > 0

    def drain(self) -> None:
        """Refuse new calls from now on, and tell those to go on elsewhere that can."""
        self.draining = True
        for call in [call for call, target in self._on_sessions.items() if target.goes_on]:
            call.fail(stopping())
        for told in list(self.on_drain):
            told()

    @contextlib.contextmanager
    def ended_by_drain(self) -> Iterator[None]:
        """End what waits in here for its caller once new calls are refused: nothing was asked of it yet.

        Raises:
            Unavailable: SHUTTING_DOWN.
        """
        if self.draining:
            raise stopping()
        task, drained = asyncio.current_task(), False

        def told() -> None:
            nonlocal drained
            if task is not None:
                drained = True
                task.cancel()

        self.on_drain.add(told)
        try:
            yield
        except asyncio.CancelledError:
            if drained and task is not None and not task.uncancel():
                raise stopping() from None
            raise
        finally:
            self.on_drain.discard(told)

    def end_all(self) -> None:
        """End the calls on sessions that are left."""
        for call in list(self._on_sessions):
            call.fail(stopping())

    def suspend(self) -> None:
        """End the calls on sessions: this server's lease over them has lapsed."""
        for call in list(self._on_sessions):
            call.fail(_lapsed())

    def check_lease(self) -> None:
        """Raise where this server must not answer for its sessions at present.

        Raises:
            Unavailable: STORE_UNAVAILABLE.
        """
        if not self._lease.runs:
            raise _lapsed()

    def _supersede(self, session: Session, target: CallTarget, field: str) -> None:
        old = session.call
        if old is None:
            return
        if not target.take_over and not old.is_presented(target.stream_token):
            raise Precondition(
                "another call is on the session: wait for its end, present its stream_token, or set take_over",
                Reason.SESSION_BUSY,
                field=f"{field}.session.name",
            )
        session.call = None
        old.fail(Aborted("a newer call took the session over", Reason.SUPERSEDED))


def check_uid(session: Session, uid: str, field: str) -> None:
    """Raise Precondition where a caller means another session of the name."""
    if uid and uid != session.uid:
        text = "the session of that name is another one by now (created again, imported or reset): read it to learn its uid"
        raise Precondition(text, Reason.UID_MISMATCH, field=field)


def _moved() -> CellstateError:
    return Aborted("the session was taken by another server, or is being moved or reset, meanwhile: call again", Reason.SESSION_MOVED)


def stopping() -> CellstateError:
    """Return the error of a server that stops."""
    return Unavailable("the server is stopping: call another one, or again later", retry_after_s=0.1)


def _lapsed() -> CellstateError:
    text = "this server cannot reach the store of sessions, so it may not answer for them: call again"
    return Unavailable(text, Reason.STORE_UNAVAILABLE, retry_after_s=0.5)
