"""One engine per loaded model: a thread, a state pool, a queue. The thread owns the tensors, the event loop owns the callers, they meet at the queue."""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import structlog
import torch

from cellstate_service.clock import Clock
from cellstate_service.engine.core import EngineCore, StepLimits
from cellstate_service.engine.load import EngineLoad
from cellstate_service.engine.outbox import Outbox
from cellstate_service.engine.processors import Processors
from cellstate_service.engine.request import Event, Request
from cellstate_service.engine.resident import Resident, ResidentState
from cellstate_service.engine.state_pool import StatePool
from cellstate_service.errors import CellstateError, StepFailed, Unavailable
from cellstate_service.models.loading import LoadedModel
from cellstate_service.observability.metrics import Metrics

Result = TypeVar("Result")
CALLERS_AT_ONCE = 8
"""Whose outputs are delivered in one iteration of the event loop."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes of an engine.

    Attributes:
        steps: How much is taken at once.
        slots: Sessions and calls without session that can hold state at once.
        torch_threads: Threads that torch computes a step with.
        warm_rows: Batches of 1 to this many rows are computed once before requests are: the first use of a size builds its kernels.
    """

    steps: StepLimits = field(default_factory=StepLimits)
    slots: int = 5120
    torch_threads: int = 1
    warm_rows: int = 256


