"""Every metric of the server, by name. Nothing else creates one.

Units are base units (seconds, bytes), counters end in `_total`, and no label ever holds a session, an owner or anything else that a caller chooses: labels come
from the fixed sets of methods, status codes, reasons and loaded models.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from cellstate_service.observability.loop_histogram import LoopHistogram, LoopHistogramChild

StepKind = Literal["consumed", "generated"]

#: A step of a small network takes tens of microseconds, a step of a large batch tens of milliseconds: three buckets to the decade from 10 µs to 10 s.
STEP_BUCKETS_S = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
#: Calls last from one step to as long as a stream stays open.
CALL_BUCKETS_S = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
BATCH_BUCKETS_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


class Metrics:
    """The server's metrics as objects of `prometheus_client`; safe to use from any thread, but for those of calls' times, which only the event loop counts.

    A hot path asks once for `for_method` or `for_model` and keeps what it gets, since finding a child by its labels costs as much as counting.

    Args:
        registry: Where they are registered. A new registry where none is given, so that two servers of one process do not meet.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a creation time beside each series would double the endpoint, and nothing reads them
        self.registry = registry if registry is not None else CollectorRegistry()
        self._add_calls()
        self._add_steps()
        self._add_residents()
        self._add_store()
        ProcessCollector(registry=self.registry)

    def for_method(self, method: str) -> "MethodMetrics":
        """Return the metrics of one method, for example `OneToMany`."""
        return MethodMetrics(
            calls_in_progress=self.calls_in_progress.labels(method),
            call_seconds=self.call_seconds.labels(method),
            time_to_first_output_seconds=self.time_to_first_output_seconds.labels(method),
            time_between_outputs_seconds=self.time_between_outputs_seconds.labels(method),
            ended=functools.cache(functools.partial(self.calls_total.labels, method)),
        )

    def for_model(self, model: str) -> "ModelMetrics":
        """Return the metrics of one model; they appear in the endpoint from now on."""
        return ModelMetrics(
            consumed_steps_total=self.steps_total.labels(model, "consumed"),
            generated_steps_total=self.steps_total.labels(model, "generated"),
            generated_tokens_total=self.generated_tokens_total.labels(model),
            batch_rows=self.batch_rows.labels(model),
            queue_seconds=self.queue_seconds.labels(model),
            step_seconds=self.step_seconds.labels(model),
            step_failures_total=self.step_failures_total.labels(model),
            repeats_answered_total=self.repeats_answered_total.labels(model),
            rollbacks_told_total=self.rollbacks_told_total.labels(model),
            sessions=self.sessions.labels(model),
            sessions_created_total=self.sessions_created_total.labels(model),
            slots=self.slots.labels(model),
            slots_in_use=self.slots_in_use.labels(model),
            state_bytes=self.state_bytes.labels(model),
        )

    def _add_calls(self) -> None:
        self.calls_total = Counter("cellstate_calls_total", "Calls that ended, by status code.", ["method", "code"], registry=self.registry)
        self.calls_in_progress = Gauge("cellstate_calls_in_progress", "Calls that run now.", ["method"], registry=self.registry)
        self.call_seconds = self._loop_seconds("call", "Time from a call's arrival to its end.", "method", CALL_BUCKETS_S)
        first, between = "Time from a call's arrival to its first output.", "Time between two output messages of a call."
        self.time_to_first_output_seconds = self._loop_seconds("time_to_first_output", first, "method", CALL_BUCKETS_S)
        self.time_between_outputs_seconds = self._loop_seconds("time_between_outputs", between, "method", STEP_BUCKETS_S)
        self.refusals_total = Counter("cellstate_refusals_total", "Calls that ended with an error, by its stable reason.", ["reason"], registry=self.registry)

    def _add_steps(self) -> None:
        self.steps_total = Counter("cellstate_steps_total", "Steps taken, by what fed them.", ["model", "kind"], registry=self.registry)
        self.generated_tokens_total = Counter("cellstate_generated_tokens_total", "Tokens drawn by generation.", ["model"], registry=self.registry)
        self.step_failures_total = Counter("cellstate_step_failures_total", "Rows whose step raised or was not finite.", ["model"], registry=self.registry)
        self.repeats_answered_total = Counter(
            "cellstate_repeats_answered_total", "Requests that were made before, answered again and applied once.", ["model"], registry=self.registry
        )
        self.batch_rows = Histogram(
            "cellstate_batch_rows", "Sessions advanced together by one step.", ["model"], buckets=BATCH_BUCKETS_ROWS, registry=self.registry
        )
        self.queue_seconds = self._seconds("queue", "Time from a request's acceptance to its first step.", "model", STEP_BUCKETS_S)
        self.step_seconds = self._seconds("step", "Time of one step of a batch, from gathering rows to results.", "model", STEP_BUCKETS_S)

    def _add_residents(self) -> None:
        self.sessions = Gauge("cellstate_sessions", "Sessions that are resident.", ["model"], registry=self.registry)
        self.slots = Gauge("cellstate_slots", "Rows of the state pool.", ["model"], registry=self.registry)
        self.slots_in_use = Gauge("cellstate_slots_in_use", "Rows of the state pool that hold a state.", ["model"], registry=self.registry)
        self.state_bytes = Gauge("cellstate_state_bytes", "Memory of the state pool.", ["model"], registry=self.registry)
        self.sessions_created_total = Counter("cellstate_sessions_created_total", "Sessions created, forked or imported.", ["model"], registry=self.registry)
        self.sessions_ended_total = Counter("cellstate_sessions_ended_total", "Sessions that are gone, by why.", ["model", "reason"], registry=self.registry)
        self.models_loaded = Gauge("cellstate_models_loaded", "Models that are loaded.", registry=self.registry)
        self.build_info = Gauge("cellstate_build_info", "Versions that serve; always 1.", ["version", "torch"], registry=self.registry)
        self.build_info.labels(_version("cellstate"), _version("torch")).set(1)

    def _add_store(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"cellstate_{name}_total", text, labels, registry=self.registry)

        self.checkpoints_total = counter("checkpoints", "Snapshots of sessions that were written to the store.")
        self.checkpoint_bytes_total = counter("checkpoint_bytes", "Bytes of these snapshots.")
        self.checkpoint_seconds = Histogram(
            "cellstate_checkpoint_seconds",
            "Time to copy, serialize and write snapshots that are written together.",
            buckets=STEP_BUCKETS_S,
            registry=self.registry,
        )
        self.checkpoints_in_progress = Gauge("cellstate_checkpoints_in_progress", "Whether snapshots are being written.", registry=self.registry)
        self.store_errors_total = counter("store_errors", "What the store failed at.", "operation")
        self.refused_epochs_total = counter("refused_epochs", "Writes that were refused since another server has the session.")
        self.unreadable_snapshots_total = counter("unreadable_snapshots", "Stored sessions that could not be read.")
        self.spills_total = counter("spills", "Sessions that left for the store for space.", "model")
        self.returns_total = counter("returns", "Sessions that came back from the store: clean, or recovered from a server that died.", "model", "how")
        self.moves_total = counter("moves", "Sessions that were handed over between servers.", "direction")
        self.rollbacks_told_total = counter("rollbacks_told", "Calls that were told that their session had gone back.", "model")
        self.resumes_total = counter("resumes", "Calls that went on where an earlier one of their caller had broken.", "model")
        self.stored_sessions_expired_total = counter("stored_sessions_expired", "Stored sessions whose time ran out.")

    def _seconds(self, name: str, text: str, label: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"cellstate_{name}_seconds", text, [label], buckets=buckets, registry=self.registry)

    def _loop_seconds(self, name: str, text: str, label: str, buckets: tuple[float, ...]) -> LoopHistogram:
        return LoopHistogram(f"cellstate_{name}_seconds", text, label, buckets, self.registry)


@dataclass(frozen=True, slots=True)
class MethodMetrics:
    """One method's children of `Metrics`; that of `calls_total` is found by `ended`, since its code is known only at the end."""

    calls_in_progress: Gauge
    call_seconds: LoopHistogramChild
    time_to_first_output_seconds: LoopHistogramChild
    time_between_outputs_seconds: LoopHistogramChild
    ended: Callable[[str], Counter]


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """One model's children of `Metrics`; `sessions_ended_total` is not among them, since its reason differs."""

    consumed_steps_total: Counter
    generated_steps_total: Counter
    generated_tokens_total: Counter
    batch_rows: Histogram
    queue_seconds: Histogram
    step_seconds: Histogram
    step_failures_total: Counter
    repeats_answered_total: Counter
    rollbacks_told_total: Counter
    sessions: Gauge
    sessions_created_total: Counter
    slots: Gauge
    slots_in_use: Gauge
    state_bytes: Gauge


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"
