"""Real vLLM engines through the command line: what a sweep records, resumes, survives and says of failures."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs an installed vLLM"),
]

# One small point; each test changes what it is about.
POINT = ["model=tiny-llama", "quantization=fp32", "engine=cpu", "workload=smoke", "device=cpu"]


def _rows(root: Path, table: str = "engines") -> list[dict]:
    files = sorted((root / table).glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]


def _engines_alive() -> list[str]:
    """Command lines of live processes that this machine's harness started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            if state != "Z" and any(mark in command for mark in ("warm_parent", "VLLM::", "vllm.entrypoints")):
                found.append(command)
    return found


@pytest.fixture(scope="module")
def sweep(bench, tmp_path_factory):
    """A real grid: two formats x two token budgets, twice started for one of them by `repeats`."""
    results = tmp_path_factory.mktemp("results")
    words = [*POINT, "quantization=fp32,awq", "engine.max_num_batched_tokens=128,512", "workload=cpu-mixed",
             "engine.max_num_seqs=8", "set=grid", f"paths.results={results}"]  # fmt: skip
    done = bench(*words)
    return done, results / "grid", words


def test_every_point_is_recorded_with_all_its_terms(sweep):
    done, root, _ = sweep
    assert done.returncode == 0, done.stderr
    rows = _rows(root)
    assert len(rows) == 4
    for row in rows:
        assert row["status"] in ("ok", "memory_only"), row["failure_sentence"]
        assert row["weights_tensor_bytes"] == row["expected_weights_bytes"], "loaded bytes are the arithmetic's"
        assert row["quantization_applied"] is True
        assert row["kv_bytes_per_block"] == row["expected_kv_bytes_per_token"] * row["kv_block_size_tokens"]
        assert 0 <= row["kv_cache_memory_bytes"] - row["kv_cache_bytes"] < row["kv_bytes_per_block"]
        assert row["kv_cache_bytes"] == row["kv_cache_blocks"] * row["kv_bytes_per_block"]
        assert row["tree_pss_peak_bytes"] > row["weights_tensor_bytes"] + row["kv_cache_bytes"]
        assert row["worker_rss_ready_bytes"] - row["worker_rss_load_bytes"] == pytest.approx(
            row["kv_cache_bytes"], rel=0.1
        )
        assert row["effective_max_num_seqs"] == 8
        assert row["effective_max_num_batched_tokens"] == row["max_num_batched_tokens"]
        assert row["launcher"] == "warm" and row["launcher_fallback"] is None
        assert row["stopped_by"] == "SIGTERM"
        phases = ("import_s", "init_device_s", "load_s", "kv_allocation_s", "api_s")
        assert all(row[name] > 0 for name in phases)
        assert sum(row[name] for name in phases) == pytest.approx(row["startup_s"], rel=0.25, abs=0.5)
        assert row["sampler_cpu_share"] < 0.2
        assert json.loads(row["model_config_json"])["architectures"] == ["LlamaForCausalLM"]
        assert (root / row["log_file"]).stat().st_size > 1000


def test_points_that_differ_are_measured_to_differ(sweep):
    _, root, _ = sweep
    rows = {(row["quantization"], row["max_num_batched_tokens"]): row for row in _rows(root)}
    assert rows["fp32", 128]["weights_bytes"] > 2 * rows["awq", 128]["weights_bytes"]
    assert rows["fp32", 128]["kv_cache_tokens"] < rows["awq", 128]["kv_cache_tokens"]
    # A larger prefill chunk needs more working memory: the worker's high-water mark under load shows it.
    assert rows["fp32", 512]["runtime_activation_peak_bytes"] > rows["fp32", 128]["runtime_activation_peak_bytes"]


