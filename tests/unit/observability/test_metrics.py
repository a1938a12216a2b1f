import re

from prometheus_client import CollectorRegistry, generate_latest

from cellstate_service.observability.metrics import Metrics


def test_names_follow_the_conventions_of_prometheus() -> None:
    families = [family for family in Metrics().registry.collect() if not family.name.startswith("process_")]

    assert families
    for family in families:
        assert re.fullmatch(r"cellstate_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        assert not family.name.endswith(("_total", "_count", "_sum", "_bucket"))
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_rows"))


def test_no_label_is_chosen_by_a_caller() -> None:
    metrics = Metrics()
    labels = {label for metric in vars(metrics).values() for label in getattr(metric, "_labelnames", ())}

    assert labels == {"method", "code", "model", "kind", "reason", "version", "torch", "operation", "how", "direction"}


def test_step_buckets_begin_at_ten_microseconds() -> None:
    metrics = Metrics()
    metrics.for_model("reader").step_seconds.observe(9e-6)

    assert metrics.registry.get_sample_value("cellstate_step_seconds_bucket", {"model": "reader", "le": "1e-05"}) == 1.0


def test_children_of_a_model_count_into_the_same_families() -> None:
    metrics = Metrics()
    metrics.for_model("reader").generated_steps_total.inc(3)
    metrics.steps_total.labels("reader", "generated").inc()

    assert metrics.registry.get_sample_value("cellstate_steps_total", {"model": "reader", "kind": "generated"}) == 4.0


def test_children_of_a_method_count_into_the_same_families() -> None:
    metrics = Metrics()
    metrics.for_method("Run").calls_in_progress.inc()

    assert metrics.registry.get_sample_value("cellstate_calls_in_progress", {"method": "Run"}) == 1.0


def test_two_servers_of_one_process_do_not_meet() -> None:
    first, second = Metrics(), Metrics()
    first.models_loaded.set(3)

    assert second.registry.get_sample_value("cellstate_models_loaded") == 0.0


def test_a_given_registry_is_used() -> None:
    registry = CollectorRegistry()
    Metrics(registry)

    assert b"cellstate_build_info{" in generate_latest(registry)


def test_endpoint_holds_no_creation_times() -> None:
    metrics = Metrics()
    metrics.calls_total.labels("Run", "OK").inc()

    assert b"_created{" not in generate_latest(metrics.registry).replace(b"sessions_created_total", b"")
