"""Builds the server from settings, runs it, and stops it gracefully. The one place that constructs things."""

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from cellstate_service.clock import Clock, SystemClock
from cellstate_service.fleet import Fleet
from cellstate_service.observability.exposition import Exposition
from cellstate_service.observability.metrics import Metrics
from cellstate_service.rpc.auth import Authenticator
from cellstate_service.rpc.decode import InputLimits
from cellstate_service.rpc.inference import InferenceServicer
from cellstate_service.rpc.interceptor import CallInterceptor
from cellstate_service.rpc.models import ModelServicer
from cellstate_service.rpc.programs import ProgramDecoder
from cellstate_service.rpc.server import Server, Servicers
from cellstate_service.rpc.sessions import SessionServicer
from cellstate_service.rpc.tls import server_credentials
from cellstate_service.session_parts import Sessions, open_store, without_end
from cellstate_service.sessions.book import SessionConfig
from cellstate_service.sessions.call import CallBounds
from cellstate_service.sessions.request_cache import RequestCache
from cellstate_service.sessions.session import Durability
from cellstate_service.settings import Settings

SWEEP_S = 1.0
LAG_EVERY_S = 0.05
SWITCH_S = 0.0005
"""After this long an engine that comes back from a step gets the interpreter's lock from the event loop; Python's own default is ten times that."""
KERNELS_KEPT = 1 << 16
"""Kernels that oneDNN keeps: one for each size of batch and each shape of product. Its own default, 1024, is less than one large model has."""
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class App:
    """A running server.

    Attributes:
        port: The gRPC port.
        metrics_port: The HTTP port of the metrics; None where it is off.
    """

    settings: Settings
    fleet: Fleet
    sessions: Sessions
    server: Server
    exposition: Exposition | None
    watchers: "asyncio.Future[tuple[None, None, None]]"

    @property
    def port(self) -> int:
        """The gRPC port."""
        return self.server.port

    @property
    def metrics_port(self) -> int | None:
        """The HTTP port of the metrics."""
        return None if self.exposition is None else self.exposition.port

    async def stop(self) -> None:
        """Stop gracefully.

        Health says NOT_SERVING, no new calls are taken, those that can go on elsewhere are told to, the others finish within the grace period. Then all
        sessions are given back to the store, and the engines end.
        """
        await self.server.drain()
        self.sessions.drain()
        await self.server.stop(self.settings.grace_s)
        self.watchers.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.watchers
        await self.sessions.close()
        await self.fleet.stop()
        if self.exposition is not None:
            self.exposition.close()


async def start(settings: Settings, clock: Clock | None = None) -> App:
    """Load the models, start an engine for each, and take calls: once the store of sessions can be reached, however long that takes.

    Raises:
        ModelError, TokensFileError, TLSError: What the settings name cannot be used; the message says what and where.
        ValueError: There is no model.
        OSError: A port cannot be listened on.
    """
    clock = clock or SystemClock()
    authenticator = Authenticator.from_file(settings.tokens_file)
    credentials = server_credentials(settings.tls)
    metrics = Metrics()
    fleet = Fleet(settings, metrics, clock)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS_KEPT))
    await fleet.start()
    try:
        store, offered = await open_store(settings.store, settings.sessions.tombstones, clock)
    except BaseException:
        await fleet.stop()
        raise
    sessions = Sessions(fleet.engines, store, _session_config(settings, offered), settings.store, metrics, clock)
    servicers = Servicers(
        InferenceServicer(sessions.calling, ProgramDecoder(_input_limits(settings))),
        SessionServicer(sessions.manager, RequestCache(clock), fleet.largest_snapshot_bytes),
        ModelServicer(fleet.registry),
    )
    server = Server(settings, servicers, CallInterceptor(authenticator, metrics), credentials)
    exposition = None
    if settings.metrics_port is not None:
        exposition = Exposition(metrics.registry, settings.metrics_listen_host, settings.metrics_port)
    await server.serve()
    watchers = asyncio.gather(without_end(lambda: _sweep(sessions, fleet, server)), without_end(lambda: _measure_lag(sessions)), sessions.run())
    return App(settings, fleet, sessions, server, exposition, watchers)


async def run(settings: Settings, ready: Callable[[App], None] = lambda app: None) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit status. `ready` is called once calls are taken. SIGHUP has the models' folder read again."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    sys.setswitchinterval(SWITCH_S)
    app = await _started(settings, stopping)
    if app is None:
        return 0
    reloads: set[asyncio.Task[list[str]]] = set()
    loop.add_signal_handler(signal.SIGHUP, lambda: reloads.add(asyncio.ensure_future(app.fleet.reload())))
    _set_garbage_aside()
    ready(app)
    await stopping.wait()
    _log.info("stopping")
    await app.stop()
    _log.info("stopped")
    return 0


async def _started(settings: Settings, stopping: asyncio.Event) -> App | None:
    """Start a server; None where it is told to stop before it takes calls."""
    starting, told = asyncio.ensure_future(start(settings)), asyncio.ensure_future(stopping.wait())
    await asyncio.wait((starting, told), return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if not starting.done():
        starting.cancel()
    try:
        return await starting
    except asyncio.CancelledError:
        _log.info("stopped before any call was taken")
        return None


def _set_garbage_aside() -> None:
    """Take what start-up made out of the garbage collector's sight: walking over it halts every thread for a tenth of a second, again and again."""
    gc.collect()
    gc.freeze()


async def _sweep(sessions: Sessions, fleet: Fleet, server: Server) -> None:
    """Once a second: end what has expired, stop versions of models that nobody is on any more, and tell health checks where an engine's thread has died."""
    while True:
        await asyncio.sleep(SWEEP_S)
        await sessions.expire_due()
        await fleet.retire(sessions)
        if fleet.dead:
            _log.error("an engine's thread has died: this server needs a restart", models=fleet.dead)
            await server.drain()


async def _measure_lag(sessions: Sessions) -> None:
    """Tell admission by how much the event loop is late."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + LAG_EVERY_S
        await asyncio.sleep(LAG_EVERY_S)
        sessions.calling.admission.lagged(loop.time() - due_s)


def _session_config(settings: Settings, offered: frozenset[Durability]) -> SessionConfig:
    given = settings.sessions
    return SessionConfig(
        max_sessions=given.max_sessions,
        max_sessions_per_owner=given.max_sessions_per_owner,
        max_calls=settings.engine.max_calls,
        max_wait_s=settings.limits.max_wait_s,
        idle_ttl_s=given.idle_ttl_s,
        max_ttl_s=given.max_ttl_s,
        tombstones=given.tombstones,
        durability=Durability[settings.store.default_durability.upper()],
        offered=offered,
        call=CallBounds(settings.engine.output_window_steps, settings.limits.queued_steps),
    )


def _input_limits(settings: Settings) -> InputLimits:
    limits = settings.limits
    return InputLimits(limits.max_input_steps, limits.max_message_bytes, limits.max_programs, limits.max_channels)