def test_workloads_have_exact_counts_and_plausible_latencies(sweep):
    _, root, _ = sweep
    engines = {row["run_id"]: row for row in _rows(root)}
    workloads = _rows(root, "workloads")
    assert len(workloads) == 4
    for row in workloads:
        engine = engines[row["run_id"]]
        if engine["status"] == "memory_only":
            assert engine["missing_kernel"]
            continue
        assert (row["status"], row["completed"], row["failed"]) == ("ok", 32, 0)
        assert row["prefix_cache_hit_tokens"] == 0
        assert 0 < row["ttft_p50_s"] <= row["ttft_p99_s"] <= row["e2e_max_s"] <= row["window_s"]
        assert row["output_tokens_per_s"] == pytest.approx(32 * 12 / row["window_s"], rel=0.01)
        assert row["worker_rss_peak_bytes"] > 0
        # The engine's own counters over the same window agree with what the client received.
        assert row["engine_generation_tokens"] == row["received_tokens"] == 32 * 12
        assert row["token_count_difference"] == 0 and row["preemptions"] == 0
        assert 0 < row["kv_cache_usage_peak"] <= 1 and row["gauge_readings"] > 2
        assert 1 <= row["requests_running_peak"] <= 8, "max_num_seqs"
        assert 0 < row["steady_window_s"] < row["window_s"] and row["steady_rule"]
        assert row["engine_cpu_s"] > 0 and row["engine_cpu_us_per_token"] == pytest.approx(
            row["engine_cpu_s"] * 1e6 / 384
        )
        assert row["energy_j_per_token"] is None and row["throttle_reasons"] is None, "no GPU, no such figure"
        assert 0 < row["client_cpu_us_per_token"] < row["engine_cpu_us_per_token"]


OPEN = "{name:open,pattern:poisson,rate_per_s:20,num_requests:24,input_tokens:{kind:uniform,min:16,max:48}," \
       "output_tokens:6,warmup_requests:4,slo_ttft_s:5,save_requests:true}"  # fmt: skip
KNEE = "{name:knee,concurrency:1,num_requests:4,input_tokens:32,output_tokens:6,warmup_requests:2," \
       "knee:{axis:concurrency,low:1,high:4,requests_per_slot:2,slo:{ttft_p99_s:30}}}"  # fmt: skip


def test_an_open_loop_and_a_knee_search_run_on_one_live_engine(bench, tmp_path):
    done = bench(*POINT, f"workload.points=[{OPEN},{KNEE}]", "workload.name=mine", f"paths.results={tmp_path}", "set=o")
    assert done.returncode == 0, done.stdout + done.stderr
    (engine,) = _rows(tmp_path / "o")
    opened, *trials = sorted(_rows(tmp_path / "o", "workloads"), key=lambda row: row["position"])
    assert (opened["pattern"], opened["rate_per_s"], opened["completed"]) == ("poisson", 20, 24)
    assert 16 <= opened["input_tokens_min"] < opened["input_tokens_max"] <= 48
    assert opened["goodput_share"] == 1.0 and opened["prefix_cache_hit_tokens"] == 0
    requests = _rows(tmp_path / "o", "requests")
    assert len(requests) == 24 and {r["position"] for r in requests} == {0}
    assert sum(r["prompt_tokens"] for r in requests) == sum(r["input_tokens"] for r in requests)
    assert max(r["e2e_s"] for r in requests) == pytest.approx(opened["e2e_max_s"])
    assert [(t["knee_value"], t["knee_met"], t["status"]) for t in trials] == [(v, True, "ok") for v in (1, 4, 4)]
    assert {t["knee_outcome"] for t in trials} == {"at_least"} and [t["knee_answer"] for t in trials][-1]
    assert all(t["prefix_cache_hit_tokens"] == 0 for t in trials), "each trial has prompts of its own"
    phases = {s["phase"] for s in _rows(tmp_path / "o", "samples")}
    assert {"load:open", "warmup:knee", "load:knee#1", "load:knee#3"} <= phases
    assert "at least concurrency 4" in done.stdout and "asked/s" in done.stdout
    assert engine["status"] == "ok"