class Engine:
    """Runs requests of many sessions of one model, one step of each ready session per iteration.

    The public methods are called from the event loop; everything that touches a tensor is queued to the thread, which works the queue off between two steps, in
    order. Results return to the loop once per batch. Every accepted request ends exactly once: finished, failed, or cancelled.
    """

    def __init__(self, model: LoadedModel, config: EngineConfig, processors: Processors, metrics: Metrics, clock: Clock) -> None:
        self.model = model
        self._config = config
        self._clock = clock
        pool = StatePool(model.network.state, model.network.output_size, config.slots)
        children = metrics.for_model(model.name)
        children.slots.set(config.slots)
        children.state_bytes.set(pool.bytes)
        self._processors = processors
        self._core = EngineCore(model, pool, config.steps, processors, children, clock)
        self._commands: queue.SimpleQueue[list[Callable[[], None]]] = queue.SimpleQueue()
        self._collected: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._main, name=f"engine-{model.name}", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._arrived: deque[tuple[Outbox, list[Event]]] = deque()

    # -- called from the event loop

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread; results go to `loop`. What is submitted before the engine is warm waits."""
        self._loop = loop
        self._thread.start()

    async def warmed(self) -> None:
        """Wait until every size of batch has been computed once."""
        await self._execute(lambda: None)

    async def stop(self) -> None:
        """End the thread after the step that is running. What is still queued or running fails as unavailable."""
        self._hand_over(self._begin_stop)
        await asyncio.to_thread(self._thread.join)

    @property
    def load(self) -> EngineLoad:
        """How busy it is."""
        return self._core.load

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def new_resident(self, seed: int) -> Resident:
        """Return a session at position 0 that takes its slot with its first request."""
        return Resident(seed, None if self.model.tokenizer is None else self.model.tokenizer.decoder())

    def submit(self, resident: Resident, request: Request) -> None:
        """Queue a request behind those that the session already has."""
        request.accepted_s = self._clock.monotonic()
        self._hand_over(lambda: self._core.accept(resident, request))

    def stop_generation(self, resident: Resident, outbox: Outbox) -> None:
        """End a call's generations, running and waiting; answered by `StopTaken` in its turn."""
        self._hand_over(lambda: self._core.stop_generation(resident, outbox))

    def resume(self, resident: Resident) -> None:
        """Let a paused session go on: its caller took outputs."""
        self._hand_over(lambda: self._core.make_ready(resident))

    def acknowledge(self, resident: Resident, position: int, *, running: bool) -> None:
        """Take in up to where a caller has all outputs, said when it opens or while its call is `running`."""
        self._hand_over(lambda: self._core.acknowledge(resident, position, running=running))

    def acknowledged_last(self, resident: Resident) -> None:
        """Take in that a caller who acknowledged while its call ran cannot do so any more."""
        self._hand_over(lambda: self._core.acknowledged_last(resident))

    def cancel(self, resident: Resident, outbox: Outbox, error: CellstateError | None = None) -> None:
        """Drop the requests of a call, between two steps. With an error the call ends with it, after what was emitted before."""
        self._hand_over(lambda: self._core.drop(resident, outbox, error))

    def release(self, resident: Resident) -> None:
        """Drop a session: its requests and its slot."""
        self._hand_over(lambda: self._core.release(resident))

    async def acquire(self, resident: Resident, state: ResidentState | None = None) -> None:
        """Give a session its slot now, optionally with a state to begin from.

        Raises:
            Exhausted: No slot is free.
        """
        await self._execute(lambda: self._core.slots.acquire(resident, state))

    async def read(self, resident: Resident) -> ResidentState:
        """Return a copy of a session's state, as it is between two steps."""
        return await self._execute(lambda: self._core.slots.read(resident))

    async def read_many(self, residents: Sequence[Resident]) -> list[ResidentState | None]:
        """Return copies of sessions' states, all between the same two steps; None for those that have none."""
        return await self._execute(lambda: self._core.slots.read_many(residents))

    async def position(self, resident: Resident) -> int:
        """Return a session's position after everything that was queued before."""
        return await self._execute(lambda: resident.position)

    async def fork(self, resident: Resident, other: Resident) -> int:
        """Give `other` a slot with a copy of this session's state, and return the position.

        Raises:
            Exhausted: No slot is free.
        """
        return await self._execute(lambda: self._core.slots.fork(resident, other))

    async def reset(self, resident: Resident, seed: int) -> None:
        """Put a session without requests back to the initial state."""
        await self._execute(lambda: self._core.slots.reset(resident, seed))

    async def write(self, resident: Resident, state: ResidentState) -> None:
        """Put a session without requests into a state."""
        await self._execute(lambda: self._core.slots.write(resident, state))

    async def _execute(self, operation: Callable[[], Result]) -> Result:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def settle(result: Result | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def command() -> None:
            try:
                result = operation()
            except BaseException as error:
                loop.call_soon_threadsafe(settle, None, error)
            else:
                loop.call_soon_threadsafe(settle, result, None)

        if self._stopping:
            raise _stop_error()
        self._hand_over(command)
        return await future

    def _hand_over(self, command: Callable[[], None]) -> None:
        """Queue a command, together with all others of this iteration of the event loop: what arrived together steps together, and the thread is woken once."""
        if not self._collected and self._loop is not None:
            self._loop.call_soon(self._hand_over_collected)
        self._collected.append(command)

    def _hand_over_collected(self) -> None:
        commands, self._collected = self._collected, []
        self._commands.put(commands)

    def _deliver(self, events: list[tuple[Outbox, Event]]) -> None:
        """Take events in, those of few callers in each iteration of the event loop: each caller's become a message, and others' messages wait meanwhile."""
        arrived: dict[Outbox, list[Event]] = {}
        for outbox, event in events:
            arrived.setdefault(outbox, []).append(event)
        waiting = bool(self._arrived)
        self._arrived.extend(arrived.items())
        if not waiting:
            self._deliver_some()

    def _deliver_some(self) -> None:
        for _ in range(min(CALLERS_AT_ONCE, len(self._arrived))):
            outbox, events = self._arrived.popleft()
            for event in events:
                outbox.push(event)
            outbox.wake()
        if self._arrived and self._loop is not None:
            self._loop.call_soon(self._deliver_some)

    # -- on the engine thread

    def _main(self) -> None:
        torch.set_num_threads(self._config.torch_threads)
        with torch.inference_mode():
            self._warm_up()
            while not (self._stopping and self._commands.empty()):
                self._work_off_commands()
                if self._stopping:
                    self._core.fail_all(_stop_error)
                elif self._core.has_work:
                    self._step()
                self._flush()

    def _warm_up(self) -> None:
        began_s = self._clock.monotonic()
        try:
            self._core.warm_up(min(self._config.warm_rows, self._config.steps.max_batch_rows), lambda: self._stopping)
        except Exception:  # a model that cannot be computed says so to those who call it
            _log.exception("warming up failed", model=self.model.name)
        _log.info("warm", model=self.model.name, rows=self._config.warm_rows, seconds=round(self._clock.monotonic() - began_s, 2))

    def _step(self) -> None:
        try:
            self._core.step()
        except Exception:  # the books of this step may be incomplete, so nobody goes on from them unaware
            _log.exception("the engine failed between two steps", model=self.model.name)
            self._core.fail_all(_fault_error)

    def _work_off_commands(self) -> None:
        if not self._core.has_work and not self._stopping:
            self._core.load.idle()
            self._processors.end(self.model.name)
            self._run_commands(self._commands.get())
            self._processors.begin(self.model.name)
        while True:
            try:
                commands = self._commands.get_nowait()
            except queue.Empty:
                return
            self._run_commands(commands)

    def _run_commands(self, commands: list[Callable[[], None]]) -> None:
        for command in commands:
            try:
                command()
            except Exception:
                _log.exception("engine command failed", model=self.model.name)

    def _flush(self) -> None:
        events = self._core.events
        if events and self._loop is not None:
            self._core.events = []
            try:
                self._loop.call_soon_threadsafe(self._deliver, events)
            except RuntimeError:  # the loop is closed: nobody is left to be told
                self._stopping = True

    def _begin_stop(self) -> None:
        self._stopping = True


def _stop_error() -> CellstateError:
    return Unavailable("the server is stopping: call again later", retry_after_s=1.0)


def _fault_error() -> CellstateError:
    return StepFailed("the engine failed: see the server's log, and read the session before going on")
