"""What the engine thread does: it keeps each session's requests in order, steps those that are ready, and records what came out. No threads, no event loop."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import structlog

from cellstate_service.clock import Clock
from cellstate_service.engine.batch import Batch
from cellstate_service.engine.journal import Journal, content_digest
from cellstate_service.engine.load import EngineLoad
from cellstate_service.engine.outbox import Outbox
from cellstate_service.engine.processors import Processors
from cellstate_service.engine.recording import Recorded, Recorder, Steps
from cellstate_service.engine.request import Emit, Event, Failed, Finish, Finished, Outputs, Request, StopTaken
from cellstate_service.engine.resident import Resident
from cellstate_service.engine.scheduler import Pace, Scheduler, plan_steps
from cellstate_service.engine.slots import Slots
from cellstate_service.engine.state_pool import StatePool
from cellstate_service.errors import CellstateError, DeadlinePassed, NotFound, Precondition, Reason, StepFailed
from cellstate_service.models.loading import LoadedModel
from cellstate_service.observability.metrics import ModelMetrics

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StepLimits:
    """How much is taken at once.

    Attributes:
        max_batch_rows: Rows of one step at most.
        max_ahead_s: For how long outputs of generation are held back at most, to be told together.
    """

    max_batch_rows: int = 256
    max_ahead_s: float = 0.04


class EngineCore:
    """The sessions of one model and their requests, advanced one step at a time.

    Every accepted request ends exactly once: finished, failed, or dropped by its caller. A session's requests run in the order they came.

    Attributes:
        events: What the callers are still to be told, each with the outbox it goes to. The owner of this object takes them.
        load: How busy the engine is.
        slots: Sessions' slots and states.
    """

    def __init__(self, model: LoadedModel, pool: StatePool, limits: StepLimits, processors: Processors, metrics: ModelMetrics, clock: Clock) -> None:
        self._model = model
        self.slots = Slots(pool, metrics)
        self._metrics = metrics
        self._clock = clock
        self._processors = processors
        self._batch = Batch(model, pool)
        self._recorder = Recorder(model)
        self._pace = Pace(limits.max_ahead_s)
        self._scheduler: Scheduler[Resident] = Scheduler(limits.max_batch_rows)
        self._max_batch_rows = limits.max_batch_rows
        self._working: dict[Resident, None] = {}
        self.load = EngineLoad()
        self.events: list[tuple[Outbox, Event]] = []

    @property
    def has_work(self) -> bool:
        """Whether a session is ready to step."""
        return len(self._scheduler) > 0

    def warm_up(self, most_rows: int, given_up: Callable[[], bool]) -> None:
        """Compute every size of batch up to `most_rows` once, unless that is given up."""
        self._batch.warm_up(most_rows, given_up)

    def step(self) -> None:
        """Take one step of each session that is ready; of long inputs a piece, where those who wait meanwhile can bear it."""
        began_s = self._clock.monotonic()
        ready = len(self._scheduler)
        residents, overdue = self._scheduler.select(began_s + self.load.least_s)
        for resident in overdue:
            self._fail(resident, DeadlinePassed("the next step would come after the deadline: allow more time, or ask for fewer steps"))
        if not residents:
            return
        left = [resident.chunk_left for resident in residents]
        ahead = self._ahead([resident for resident, steps in zip(residents, left, strict=True) if steps <= 1])
        plan = plan_steps(left, ahead)
        if plan.single:
            singly = [residents[row] for row in plan.single]
            self._run(singly, ahead=self._ahead(singly))
        if plan.chunked:
            self._run([residents[row] for row in plan.chunked], steps=plan.steps)
        self.load.ran(self._clock.monotonic() - began_s, ready, self._max_batch_rows)

    def _ahead(self, residents: list[Resident]) -> int:
        """Return how many steps of generation to take at once."""
        return self._pace.steps(len(residents)) if all(resident.requests[0].runs_ahead for resident in residents) else 1

    def _run(self, residents: list[Resident], *, steps: int = 1, ahead: int = 1) -> None:
        """Take steps of each session in one call: a piece of its input, or one step and perhaps more of generation."""
        began_s, used_s = self._clock.monotonic(), self._clock.thread_time()
        parts = self._pace.parts(len(residents), max(steps, ahead), self._processors.share())
        try:
            taken = self._batch.step(residents, ahead, parts) if steps == 1 else self._batch.consume(residents, steps, parts)
        except Exception:
            _log.exception("a batch failed", model=self._model.name, rows=len(residents))
            self._metrics.step_failures_total.inc(len(residents))
            for resident in residents:
                self._fail(resident, StepFailed("the model's step failed: see the server's log; the session stands before this step"))
            return
        ended_s = self._clock.monotonic()
        if steps == 1:
            self._pace.took(self._clock.thread_time() - used_s, len(residents), taken.asked, parts)
        recorded = self._recorder.record(residents, taken, began_s, ended_s)
        self.events += recorded.events
        self._observe(taken, recorded, ended_s - began_s)
        for resident, request, outcome in zip(residents, taken.requests, recorded.outcomes, strict=True):
            if request.position is not None and resident.journal is not None:
                resident.journal.moved(request, resident.position)
            if outcome is not None:
                self._end(resident, request, outcome)
            else:
                self._advance(resident, request, ended_s)

    def _end(self, resident: Resident, request: Request, outcome: Finished | Failed) -> None:
        if isinstance(outcome, Failed):
            self._metrics.step_failures_total.inc()
            self._fail(resident, outcome.error)
        else:
            self._finish(resident, request, outcome)
            self._begin_next(resident)

    def _finish(self, resident: Resident, request: Request, finished: Finished) -> None:
        """Tell that the session's first request ended, and take it out."""
        self.events.append((request.outbox, finished))
        if request.position is not None and resident.journal is not None:
            resident.journal.finish(finished)
            request.outbox.follows = resident.position
        resident.requests.pop(0)

    def _advance(self, resident: Resident, request: Request, now_s: float) -> None:
        """After a step that did not end the request by itself: end it where all is done, pause it where its reader is behind."""
        generation = request.generation
        if not request.consuming and (generation is None or request.generated >= generation.max_steps):
            reason = Finish.INPUT_CONSUMED if generation is None else Finish.MAX_STEPS
            self._finish(resident, request, self._recorder.finished(resident, request, reason, now_s))
            self._begin_next(resident)
        elif request.steps_to_end <= 0 or resident.stops:
            self._finish_stopped(resident, request, now_s)
        elif resident.must_wait:
            self._pause(resident, request)

    def _pause(self, resident: Resident, request: Request) -> None:
        self._scheduler.remove(resident)
        request.outbox.paused = True
        if request.outbox.has_room_again:  # taken meanwhile, before the flag was seen
            self.make_ready(resident)

    def make_ready(self, resident: Resident) -> None:
        """Let a session that has requests step (again)."""
        if resident.requests and not resident.closed and not (resident.journal is not None and resident.journal.full):
            resident.requests[0].outbox.paused = False
            self._scheduler.add(resident, resident.requests[0].deadline_s)

    def accept(self, resident: Resident, request: Request) -> None:
        """Queue a request behind those that the session has. One that its call sent before it learned of its end is dropped."""
        if request.outbox.dropped:
            return
        if resident.closed:
            self.events.append((request.outbox, Failed(NotFound("the session was deleted", Reason.SESSION_CLOSED))))
            return
        resident.requests.append(request)
        self._working[resident] = None
        if len(resident.requests) == 1:
            self._begin_next(resident)

    def _begin_next(self, resident: Resident) -> None:
        """Make the session's first request ready to run, working off those that need no step."""
        self._scheduler.remove(resident)
        while resident.requests:
            request = resident.requests[0]
            try:
                ready = self._prepare(resident, request)
            except CellstateError as error:
                self._fail(resident, error)
                return
            except Exception:
                _log.exception("a request could not begin", model=self._model.name)
                self._fail(resident, StepFailed("the request could not begin: see the server's log; the session stands before it"))
                return
            if ready:
                self._scheduler.add(resident, request.deadline_s)
                if resident.must_wait:
                    self._pause(resident, request)
                return
        self._working.pop(resident, None)

    def _prepare(self, resident: Resident, request: Request) -> bool:
        """Check a request against the session and return whether it needs steps; where it needs none, it has been answered and removed."""
        if request.refusal is not None:
            raise request.refusal
        if request.is_stop:
            follows = request.outbox.follows  # what came before it may have been answered again, while the session stands beyond
            self.events.append((request.outbox, StopTaken(resident.position if follows is None else follows)))
            resident.requests.pop(0)
            return False
        if self._is_repeat(resident, request):
            return self._repeat(resident, request)
        resident.rolled_back = False
        if request.steps_to_end <= 0:
            self._finish(resident, request, self._recorder.finished(resident, request, Finish.STOP_DIRECTIVE, self._clock.monotonic()))
            return False
        if resident.stops:
            self._finish_stopped(resident, request, self._clock.monotonic(), begin_next=False)
            return False
        if resident.slot is None:
            self.slots.acquire(resident, None)
        if request.inputs is None and request.generation is None:
            self._answer_last_output(resident, request)
            return False
        if request.inputs is None and not resident.has_output:
            if self._model.start_value is None:
                raise Precondition(
                    "there is no output to generate from: send an input first (the model's manifest has no start value)",
                    Reason.NOTHING_TO_GENERATE_FROM,
                    field="input",
                )
            self._begin_from_start_value(request)
        return True

    def _is_repeat(self, resident: Resident, request: Request) -> bool:
        """Tell whether a request was made before; one that was not is entered in the journal where its caller may repeat it."""
        position = request.outbox.follows if request.position is None else request.position
        if position is None and request.outbox.positioned and not resident.behind:
            position = resident.position
        if position is None and resident.behind:
            raise self._rolled_back(resident)
        if position is None:
            return False
        request.position = position
        if position > resident.position:
            raise self._ahead_of(position, resident)
        if position == resident.position:
            self._journal(resident).begin(request, content_digest(request), position)
        return position < resident.position

    def _ahead_of(self, position: int, resident: Resident) -> CellstateError:
        if resident.behind:
            return self._rolled_back(resident)
        return Precondition(f"position: {position} is not the session's next position {resident.position}", Reason.POSITION_MISMATCH, field="position")

    def _rolled_back(self, resident: Resident) -> CellstateError:
        self._metrics.rollbacks_told_total.inc()
        text = f"the session may have gone back to position {resident.position} when its server died: give that position to go on from there"
        return Precondition(text, Reason.SESSION_ROLLED_BACK, field="position")

    def _answer_last_output(self, resident: Resident, request: Request) -> None:
        if not resident.has_output:
            raise Precondition("there is no output to answer: send an input first", Reason.NOTHING_TO_GENERATE_FROM, field="input")
        output, first = self._batch.last_output(resident, request), resident.position - 1
        event = self._recorder.answered(first, request, output) if isinstance(output, list) else Outputs(first, output, "", [], generated=False)
        request.outbox.sent += 1
        self.events.append((request.outbox, event))
        if request.position is not None:
            self._journal(resident).emitted(event)
        self._finish(resident, request, self._recorder.finished(resident, request, Finish.INPUT_CONSUMED, self._clock.monotonic()))

    def _journal(self, resident: Resident) -> Journal:
        if resident.journal is None:
            resident.journal = Journal()
        return resident.journal

    def _repeat(self, resident: Resident, request: Request) -> bool:
        """Answer a request again that was made before at the position that it names; return whether it needs further steps, since its call was cut."""
        entry = self._journal(resident).again(request, content_digest(request), request.position or 0, resident.position)
        resident.rolled_back = False
        self._metrics.repeats_answered_total.inc()
        for outputs in entry.outputs:
            request.outbox.sent += len(outputs.values)
            self.events.append((request.outbox, outputs))
        if entry.finished is not None:
            self.events.append((request.outbox, entry.finished))
            request.outbox.follows = entry.position
            resident.requests.pop(0)
            return False
        if request.inputs is None and entry.consumed:
            self._begin_from_start_value(request)
        request.consumed, request.generated = entry.consumed, entry.generated
        if request.steps_to_end <= 0:
            self._finish(resident, request, self._recorder.finished(resident, request, Finish.STOP_DIRECTIVE, self._clock.monotonic()))
            return False
        return True

    def acknowledge(self, resident: Resident, position: int, *, running: bool) -> None:
        """Take in up to where a caller has all outputs, said when it opens or while it is `running`; a session that waited for it goes on.

        Outputs beyond the session's position are believed where it may have been rolled back. Each call says anew whether it has such: another caller may not.
        """
        known = position if resident.behind else min(position, resident.position)
        journal = self._journal(resident)
        if not running:
            journal.acknowledged = min(journal.acknowledged, resident.position)
        journal.acknowledge(known, running=running)
        self._go_on(resident)

    def acknowledged_last(self, resident: Resident) -> None:
        """Take in that a caller who acknowledged cannot do so any more: its session waits for it no longer."""
        self._journal(resident).acknowledged_last()
        self._go_on(resident)

    def _go_on(self, resident: Resident) -> None:
        first = resident.requests[0].outbox if resident.requests else None
        if first is not None and first.paused and first.has_room_again:
            self.make_ready(resident)

    def _begin_from_start_value(self, request: Request) -> None:
        request.inputs, request.emit = np.asarray(self._model.start_value)[None], Emit.NONE

    def _finish_stopped(self, resident: Resident, request: Request, now_s: float, *, begin_next: bool = True) -> None:
        self._finish(resident, request, self._recorder.finished(resident, request, Finish.STOP_DIRECTIVE, now_s))
        if begin_next:
            self._begin_next(resident)

    def stop_generation(self, resident: Resident, outbox: Outbox) -> None:
        """End a call's generations, running and waiting; answered in its turn."""
        for request in resident.requests:
            if request.generation is not None and request.outbox is outbox:
                request.stop_requested = True
        self.accept(resident, Request(outbox, is_stop=True))
        if resident.requests and resident.stops:
            self._finish_stopped(resident, resident.requests[0], self._clock.monotonic())

    def _fail(self, resident: Resident, error: CellstateError) -> None:
        """Fail the session's running request; those of the same call behind it are dropped, since its error ends the call."""
        self.drop(resident, resident.requests[0].outbox, error)

    def drop(self, resident: Resident, outbox: Outbox, error: CellstateError | None = None) -> None:
        """Drop a call's requests, those too that are still to come. With an error, its caller is told where the session stands."""
        if error is not None and not outbox.dropped:
            self.events.append((outbox, Failed(error.at(resident.position))))
        outbox.dropped = True
        first = resident.requests[0] if resident.requests else None
        resident.requests = [request for request in resident.requests if request.outbox is not outbox]
        if first is not None and first.outbox is outbox:
            self._begin_next(resident)

    def release(self, resident: Resident) -> None:
        """Drop a session's requests and give its slot back."""
        self._scheduler.remove(resident)
        for outbox in dict.fromkeys(request.outbox for request in resident.requests if not request.outbox.dropped):
            outbox.dropped = True
            self.events.append((outbox, Failed(NotFound("the session was deleted", Reason.SESSION_CLOSED).at(resident.position))))
        resident.requests.clear()
        self._working.pop(resident, None)
        self.slots.release(resident)

    def _observe(self, steps: Steps, recorded: Recorded, run_s: float) -> None:
        """Count what one call of the runner did."""
        metrics = self._metrics
        metrics.step_seconds.observe(run_s / steps.asked)
        metrics.batch_rows.observe(len(steps.requests))
        metrics.generated_steps_total.inc(recorded.generated)
        metrics.consumed_steps_total.inc(recorded.consumed)
        if self._model.manifest.output.kind == "tokens":
            metrics.generated_tokens_total.inc(recorded.generated)
        for request, count in zip(steps.requests, steps.counts, strict=True):
            if request.started_s is not None and count and request.consumed + request.generated == count:
                metrics.queue_seconds.observe(request.started_s - request.accepted_s)

    def fail_all(self, error: Callable[[], CellstateError]) -> None:
        """Fail every call that has requests, ready, paused or waiting."""
        for resident in list(self._working):
            while resident.requests:
                self._fail(resident, error())