def test_the_timeline_has_every_phase_in_order(sweep):
    _, root, _ = sweep
    rows = _rows(root)
    assert {row["status"] for row in rows if row["quantization"] == "fp32"} == {"ok"}
    for row in rows:
        samples = sorted((s for s in _rows(root, "samples") if s["run_id"] == row["run_id"]), key=lambda s: s["t_s"])
        seen = list(dict.fromkeys(sample["phase"] for sample in samples))
        expected = ["gate", "idle", "launch", "ready", "warmup:c16-i192-o12", "load:c16-i192-o12", "stop"]
        if row["status"] == "memory_only":  # this processor lacks the format's kernel: the warm-up is as far as it gets
            expected.remove("load:c16-i192-o12")
        assert [phase for phase in seen if phase in expected] == expected
        assert max(sample["tree_rss_bytes"] or 0 for sample in samples) > 2**28


def test_a_second_sweep_starts_nothing(bench, sweep):
    _, root, words = sweep
    before = sorted(path.name for path in root.rglob("*"))
    done = bench(*words)
    assert done.returncode == 0, done.stderr
    assert "4 recorded before, 0 to start" in done.stderr
    assert "nothing to start" in done.stdout
    assert sorted(path.name for path in root.rglob("*")) == before


def test_nothing_is_left_running(sweep):
    assert _engines_alive() == []


