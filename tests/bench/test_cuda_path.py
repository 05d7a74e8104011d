"""The way of a GPU run, end to end, on a machine without a GPU: the real harness and the real NVML binding over a fake
libnvidia-ml.so.1, with a stand-in for the CUDA engine that moves the fake device's memory."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from analysis.drift.cli import answers
from analysis.rows import read_table
from bench.load.flags import CLIENT_BOUND_FLAGS
from tests.fakes import fake_nvml

HOST = Path(__file__).resolve().parents[1] / "fakes" / "cuda_host"
GIB = 2**30
POINT = ["model=qwen2.5-7b", "quantization=bf16", "workload=smoke", "engine.max_model_len=4096"]


@pytest.fixture
def gpu(tmp_path):
    if fake_nvml.compiler() is None:
        pytest.skip("needs a C compiler (cc, gcc or clang) to build the fake libnvidia-ml.so.1")
    folder = fake_nvml.build(tmp_path / "nvml")
    return fake_nvml.State(tmp_path / "state.txt").gpu(0).gpu(1), folder


@pytest.fixture
def measured(bench, gpu, tmp_path):
    """`measured(*words, **env)` -> (CompletedProcess, engines rows) of result set `s`."""
    state, folder = gpu

    def run(*words, **env):
        path = os.pathsep.join(filter(None, [str(HOST), os.environ.get("PYTHONPATH")]))
        done = bench(
            *POINT, f"paths.results={tmp_path}/r", "set=s", *words, PYTHONPATH=path, **state.env(folder), **env
        )
        files = sorted((tmp_path / "r/s/engines").glob("*.parquet"))
        return done, [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]

    return run


def _engine_flags(row):
    """Flags that are not about how busy this machine was with other things."""
    return [flag for flag in row["flags"] if flag != "client_bound" and flag not in CLIENT_BOUND_FLAGS]


def test_a_gpu_run_records_device_and_process_memory_apart(measured, gpu, tmp_path):
    gpu[0].gpu(0, power_mw=350_000, throttle=1)
    done, (row,) = measured("engine.kv_cache_memory_bytes=4GiB")
    assert done.returncode == 0, done.stderr
    assert (row["status"], _engine_flags(row)) == ("ok", [])
    assert (row["device_kind"], row["device_name"]) == ("cuda", "NVIDIA H100 80GB HBM3")
    assert row["device_memory_total_bytes"] == 80 * GIB
    assert (row["vllm_version"], row["launcher"]) == ("0.33.0", "spawn")
    serving = int((0.5 + 14.25 + 0.6) * GIB) + 4 * GIB
    assert row["device_memory_baseline_bytes"] == 0
    assert row["device_memory_load_peak_bytes"] == pytest.approx(serving + 2 * GIB, abs=4)
    assert row["device_memory_peak_bytes"] == row["device_memory_load_peak_bytes"]
    assert row["process_memory_peak_bytes"] == row["device_memory_peak_bytes"]
    assert row["process_memory_hidden"] is None and not row["foreign_memory_peak_bytes"]
    assert row["power_peak_w"] == 350
    # The stand-in has no probe: every term comes from the log, and the row says so.
    assert row["weights_bytes"] == pytest.approx(14.25 * GIB, abs=0.01 * GIB)
    assert row["cuda_graph_bytes"] == pytest.approx(0.6 * GIB, abs=0.01 * GIB)
    assert '"weights_bytes": "log"' in row["memory_sources_json"]
    (file,) = (tmp_path / "r/s/workloads").glob("*.parquet")
    (load,) = pq.read_table(file, partitioning=None).to_pylist()
    # The fake's energy counter stands still, so power is integrated, over the measured window alone.
    assert load["energy_source"] == "power_integral" and load["power_mean_w"] == pytest.approx(350)
    assert load["energy_j"] == pytest.approx(350 * load["window_s"])
    assert load["energy_j_per_token"] == pytest.approx(load["energy_j"] / 64)
    assert load["steady_energy_j_per_token"] == pytest.approx(350 / load["steady_output_tokens_per_s"])
    assert (load["sm_clock_mean_mhz"], load["sm_clock_min_mhz"]) == (1980, 1980)
    assert load["throttle_reasons"] == ["gpu_idle"] and load["window_samples"] >= 5


def test_the_engine_gets_the_gpus_asked_for_within_what_is_visible(measured, tmp_path):
    done, (row,) = measured("workload=none", CUDA_VISIBLE_DEVICES="1")
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "r/s" / row["log_file"]).read_text()
    assert "CUDA_VISIBLE_DEVICES=1\n" in log
    assert row["gpu_uuid"].startswith("GPU-00000001")


def test_a_gpu_that_is_not_there_is_a_bad_request(measured):
    done, rows = measured("device.indices=[5]")
    assert (done.returncode, rows) == (2, [])
    assert "device.indices=[5]: 2 GPU(s) are visible here; use 0 to 1" in done.stderr


def test_out_of_memory_is_a_row_with_the_last_memory_reading(measured):
    done, (row,) = measured(FAKE_ENGINE_FAILS="oom")
    assert done.returncode == 1
    assert (row["status"], row["failure_cause"]) == ("failed", "out_of_memory")
    assert "2.00 GiB were asked for, 1.00 GiB were free of 79.19 GiB" in row["failure_sentence"]
    assert row["device_memory_peak_bytes"] == 79 * GIB
    assert row["weights_bytes"] == pytest.approx(14.25 * GIB, abs=0.01 * GIB)


def test_an_oom_that_no_rung_cures_is_walked_down_to_the_limit_and_no_further(measured):
    done, rows = measured("on_oom=mitigate", "max_rungs=2", FAKE_ENGINE_FAILS="oom")
    assert done.returncode == 1
    failed, first, second = sorted(rows, key=lambda row: row["started_unix_s"])
    assert {row["failure_cause"] for row in rows} == {"out_of_memory"}
    assert (failed["mitigates_run_id"], failed["shortfall_bytes"]) == (None, GIB)
    assert [row["mitigates_run_id"] for row in (first, second)] == [failed["run_id"]] * 2
    assert (first["mitigation_rung"], first["quantization"]) == (1, "fp8"), "nothing gentler shrinks what is loaded"
    # The first was to free so much and lacked a GiB again: so much more was short, and the next must free that.
    assert second["mitigation_short_bytes"] == first["mitigation_gain_bytes"] + GIB
    assert second["mitigation_gain_bytes"] > second["mitigation_short_bytes"]
    assert "nothing tried works" in done.stdout and "that is max_rungs=2" in done.stdout
    done, again = measured("on_oom=mitigate", "max_rungs=2", FAKE_ENGINE_FAILS="oom")
    assert len(again) == 3 and "1 recorded before, 0 to start" in done.stderr


def test_a_load_that_is_held_has_a_drift_of_host_and_device(measured, tmp_path):
    held = "{name:soak,concurrency:2,duration_s:3,warmup_requests:2,input_tokens:16,output_tokens:4}"
    done, _ = measured("engine.kv_cache_memory_bytes=4GiB", f"workload.points=[{held}]", "workload.name=soak",
                       "telemetry.hz=50")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "r/s/workloads").glob("*.parquet")
    (load,) = pq.read_table(file, partitioning=None).to_pylist()
    assert load["status"] == "ok" and load["drift_verdict"] is None, "seconds are no soak"
    samples = read_table(tmp_path / "r/s", "samples")
    found = {one["memory"]: one for one in answers(samples, least_seconds=2)}
    held_bytes = round((0.5 + 14.25 + 0.6 + 4) * GIB)
    assert found["device memory"]["verdict"] in ("flat", "levels_off")
    assert found["device memory"]["first_bytes"] >= held_bytes
    # The list of processes is read as often as it is cheap; a slow machine reads too few for a slope.
    readings = [one["process_memory_used_bytes"] for one in samples if one["phase"] == "load:soak"]
    assert min(value for value in readings if value is not None) >= held_bytes
    assert found["engine's host memory (RSS)"]["verdict"]


def test_a_foreign_process_on_the_gpu_stops_the_run_at_the_gate_and_it_is_tried_again(measured, gpu):
    gpu[0].gpu(0, used=3 * GIB, compute={1: 3 * GIB})
    done, (row,) = measured("device.gate_timeout_s=0.3")
    assert done.returncode == 1
    assert (row["failure_phase"], row["failure_cause"]) == ("gate", "device_not_clean")
    assert row["failure_sentence"] == "GPU 0 is used by process(es) 1"
    assert row["startup_s"] is None and set(row["flags"]) == {"foreign_processes", "foreign_gpu_memory"}
    gpu[0].gpu(0, used=0, compute={})
    done, rows = measured("device.gate_timeout_s=0.3")
    assert done.returncode == 0 and sorted(r["status"] for r in rows) == ["failed", "ok"]


def test_memory_that_stays_after_the_engine_is_flagged(measured):
    done, (row,) = measured("device.gate_timeout_s=0.3", "workload=none", FAKE_ENGINE_FAILS="leaves memory")
    assert row["status"] == "ok" and "device_not_clean_after" in row["flags"]


def test_throttling_under_load_is_flagged(measured, gpu):
    gpu[0].gpu(0, throttle=0x20)
    _, (row,) = measured()
    assert row["throttle_reasons"] == ["sw_thermal_slowdown"] and _engine_flags(row) == ["throttled"]


def test_a_model_that_cannot_fit_the_card_is_pruned_with_the_arithmetic(measured):
    done, (row,) = measured("model=deepseek-coder-33b", "engine.gpu_memory_utilization=0.5")
    assert done.returncode == 0
    assert (row["status"], row["failure_cause"]) == ("pruned", "cannot_fit")
    assert "weights 62." in row["failure_sentence"] and "of 40.00 GiB" in row["failure_sentence"]
