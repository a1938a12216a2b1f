"""The loads on durable sessions, and what the report says of them."""

import pytest

from benchmarks import stores
from benchmarks.command_line import parse
from benchmarks.figures import Spread
from benchmarks.items import durability
from benchmarks.load.__main__ import KINDS
from benchmarks.load.lasting import Count, acknowledged_steps, counted
from benchmarks.report import lasting
from benchmarks.report.tables import sections
from benchmarks.samples import Results, Sample

METRICS = """# HELP cellstate_checkpoints_total Snapshots
cellstate_checkpoints_total 12.0
cellstate_checkpoints_created 3.0
cellstate_checkpoint_bytes_total 4.5e+03
"""
RECOVERY = {"empty_s": 3.0, "ready_s": 4.0, "first_all_s": 2.0, "second_all_s": 1.0, "first_p50_ms": 10.0, "first_p99_ms": 20.0}


def samples(mode: str, level: str, *rates: float) -> list[Sample]:
    figures = {"p50_ms": 1.5, "p99_ms": 9.5, "checkpoints_per_s": 64.0, "bytes_per_s": 1e6}
    return [Sample(f"durable {mode}", "ref", "sqlite", level, 64, turn, {"rate": rate, **figures}) for turn, rate in enumerate(rates)]


@pytest.fixture
def results() -> Results:
    found = Results()
    for mode in durability.KINDS:
        found.samples += samples(mode, "memory", 100.0, 200.0) + samples(mode, "periodic", 98.0, 192.0) + samples(mode, "sync", 50.0, 120.0)
    return found


def test_every_kind_is_a_load():
    assert set(durability.KINDS.values()) < set(KINDS)


def test_each_level_is_first_in_turn():
    orders = [durability.in_turn(durability.LEVELS, turn) for turn in range(3)]
    assert [order[0] for order in orders] == list(durability.LEVELS)
    assert all(sorted(order) == sorted(durability.LEVELS) for order in orders)


def test_only_the_counter_itself_is_read():
    assert counted(METRICS, "cellstate_checkpoints_total") == 12
    assert counted(METRICS, "cellstate_checkpoint_bytes_total") == 4500
    assert counted(METRICS, "cellstate_none") == 0


def test_rates_are_of_the_time_between_two_counts():
    assert Count(1.0, {"a": 10.0}).rates(Count(3.0, {"a": 30.0})) == {"a": 10.0}


def test_callers_acknowledge_by_steps_or_by_bytes():
    assert acknowledged_steps(8) == 128
    assert acknowledged_steps(1 << 20) == 1


def test_ratios_are_taken_within_a_round(results):
    assert lasting.level_ratio(results, "stepping", "sqlite", "sync", 64, "ref") == Spread(0.55, 0.5, 0.6)
    assert lasting.level_ratio(results, "stepping", "redis", "sync", 64, "ref") is None


def test_report_says_what_was_not_measured(results):
    (section,) = sections(results, parse(["--items", "durability"]), {})
    assert "| PERIODIC / MEMORY | **0.97** (0.96…0.98) |" in section
    assert "| SYNC, p50 / p99, ms | 1.5 / 9.5 |" in section
    assert "| SYNC, snapshots/s, MB/s | 64, 1 |" in section
    assert "Redis with `appendfsync always`: not measured." in section
    assert "killed" not in section


def test_report_tells_of_recovery(results):
    results.samples.append(Sample("recovery", "ref", "sqlite", "", 1000, 0, RECOVERY))
    (section,) = sections(results, parse(["--items", "durability"]), {})
    assert "1,000 PERIODIC sessions is killed" in section
    assert "| start until ready after `kill -9`, s | 4 |" in section


def test_quick_run_measures_little_of_it():
    quick = parse(["--quick"])
    assert "durability" in parse([]).items
    assert (quick.lasting_sizes, quick.recovered) == ((64,), 0)
    assert parse([]).recovered == 1000


def test_place_of_a_file_is_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "WORK", tmp_path / "work")
    with stores.sqlite() as (kind, path):
        assert kind == "store.kind=sqlite"
        assert path.startswith(f"store.path={tmp_path / 'work'}")
    assert list((tmp_path / "work").iterdir()) == []
