"""Starts that fail for memory and the walk that answers them: order, learning from rungs that fail, resume, words."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from analysis.catalogue import load_model
from bench.config import BenchConfig, DeviceConfig, EngineConfig, ModelConfig, WorkloadConfig, WorkloadPoint
from bench.errors import BadRequest
from bench.mitigate import _quantization, examine, rung_request
from bench.record.store import Recorded
from bench.record.tables import table_schema
from bench.request import Request, one_engine
from bench.resume import settled

GIB = 2**30


def request(model="tiny-llama", quantization="fp32", source="config", **changes) -> Request:
    engine = {"kv_cache_memory_bytes": 60 * GIB, "max_model_len": 1024, "max_num_seqs": 4, "enforce_eager": True}
    node = ModelConfig(name=model, source=source, config=load_model(model).config)
    settings = {"on_oom": "mitigate", **{name: changes.pop(name) for name in ("max_rungs", "rerun") if name in changes}}
    cfg = BenchConfig(
        model=node, quantization=_quantization(quantization), engine=EngineConfig(**engine | changes),
        workload=WorkloadConfig("w", [WorkloadPoint(input_tokens=64, output_tokens=8)]),
        device=DeviceConfig(kind="cpu", cpu_threads=1), **settings,
    )  # fmt: skip
    return one_engine(cfg, "cpu")


def failed(asked: Request, short_bytes: int | None, cause="insufficient_free_memory", **columns) -> dict:
    engine = asked.cfg.engine
    return {
        "run_id": f"{asked.point_id}-r0", "point_id": asked.point_id, "status": "failed", "failure_cause": cause,
        "failure_phase": "kv_allocation", "failure_sentence": "too little", "shortfall_bytes": short_bytes,
        "device_kind": "cpu", "device_memory_total_bytes": 24 * GIB, "vllm_version": "0.32.0",
        "model": asked.cfg.model.name, "quantization": asked.cfg.quantization.name,
        "dtype": asked.cfg.quantization.dtype, "model_config_json": json.dumps(asked.source.config),
        "max_num_seqs": engine.max_num_seqs, "max_model_len": engine.max_model_len, "kv_cache_dtype": "auto",
        "kv_cache_memory_bytes": engine.kv_cache_memory_bytes, "enforce_eager": True,
        "enable_prefix_caching": engine.enable_prefix_caching, "kv_block_size_tokens": 128,
    } | columns  # fmt: skip


class Rows:
    """The rows that stand, by point; counts what was looked for."""

    def __init__(self):
        self.rows: dict[str, dict] = {}

    def add(self, asked: Request, **row) -> None:
        self.rows[asked.point_id] = {"run_id": f"{asked.point_id}-r0", "status": "ok", "failure_cause": None, **row}

    def __call__(self, asked: Request) -> dict | None:
        return self.rows.get(asked.point_id)


def test_what_did_not_fail_for_memory_is_not_answered():
    asked = request()
    assert examine(asked, failed(asked, None, cause="missing_kernel"), Rows()) is None
    assert examine(asked, failed(asked, None) | {"status": "ok", "failure_cause": None}, Rows()) is None


def test_the_first_rung_is_the_point_that_somebody_asks_for_by_its_settings():
    asked = request()
    walk = examine(asked, failed(asked, 40 * GIB), Rows())
    assert walk.answer is None and walk.steps == ()
    step = walk.pending
    assert (step.number, step.name) == (1, "no more KV cache than can be used")
    assert step.request.point_id == request(kv_cache_memory_bytes="25MiB").point_id
    assert step.request.cfg.repeat == asked.cfg.repeat and step.request.cfg.set == asked.cfg.set
    assert (step.gain_bytes, step.short_bytes) == (60 * GIB - 25 * 2**20, 40 * GIB)
    columns = step.columns(failed(asked, 40 * GIB))
    assert columns["mitigates_run_id"] == f"{asked.point_id}-r0" and columns["mitigation_change"] == (
        "kv_cache_memory_bytes 25 MiB"
    )
    assert set(columns) <= set(table_schema("engines").names)


def test_a_walk_ends_at_the_first_rung_that_works_and_says_what_it_cost():
    asked, rows = request(), Rows()
    rows.add(examine(asked, failed(asked, 40 * GIB), rows).pending.request)
    walk = examine(asked, failed(asked, 40 * GIB), rows)
    assert walk.pending is None and walk.answer.number == 1
    assert walk.sentence() == (
        "tiny-llama fp32 S=4 fixed did not fit (at kv_allocation: insufficient_free_memory, 40.00 GiB short): works "
        "with kv_cache_memory_bytes 25 MiB (rung 1, no more KV cache than can be used; costs nothing: more is never "
        "used; predicted to free 59.98 GiB, 40.00 GiB were short)"
    )


def test_a_rung_that_fails_for_memory_again_says_how_much_was_really_short():
    asked, rows = request(enable_prefix_caching=True), Rows()
    row = failed(asked, 40 * GIB)
    first = examine(asked, row, rows).pending
    assert first.request.cfg.engine.kv_cache_memory_bytes == 19 * GIB
    rows.add(first.request, **failed(first.request, 2 * GIB))
    second = examine(asked, row, rows).pending
    # 41 GiB were freed and 2 more were lacking: 43, and one for the host.
    assert (second.number, second.short_bytes) == (2, 43 * GIB)
    assert second.request.cfg.engine.kv_cache_memory_bytes == 16 * GIB
    rows.add(second.request)
    told = examine(asked, row, rows).sentence()
    assert "works with kv_cache_memory_bytes 16.00 GiB (rung 2, smaller KV pool; after" in told
    assert "kv_cache_memory_bytes 19.00 GiB (insufficient_free_memory, still 2.00 GiB short)" in told


def test_a_walk_is_never_endless():
    asked, rows = request(enable_prefix_caching=True, max_rungs=3), Rows()
    row = failed(asked, 40 * GIB)
    for _ in range(3):
        step = examine(asked, row, rows).pending
        rows.add(step.request, **failed(step.request, GIB))
    walk = examine(asked, row, rows)
    assert walk.pending is None and len(walk.steps) == 3 and len({step.request.point_id for step in walk.steps}) == 3
    assert "nothing tried works" in walk.sentence() and walk.sentence().endswith("that is max_rungs=3")
    more = dataclasses.replace(asked, cfg=dataclasses.replace(asked.cfg, max_rungs=4))
    assert examine(more, row, rows).pending.number == 4, "whoever allows more goes on from there"


def test_rungs_that_learn_nothing_new_end_too():
    """Failures that say no amount: each rung is tried once, and none that frees less."""
    asked, rows = request(max_rungs=50), Rows()
    row = failed(asked, None, cause="cannot_fit", status="pruned", failure_phase="unknown")
    gains = []
    while (walk := examine(asked, row, rows)).pending:
        gains.append(walk.pending.gain_bytes)
        rows.add(walk.pending.request, **failed(walk.pending.request, None, cause="out_of_memory"))
    assert 0 < len(gains) < 20 and gains == sorted(gains)
    assert "no other change is predicted to work" in walk.sentence()


def test_a_rung_stopped_by_a_passing_cause_is_started_again_by_the_next_sweep_and_not_passed_over():
    asked, rows = request(), Rows()
    row = failed(asked, 40 * GIB)
    rows.add(examine(asked, row, rows).pending.request, status="failed", failure_cause="device_not_clean")
    walk = examine(asked, row, rows)
    assert walk.pending.number == 1 and walk.pending.row is not None, "nothing to start now"
    assert "device_not_clean" in walk.sentence() and "the next sweep goes on" in walk.sentence()
    assert examine(asked, row, Rows()).pending.row is None, "a row that does not stand is not found: it is started"


def test_a_rung_that_fits_and_cannot_generate_is_no_answer():
    asked, rows = request(), Rows()
    row = failed(asked, 40 * GIB)
    rows.add(examine(asked, row, rows).pending.request, status="memory_only", failure_cause="missing_kernel")
    walk = examine(asked, row, rows)
    assert walk.answer is None and walk.pending.number == 2 and walk.pending.name == "smaller KV pool"


def test_nothing_predicted_is_said_and_nothing_is_started():
    asked = request(kv_cache_memory_bytes="25MiB", max_num_seqs=1)
    walk = examine(asked, failed(asked, 100 * GIB), Rows())
    assert walk.pending is None and walk.steps == ()
    assert "no change of its settings is predicted to work on this device; nothing was started" in walk.sentence()
    unknown = examine(asked, failed(asked, GIB) | {"model_config_json": None}, Rows())
    assert unknown.pending is None and "no advice: the row holds no config.json" in unknown.sentence()


def test_a_change_of_format_is_the_catalogues_and_needs_dummy_weights():
    asked = request()
    changed = rung_request(asked, {"quantization": "awq", "engine.max_num_seqs": 2})
    assert changed.point_id == request(quantization="awq", max_num_seqs=2).point_id
    assert changed.source.config["quantization_config"]["quant_method"] == "awq"
    cfg = dataclasses.replace(asked.cfg, model=dataclasses.replace(asked.cfg.model, source="path", path="/data/m"))
    with pytest.raises(BadRequest, match="needs another checkpoint"):
        rung_request(dataclasses.replace(asked, cfg=cfg), {"quantization": "awq"})


def test_the_failed_point_and_refused_rungs_are_never_started():
    asked = request(max_num_batched_tokens=4)
    walk = examine(asked, failed(asked, 40 * GIB), Rows())
    assert walk.pending.request.point_id != asked.point_id
    with pytest.raises(BadRequest):
        rung_request(asked, {"engine.max_num_batched_tokens": 2})


@pytest.mark.parametrize(
    ("cause", "on_oom", "stands"),
    [("insufficient_free_memory", "record", False), ("insufficient_free_memory", "mitigate", True),
     ("out_of_memory", "record", True), ("device_not_clean", "mitigate", False), (None, "mitigate", True)],
)  # fmt: skip
def test_memory_that_was_not_free_is_a_passing_cause_only_where_nothing_answers_it(cause, on_oom, stands):
    cfg = BenchConfig(on_oom=on_oom)
    row = Recorded("r", "p", "e", 0, "failed" if cause else "ok", cause)
    assert settled(row, cfg) is stands
    assert settled(row, BenchConfig(on_oom=on_oom, rerun="failed")) is (cause is None)
    assert not settled(row, BenchConfig(on_oom=on_oom, rerun="all"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"on_oom": "retry"}, "on_oom=retry: choose one of record, mitigate"),
     ({"max_rungs": 0}, "max_rungs=0: must be greater than 0")],
)  # fmt: skip
def test_a_bad_setting_is_refused_in_a_sentence(settings, said):
    with pytest.raises(BadRequest, match=said):
        BenchConfig(**settings)


def test_a_group_of_engines_is_not_answered_by_changing_one():
    with pytest.raises(BadRequest, match="on_oom=mitigate: answers a single engine"):
        BenchConfig(on_oom="mitigate", colocate=SimpleNamespace(active=True))


# -- a real engine -------------------------------------------------------------------------------------------

engine = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs an installed vLLM"),
]
POINT = ["model=tiny-llama", "quantization=fp32", "engine=cpu", "device=cpu", "engine.max_num_seqs=4"]
# vLLM compares it with what is available and refuses it untouched, on any machine.
TOO_MUCH = "engine.kv_cache_memory_bytes=64000GiB"


def _rows(root: Path) -> list[dict]:
    files = sorted((root / "engines").glob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]
    return sorted(rows, key=lambda row: row["started_unix_s"])


def _needs_engine(test):
    for mark in engine:
        test = mark(test)
    return test


@_needs_engine
def test_a_kv_space_larger_than_memory_is_diagnosed_and_the_first_working_rung_starts(bench, tmp_path):
    words = [*POINT, TOO_MUCH, "workload=smoke", "prune=false", "on_oom=mitigate", f"paths.results={tmp_path}", "set=m"]
    done = bench(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    failed, rung = _rows(tmp_path / "m")
    assert (failed["status"], failed["failure_phase"], failed["failure_cause"]) == (
        "failed", "kv_allocation", "insufficient_free_memory",
    )  # fmt: skip
    total = failed["device_memory_total_bytes"]
    assert 64000 * GIB - total < failed["shortfall_bytes"] < 64000 * GIB
    assert failed["mitigates_run_id"] is None
    assert (rung["status"], rung["mitigates_run_id"], rung["mitigation_rung"]) == ("ok", failed["run_id"], 1)
    assert rung["kv_cache_memory_bytes"] == 25 * 2**20 and rung["kv_cache_tokens"] == 4 * 1024
    assert rung["mitigation_gain_bytes"] == 64000 * GIB - 25 * 2**20
    assert rung["mitigation_short_bytes"] == failed["shortfall_bytes"]
    assert "works with kv_cache_memory_bytes 25 MiB" in done.stderr and "works with kv_cache" in done.stdout
    assert "1 failed for memory and answered" in done.stdout

    again = bench(*words)
    assert again.returncode == 0 and "1 recorded before, 0 to start" in again.stderr
    assert "works with kv_cache_memory_bytes 25 MiB" in again.stdout
    same = bench(*POINT, "engine.kv_cache_memory_bytes=25MiB", "workload=smoke", f"paths.results={tmp_path}", "set=m")
    assert "1 recorded before, 0 to start" in same.stderr, "a rung is a point like any other"
    assert len(_rows(tmp_path / "m")) == 2


@_needs_engine
def test_a_pruned_point_is_answered_too_and_a_walk_that_was_cut_short_goes_on(bench, tmp_path):
    words = [*POINT, TOO_MUCH, "workload=none", f"paths.results={tmp_path}", "set=p"]
    assert bench(*words).returncode == 0
    (pruned,) = _rows(tmp_path / "p")
    assert (pruned["status"], pruned["failure_cause"]) == ("pruned", "cannot_fit")
    needed = 64000 * GIB + pruned["expected_weights_bytes"]
    assert pruned["shortfall_bytes"] == needed - pruned["device_memory_total_bytes"]
    done = bench(*words, "on_oom=mitigate")
    assert done.returncode == 0, done.stdout + done.stderr
    before, rung = _rows(tmp_path / "p")
    assert before == pruned, "what is recorded stays as it is"
    assert (rung["status"], rung["mitigates_run_id"]) == ("ok", pruned["run_id"])
    assert rung["mitigation_short_bytes"] == pruned["shortfall_bytes"]
    assert "pruned before the start: cannot_fit" in done.stdout
