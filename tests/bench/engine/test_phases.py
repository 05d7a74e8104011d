"""Phases of a start: from a real probe file, and by simulated clocks with known answers."""

import json
from pathlib import Path

import pytest

from bench.engine.logs import LogFacts
from bench.engine.phases import phase_of, startup_columns, startup_phases_of

DATA = Path(__file__).parent / "data"
COLUMNS = ("import_s", "init_device_s", "load_s", "profile_s", "kv_allocation_s", "graph_capture_s", "api_s")


def recorded(name, begin, end):
    return {"name": name, "inside": [], "begin_unix_s": begin, "end_unix_s": end, "error": None}


def report(shift=0.0, upto=6):
    spans = [("worker_init", 110, 111), ("init_device", 111, 114), ("load_model", 114, 124),
             ("determine_available_memory", 124.5, 130), ("initialize_from_config", 130.5, 132),
             ("compile_or_warm_up_model", 132, 150)]  # fmt: skip
    return {
        "rank": 0,
        "phases": [recorded(name, begin + shift, end + shift) for name, begin, end in spans[:upto]],
    }


def durations(*reports, launched=100.0, ready=153.0, facts=None):
    phases = startup_phases_of(reports, facts or LogFacts(), launched, ready)
    return {phase.name: phase.duration_s for phase in phases}


def test_known_clock():
    assert durations(report()) == {
        "import": 10, "init_device": 4, "load": 10, "profile": 5.5, "kv_allocation": 1.5, "graph_capture": 18,
        "api": 3,
    }  # fmt: skip


def test_two_workers_last_from_the_first_to_the_last():
    found = durations(report(), report(shift=2.0), ready=155.0)
    assert found["import"] == 10, "until the first worker began"
    assert found["load"] == 12
    assert found["api"] == 3, "from the last one's end"


def test_a_phase_that_did_not_end_has_no_duration():
    cut = report(upto=3)
    cut["phases"][-1]["end_unix_s"] = None
    found = durations(cut, ready=None)
    assert found["init_device"] == 4
    assert found["load"] is None and found["profile"] is None and found["api"] is None


def test_one_worker_stuck_means_the_phase_is_not_over():
    stuck = report(upto=3)
    stuck["phases"][-1]["end_unix_s"] = None
    assert durations(report(upto=3), stuck, ready=None)["load"] is None


def test_without_a_probe_the_log_gives_what_it_prints():
    facts = LogFacts(load_s=4.1, profile_s=6.0, graph_capture_s=11.0)
    found = durations(facts=facts)
    assert (found["load"], found["profile"], found["graph_capture"]) == (4.1, 6.0, 11.0)
    assert found["import"] is None
    sources = {p.name: p.source for p in startup_phases_of([], facts, 100.0, 120.0)}
    assert sources["load"] == "log"


def test_probe_wins_over_the_log():
    assert durations(report(), facts=LogFacts(load_s=99.0))["load"] == 10


def test_a_clock_set_back_gives_none_not_a_negative_time():
    assert durations(report(), launched=200.0)["import"] is None


def test_real_start():
    begin = json.loads(next((DATA / "healthy").glob("worker-*.json")).read_text())["phases"][0][
        "begin_unix_s"
    ]
    columns = startup_columns(
        DATA / "healthy", (DATA / "healthy" / "log.txt").read_bytes(), begin - 12.5, begin + 30
    )
    assert tuple(columns) == COLUMNS
    assert columns["import_s"] == pytest.approx(12.5)
    assert all(value is not None and value >= 0 for value in columns.values())
    assert sum(columns.values()) <= 42.5


def test_real_failed_start(tmp_path):
    columns = startup_columns(DATA / "worker_killed_while_loading", "", 0.0, None)
    assert columns["init_device_s"] > 0 and columns["load_s"] is None
    assert set(startup_columns(tmp_path, "", None, None).values()) == {None}


def test_nested_phases_belong_to_the_outermost():
    assert (
        phase_of({"name": "runner.capture_model", "inside": ["determine_available_memory", "x"]}) == "profile"
    )
    assert phase_of({"name": "load_model", "inside": []}) == "load"
    assert phase_of({"name": "runner.strange", "inside": []}) == "unknown"