def test_a_killed_harness_leaves_no_engine_and_loses_no_finished_point(bench, tmp_path):
    words = [*POINT, "workload=none", "engine.max_num_seqs=2,3,4", f"paths.results={tmp_path}", "set=killed"]
    harness = subprocess.Popen([sys.executable, "-m", "bench", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    engines = tmp_path / "killed" / "engines"
    deadline = time.monotonic() + 120
    # In the middle of the second point: one is recorded, and the next engine's log has begun.
    while len(list(engines.glob("*.parquet"))) < 1 or len(list(engines.parent.glob("logs/*-r0-*.log"))) < 2:
        assert time.monotonic() < deadline and harness.poll() is None
        time.sleep(0.05)
    assert _engines_alive()
    harness.send_signal(signal.SIGKILL)
    harness.wait()
    gone = time.monotonic() + 10
    while _engines_alive():
        assert time.monotonic() < gone, _engines_alive()
        time.sleep(0.05)
    recorded = {path.name for path in engines.glob("*.parquet")}
    done = bench(*words)
    assert done.returncode == 0, done.stderr
    assert f"3 points, {len(recorded)} recorded before, {3 - len(recorded)} to start" in done.stderr
    rows = _rows(tmp_path / "killed")
    assert len(rows) == 3 and {row["status"] for row in rows} == {"ok"}
    assert recorded <= {path.name for path in engines.glob("*.parquet")}


def test_spawn_and_warm_measure_the_same(bench, sweep, tmp_path):
    """The ordinary `vllm serve` process holds the same weights and the same pool as a forked engine."""
    done = bench(*POINT, "launcher=spawn", "engine.max_num_batched_tokens=128", "engine.max_num_seqs=8",
                 f"paths.results={tmp_path}", "set=s")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (spawned,) = _rows(tmp_path / "s")
    warm = next(row for row in _rows(sweep[1]) if (row["quantization"], row["max_num_batched_tokens"]) == ("fp32", 128))
    assert spawned["launcher"] == "spawn"
    for name in ("weights_tensor_bytes", "kv_cache_bytes", "kv_cache_blocks", "kv_cache_tokens", "cpu_threads"):
        assert spawned[name] == warm[name], name
    assert spawned["startup_s"] > 2 * warm["startup_s"]


FAILURES = {
    "bad_argument": ({"engine.extra_args": ["--no-such-flag"]}, "config", "--no-such-flag"),
    "timeout": ({"engine.startup_timeout_s": 1.5}, None, "1.5 s"),
    "max_model_len_exceeds_kv": ({"engine.kv_cache_memory_bytes": "1MiB"}, "kv_allocation", "1024"),
    "quantization_not_applied": (
        {"quantization": "awq", "engine.extra_args": ["--hf-overrides", '{"quantization_config":null}']},
        "load", "was not applied",
    ),
}  # fmt: skip
"""Cause to the settings that bring it about, its phase, and a part of its sentence."""


@pytest.fixture(scope="module")
def failures(bench, tmp_path_factory):
    """One sweep of starts that all fail, each in its own way."""
    results = tmp_path_factory.mktemp("results")
    file = results / "conf" / "sweep" / "fails.yaml"
    file.parent.mkdir(parents=True)
    points = json.dumps([{"quantization": "fp32"} | settings for settings, _, _ in FAILURES.values()])
    common = [word for word in POINT if not word.startswith("quantization=")]  # a word would go over the points
    file.write_text(f"# @package _global_\nhydra: {{sweeper: {{points: {points}}}}}\n")
    done = bench("--config-dir", str(results / "conf"), "sweep=fails", *common, f"paths.results={results}", "set=f")
    return done, _rows(results / "f"), _engines_alive()


@pytest.mark.parametrize("cause", FAILURES)
def test_a_failed_start_is_a_row_with_phase_cause_and_sentence(failures, cause):
    done, rows, alive = failures
    _, phase, said = FAILURES[cause]
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(rows) == len(FAILURES) and alive == []
    (row,) = [row for row in rows if row["failure_cause"] == cause]
    assert row["status"] == "failed" and phase in (None, row["failure_phase"])
    assert said in row["failure_sentence"]
    assert row["samples"] > 0 and row["total_s"] > 0
    assert cause in done.stdout


def test_a_port_in_use_is_a_failed_run_that_a_later_sweep_tries_again(bench, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = [*POINT, "workload=none", f"engine.port={taken.getsockname()[1]}", f"paths.results={tmp_path}", "set=p"]
        done = bench(*words)
        assert done.returncode == 1
        assert "already in use; choose another" in done.stderr
    done = bench(*words)
    assert done.returncode == 0, done.stderr
    assert [row["status"] for row in sorted(_rows(tmp_path / "p"), key=lambda r: r["started_unix_s"])] == [
        "failed",
        "ok",
    ]


def test_a_point_that_cannot_fit_is_pruned_and_said(bench, tmp_path):
    done = bench(*POINT, "engine.kv_cache_memory_bytes=64000GiB", f"paths.results={tmp_path}", "set=c")
    assert done.returncode == 0
    (row,) = _rows(tmp_path / "c")
    assert (row["status"], row["failure_cause"]) == ("pruned", "cannot_fit")
    assert "64000.00 GiB" in row["failure_sentence"] and row["startup_s"] is None


def test_two_sweeps_on_one_device_do_not_run_at_once(bench, tmp_path):
    from bench.engine.gate import device_lock

    with device_lock("cpu"):
        done = bench(*POINT, f"paths.results={tmp_path}", "set=x", wait=False)
    assert done.returncode == 1
    assert "another sweep" in done.stderr and str(os.getpid()) in done.stderr
    assert _rows(tmp_path / "x") == []


def test_the_prefix_cache_answers_what_prompts_share_and_nothing_else(bench, tmp_path):
    load = "concurrency:2,num_requests:8,warmup_requests:2,input_tokens:256,output_tokens:4"
    points = f"[{{name:unique,{load}}},{{name:shared,{load},shared_prefix_ratio:0.5,prefix_groups:1}}]"
    done = bench(*POINT, f"workload.points={points}", "engine.enable_prefix_caching=true", "engine.block_size=32",
                 "engine.kv_cache_memory_bytes=64MiB", "set=prefix", f"paths.results={tmp_path}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    unique, shared = sorted(_rows(tmp_path / "prefix", "workloads"), key=lambda row: row["position"])
    assert unique["prefix_cache_hit_tokens"] == 0 and "prefix_cache_hits" not in unique["flags"]
    # All but those that came before the first had been read: one or two of the eight.
    assert shared["prefix_cache_hit_tokens"] in (6 * 128, 7 * 128) and "shared_prefix_unused" not in shared["flags"]
