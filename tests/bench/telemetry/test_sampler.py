"""The sampler as a process: real children, real signals, and the fake NVML where a GPU is needed."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bench.errors import BadRequest
from bench.telemetry import procfs
from bench.telemetry.engine_cgroup import EngineCgroup, NoEngineCgroup
from bench.telemetry.nvml_errors import NvmlUnavailable
from bench.telemetry.sampler import Sampler, between, read_log, read_samples

MIB = 2**20
GIB = 2**30
HZ = 50.0

ALLOCATE = """
import sys, time
block = bytearray(int(sys.argv[1]))
for position in range(0, len(block), 4096):
    block[position] = 1
print("ready", flush=True)
sys.stdin.readline()
del block
print("freed", flush=True)
time.sleep(600)
"""
IDLE = "import time; print('ready', flush=True); time.sleep(600)"


def wait_until(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true"
        time.sleep(0.01)


def wait_for(sampler, condition):
    wait_until(lambda: (sample := sampler.latest()) is not None and condition(sample))


def is_running(pid):
    stat = procfs.read_stat(pid)
    return stat is not None and not stat.is_dead


def free(process):
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"freed\n"


# --- without a GPU ---


def test_a_peak_that_is_over_stays_in_its_phase(tmp_path, spawn, no_nvml):
    with Sampler(tmp_path, hz=HZ) as sampler:
        sampler.mark("load")
        process = spawn(ALLOCATE, 64 * MIB)
        sampler.watch(process.pid, process.pid)
        wait_for(sampler, lambda s: (s.tree_rss_bytes or 0) > 64 * MIB)
        sampler.mark("after")  # a mark reads PSS whatever its rate
        free(process)
        wait_for(sampler, lambda s: s.phase == "after" and s.tree_rss_bytes < 40 * MIB)
        sampler.mark("end")
        summary = sampler.stop()
    load, end = summary.phases["load"], summary.phases["end"]
    assert load.tree_rss_peak_bytes > 64 * MIB
    assert 64 * MIB <= load.tree_uss_peak_bytes <= load.tree_pss_peak_bytes <= 110 * MIB
    assert load.tree_anon_peak_bytes >= 64 * MIB
    assert end.tree_pss_peak_bytes < 40 * MIB and end.tree_rss_peak_bytes < 40 * MIB
    assert load.tree_processes_peak == 1 and load.tree_cpu_s > 0
    assert summary.tree_pss_peak_bytes == load.tree_pss_peak_bytes
    assert summary.device_memory_peak_bytes is None and summary.devices == {}
    assert summary.complete and not summary.errors and not summary.gpu_lost
    assert "libnvidia-ml" in summary.nvml_reason
    assert list(summary.phases) == ["start", "load", "after", "end"]


def test_samples_on_file_are_in_order_and_end_each_phase_where_the_next_begins(tmp_path, no_nvml):
    with Sampler(tmp_path, hz=HZ) as sampler:
        sampler.mark("idle")
        sampler.mark("load")
        wait_for(sampler, lambda s: s.phase == "load" and not s.at_mark)
    samples = read_samples(tmp_path / "samples.jsonl")
    assert [s.t_s for s in samples] == sorted(s.t_s for s in samples)
    assert {s.device_index for s in samples} == {None}
    (end,) = [s for s in samples if s.phase == "idle" and s.at_mark][1:]
    start = next(s for s in samples if s.phase == "load")
    assert end.t_s == start.t_s
    assert between(samples, "idle", "load").samples == len([s for s in samples if s.phase == "idle"])


def test_the_schedule_does_not_drift_and_missed_ticks_count(tmp_path, no_nvml):
    with Sampler(tmp_path, hz=HZ) as sampler:
        wait_until(lambda: len(read_samples(sampler.path)) > 10)
        os.kill(sampler.pid, signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(sampler.pid, signal.SIGCONT)
        wait_until(lambda: len(read_samples(sampler.path)) > 30)
        summary = sampler.stop()
    ticks = [s.t_s for s in read_samples(sampler.path) if not s.at_mark]
    assert summary.missed_ticks >= 13
    assert summary.interval_p99_s >= 0.2
    # Every tick was due at a multiple of the period from the first: none is early, however late others were.
    numbers = [round((t - ticks[0]) * HZ - 0.4) for t in ticks]
    assert numbers == sorted(set(numbers))


def test_an_own_cgroup_gives_the_kernels_peak(tmp_path, spawn, no_nvml):
    with EngineCgroup.create("sampler-test") as group:
        if isinstance(group, NoEngineCgroup):
            pytest.skip(f"no cgroup of our own can be made here: {group.reason}")
        code = "import sys; print('ready', flush=True); sys.stdin.readline()\n" + ALLOCATE
        process = spawn(code, 64 * MIB)
        assert group.add(process.pid)
        with Sampler(tmp_path, hz=HZ) as sampler:
            sampler.watch(process.pid, process.pid, group.path)
            sampler.mark("load")
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"ready\n"
            free(process)
            summary = sampler.stop()
    assert summary.cgroup_scope == "own"
    assert 64 * MIB <= summary.phases["load"].cgroup_peak_bytes < 128 * MIB


def test_no_gpu_where_one_is_required(tmp_path, no_nvml):
    sampler = Sampler(tmp_path, [0], nvml_required=True)
    with pytest.raises(NvmlUnavailable, match="libnvidia-ml"):
        sampler.start()
    assert sampler.pid is None


def test_no_gpu_where_one_was_hoped_for(tmp_path, no_nvml):
    with Sampler(tmp_path, [0], hz=HZ) as sampler:
        summary = sampler.stop()
    assert summary.samples > 0
    assert any("libnvidia-ml" in error for error in summary.errors)


@pytest.mark.parametrize(
    ("arguments", "words"), [({"hz": 0}, "hz is 0"), ({"hz": 1e6}, "hz is"), ({"pss_hz": -1}, "pss_hz is -1")]
)
def test_bad_rates_are_refused(tmp_path, arguments, words):
    with pytest.raises(BadRequest, match=words):
        Sampler(tmp_path, **arguments)


def test_an_earlier_file_is_never_overwritten_or_appended_to(tmp_path, no_nvml):
    with Sampler(tmp_path, hz=HZ) as sampler:
        sampler.stop()
    before = sampler.path.read_bytes()
    with pytest.raises(BadRequest, match="folder of its own"):
        Sampler(tmp_path).start()
    with pytest.raises(BadRequest, match="started before"):
        sampler.start()
    assert sampler.path.read_bytes() == before


def test_calls_before_the_start_and_after_the_end(tmp_path, no_nvml):
    sampler = Sampler(tmp_path, hz=HZ)
    assert sampler.latest() is None
    with pytest.raises(BadRequest, match="not started"):
        sampler.mark("x")
    with sampler:
        first = sampler.stop()
        sampler.mark("late")
        sampler.watch(os.getpid())
    assert sampler.stop() is first and first.complete


def test_watching_what_is_not_there_is_said(tmp_path, no_nvml):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with Sampler(tmp_path, hz=HZ) as sampler:
        sampler.watch(gone.pid)
        summary = sampler.stop()
    assert any(str(gone.pid) in error for error in summary.errors)


def test_the_sampler_imports_nothing_heavy():
    """It must start in a blink: the modules it loads are the guard, since times belong to machines."""
    code = "import sys, bench.telemetry.sampler, bench.telemetry.sampler_process; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "pandas", "pyarrow", "torch", "vllm", "psutil", "hydra", "omegaconf", "asyncio", "rich"}
    assert heavy.isdisjoint(done.stdout.split())


# --- ends ---


def test_a_killed_sampler_leaves_its_samples_no_zombie_and_a_caller_that_goes_on(tmp_path, spawn, no_nvml):
    process = spawn(IDLE)
    with Sampler(tmp_path, hz=HZ) as sampler:
        sampler.watch(process.pid)
        sampler.mark("load")
        wait_for(sampler, lambda s: s.phase == "load" and not s.at_mark)
        pid = sampler.pid
        os.kill(pid, signal.SIGKILL)
        sampler.mark("after")
        summary = sampler.stop()
    assert not os.path.exists(f"/proc/{pid}")
    assert summary.phases["load"].samples > 0 and "after" not in summary.phases
    assert not summary.complete
    assert any("ended by itself (status -9)" in error for error in summary.errors)
    assert any("did not end in order" in error for error in summary.errors)
    assert summary.sampler_cpu_s is not None


def test_a_full_disk_ends_nothing_and_is_said(tmp_path, no_nvml):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    sampler = Sampler(tmp_path, hz=HZ)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # the sampler inherits it
    try:
        sampler.start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    wait_until(lambda: sampler.path.stat().st_size == 4096)
    sampler.mark("load")
    assert is_running(sampler.pid)
    summary = sampler.stop()
    assert any("could not be written" in error for error in summary.errors)
    assert summary.samples > 0 and not summary.complete


CALLER = """
import sys, threading, time
from pathlib import Path
from bench.telemetry.sampler import Sampler
sampler = Sampler(Path(sys.argv[1]), [0] if sys.argv[2] == "gpu" else [], hz=50)
if sys.argv[2] == "thread":
    starter = threading.Thread(target=sampler.start)
    starter.start()
    starter.join()
else:
    sampler.start()
print(sampler.pid, flush=True)
print("ready", flush=True)
time.sleep(600)
"""


def start_caller(tmp_path, how):
    process = subprocess.Popen(
        [sys.executable, "-c", CALLER, str(tmp_path), how],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[3],
    )
    return process, int(process.stdout.readline())


def test_a_killed_caller_takes_the_sampler_along(tmp_path, no_nvml):
    caller, pid = start_caller(tmp_path, "plain")
    wait_until(
        lambda: (tmp_path / "samples.jsonl").exists() and len(read_samples(tmp_path / "samples.jsonl")) > 3
    )
    caller.kill()
    caller.wait()
    caller.stdout.close()
    wait_until(lambda: not is_running(pid))
    log = read_log(tmp_path / "samples.jsonl")
    assert len(log.samples) > 3 and log.complete and log.damaged_lines == 0


def test_the_end_of_the_thread_that_started_it_is_not_the_end_of_the_sampler(tmp_path, no_nvml):
    caller, pid = start_caller(tmp_path, "thread")
    try:
        before = len(read_samples(tmp_path / "samples.jsonl"))
        wait_until(lambda: len(read_samples(tmp_path / "samples.jsonl")) > before + 20)
        assert is_running(pid)
    finally:
        caller.kill()
        caller.wait()
        caller.stdout.close()
    wait_until(lambda: not is_running(pid))


def test_an_exception_in_the_caller_ends_the_sampler_in_order(tmp_path, no_nvml):
    sampler = Sampler(tmp_path, hz=HZ)
    with pytest.raises(ZeroDivisionError), sampler:
        pid = sampler.pid
        raise ZeroDivisionError
    assert not os.path.exists(f"/proc/{pid}")
    assert read_log(sampler.path).complete


def test_marks_from_several_threads_do_not_mix(tmp_path, no_nvml):
    with Sampler(tmp_path, hz=HZ) as sampler:
        threads = [threading.Thread(target=sampler.mark, args=(f"p{n}",)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        summary = sampler.stop()
    assert set(summary.phases) == {"start", *(f"p{n}" for n in range(8))}
    assert summary.errors == []


# --- with a GPU ---


def test_a_gpu_peak_that_a_later_sample_no_longer_shows(tmp_path, gpus, spawn):
    engine = spawn(IDLE)
    gpus.gpu(0, used=GIB, energy_mj=1_000_000, power_mw=100_000, sm_mhz=1980, throttle=0)
    with Sampler(tmp_path / "run", [0], hz=HZ) as sampler:
        sampler.mark("idle")
        wait_for(sampler, lambda s: s.phase == "idle" and not s.at_mark)
        sampler.mark("load")
        sampler.watch(engine.pid, engine.pid)
        gpus.gpu(
            0, used=70 * GIB, compute={engine.pid: 68 * GIB}, power_mw=690_000, sm_mhz=1500, temp=71,
            throttle=0x4, gpu_util=99,
        )  # fmt: skip
        wait_for(sampler, lambda s: s.device_memory_used_bytes == 70 * GIB)
        wait_for(sampler, lambda s: s.process_memory_used_bytes == 68 * GIB)
        wait_for(sampler, lambda s: s.throttle_reasons == 0x4)
        gpus.gpu(
            0,
            used=60 * GIB,
            compute={engine.pid: 58 * GIB},
            power_mw=300_000,
            energy_mj=1_500_000,
            throttle=0,
        )
        wait_for(sampler, lambda s: s.device_memory_used_bytes == 60 * GIB)
        sampler.mark("stop")
        gpus.gpu(0, used=GIB, compute={}, energy_mj=1_600_000)
        wait_for(sampler, lambda s: s.device_memory_used_bytes == GIB)
        summary = sampler.stop()
    assert summary.device_memory_baseline_bytes == GIB
    assert summary.device_memory_peak_bytes == summary.phases["load"].device_memory_peak_bytes == 70 * GIB
    assert summary.phases["stop"].device_memory_peak_bytes == 60 * GIB
    assert summary.process_memory_peak_bytes == 68 * GIB and summary.process_memory_hidden_reason is None
    assert (summary.foreign_memory_peak_bytes, summary.foreign_pids) == (0, [])
    assert (summary.power_peak_w, summary.temperature_peak_c, summary.sm_clock_min_mhz) == (690.0, 71, 1500)
    assert (summary.energy_j, summary.energy_source) == (600.0, "counter")
    assert summary.phases["load"].energy_j == 500.0
    assert (summary.throttle_names, summary.throttled) == (["sw_power_cap"], True)
    assert summary.device_memory_source == "v2"
    assert summary.errors == [] and summary.unavailable == {}


def test_other_tenants_are_told_from_our_processes(tmp_path, gpus, spawn):
    engine, worker = spawn(IDLE), spawn(IDLE)
    gpus.gpu(0, used=20 * GIB, compute={999_999: 5 * GIB})
    with Sampler(tmp_path / "run", [0], hz=HZ) as sampler:
        sampler.mark("idle")
        wait_for(sampler, lambda s: s.phase == "idle" and s.foreign_memory_used_bytes is not None)
        sampler.watch(engine.pid, worker.pid)  # as if the worker had been found by its session
        sampler.mark("load")
        gpus.gpu(0, compute={999_999: 5 * GIB, 999_998: GIB, engine.pid: 3 * GIB, worker.pid: 8 * GIB})
        wait_for(sampler, lambda s: s.process_memory_used_bytes == 11 * GIB)
        summary = sampler.stop()
    assert summary.process_memory_peak_bytes == 11 * GIB
    assert summary.foreign_memory_peak_bytes == 6 * GIB
    assert summary.foreign_pids == [999_998, 999_999]
    assert summary.foreign_pids_before_launch == [999_999]


def test_a_worker_forked_after_the_last_look_is_not_called_foreign(tmp_path, gpus, spawn):
    forks = """
import os, sys, time
print("ready", flush=True)
sys.stdin.readline()
pid = os.fork()
if pid == 0:
    time.sleep(600)
print(pid, flush=True)
time.sleep(600)
"""
    engine = spawn(forks)
    gpus.gpu(0)
    with Sampler(tmp_path / "run", [0], hz=HZ) as sampler:
        sampler.watch(engine.pid)
        sampler.mark("load")
        engine.stdin.write(b"\n")
        engine.stdin.flush()
        worker = int(engine.stdout.readline())
        gpus.gpu(0, compute={worker: GIB})
        wait_for(sampler, lambda s: s.process_memory_used_bytes == GIB)
        summary = sampler.stop()
    assert summary.foreign_pids == []


@pytest.mark.parametrize(
    ("listed", "reason", "foreign"),
    [({999_999: 9 * GIB}, "pid_namespace", 9 * GIB), ({}, "not_reported", 0), ("ours", "not_reported", 0)],
)
def test_processes_hidden_by_a_container(tmp_path, gpus, spawn, listed, reason, foreign):
    engine = spawn(IDLE)
    gpus.gpu(0, used=9 * GIB, compute={engine.pid: None} if listed == "ours" else listed)
    with Sampler(tmp_path / "run", [0], hz=HZ) as sampler:
        sampler.watch(engine.pid)
        sampler.mark("load")
        wait_for(sampler, lambda s: s.process_memory_hidden_reason == reason)
        summary = sampler.stop()
    assert summary.device_memory_peak_bytes == 9 * GIB
    assert (summary.process_memory_peak_bytes, summary.process_memory_hidden_reason) == (None, reason)
    assert summary.foreign_memory_peak_bytes == foreign


def test_a_gpu_lost_on_the_way_leaves_the_host_side_running(tmp_path, gpus, spawn):
    engine = spawn(ALLOCATE, 64 * MIB)
    gpus.gpu(0, used=30 * GIB).gpu(1, used=31 * GIB)
    with Sampler(tmp_path / "run", [0, 1], hz=HZ) as sampler:
        sampler.watch(engine.pid)
        sampler.mark("load")
        wait_for(sampler, lambda s: s.device_memory_used_bytes == 31 * GIB)
        gpus.gpu(1, lost=1)
        wait_for(sampler, lambda s: s.device_memory_used_bytes == 30 * GIB)  # the fullest that still answers
        gpus.gpu(0, lost=1)
        wait_for(sampler, lambda s: s.device_memory_used_bytes is None)
        sampler.mark("after")
        wait_for(sampler, lambda s: s.phase == "after" and not s.at_mark)
        summary = sampler.stop()
    assert summary.gpu_lost
    assert [error for error in summary.errors if "was lost" in error] == summary.errors and len(
        summary.errors
    ) == 2
    assert summary.device_memory_peak_bytes == 31 * GIB
    assert summary.phases["after"].device_memory_peak_bytes is None
    assert summary.phases["after"].tree_pss_peak_bytes >= 64 * MIB
    assert summary.complete


def test_unsupported_power_and_energy(tmp_path, gpus):
    gpus.gpu(0, used=GIB, err={"power_mw": 3, "energy_mj": 3})
    with Sampler(tmp_path / "run", [0], hz=HZ) as sampler:
        summary = sampler.stop()
    assert summary.device_memory_peak_bytes == GIB
    assert (summary.power_mean_w, summary.energy_j, summary.energy_source) == (None, None, None)
    assert set(summary.unavailable) == {"gpu0.power_w", "gpu0.total_energy_j"}
    assert summary.errors == []


def test_energy_without_a_counter_is_integrated(tmp_path, gpus):
    gpus.gpu(0, power_mw=200_000, err={"energy_mj": 3})
    with Sampler(tmp_path / "run", [0], hz=HZ) as sampler:
        wait_until(lambda: len(read_samples(sampler.path)) > 10)
        summary = sampler.stop()
    assert summary.energy_source == "power_integral"
    assert summary.energy_j == pytest.approx(200.0 * summary.duration_s)


def test_two_gpus_have_a_row_each_at_every_tick(tmp_path, gpus):
    gpus.gpu(0, used=GIB, power_mw=100_000).gpu(1, used=2 * GIB, power_mw=150_000)
    with Sampler(tmp_path / "run", [1, 0], hz=HZ) as sampler:
        wait_until(lambda: len(read_samples(sampler.path)) > 10)
        summary = sampler.stop()
    samples = read_samples(sampler.path)
    assert [s.device_index for s in samples[:4]] == [1, 0, 1, 0]
    assert len({s.t_s for s in samples}) * 2 <= len(samples)
    assert (summary.device_memory_peak_index, summary.power_peak_w) == (1, 250.0)
    assert summary.devices[0]["total"].device_memory_peak_bytes == GIB


def test_a_mig_instance_is_sampled_by_uuid(tmp_path, gpus):
    gpus.gpu(0, used=50 * GIB)
    gpus.mig(0, parent=0, uuid="MIG-aaaa", used=3 * GIB)
    with Sampler(tmp_path / "run", ["MIG-aaaa"], hz=HZ) as sampler:
        summary = sampler.stop()
    assert summary.device_memory_peak_bytes == 3 * GIB
    assert summary.power_mean_w is None and "whole card" in summary.unavailable["gpu0.power_w"]


def test_a_gpu_that_does_not_exist_is_a_bad_request(tmp_path, gpus):
    gpus.gpu(0)
    with pytest.raises(BadRequest, match="index 3"):
        Sampler(tmp_path / "run", [3]).start()


def test_a_driver_that_does_not_answer_holds_up_nobody_for_long(tmp_path, gpus, monkeypatch):
    monkeypatch.setattr("bench.telemetry.sampler._ANSWER_TIMEOUT_S", 0.3)
    monkeypatch.setattr("bench.telemetry.sampler._END_TIMEOUT_S", 0.3)
    gpus.gpu(0, used=GIB)
    with Sampler(tmp_path / "run", [0], hz=HZ) as sampler:
        wait_for(sampler, lambda s: s.device_memory_used_bytes == GIB)
        pid = sampler.pid
        gpus.gpu(0, sleep_ms={"memory_v2": 600_000})
        sampler.mark("load")
        summary = sampler.stop()
    assert any("did not answer 'mark'" in error for error in summary.errors)
    assert not summary.complete and summary.device_memory_peak_bytes == GIB
    assert not os.path.exists(f"/proc/{pid}")


def test_a_hung_driver_does_not_keep_the_sampler_when_its_caller_dies(tmp_path, gpus):
    gpus.gpu(0)
    caller, pid = start_caller(tmp_path / "run", "gpu")
    gpus.gpu(0, sleep_ms={"memory_v2": 600_000})
    time.sleep(0.1)  # into the call that does not return
    caller.kill()
    caller.wait()
    caller.stdout.close()
    wait_until(lambda: not is_running(pid))


def test_a_version_mismatch_between_driver_and_library(tmp_path, gpus):
    gpus.gpu(0)
    gpus.set(init_error=18)
    with Sampler(tmp_path / "run", [0], hz=HZ) as sampler:
        summary = sampler.stop()
    assert any("different versions" in error for error in summary.errors)
    assert summary.device_memory_peak_bytes is None and summary.samples > 0


def test_the_summary_is_json(tmp_path, gpus):
    gpus.gpu(0)
    with Sampler(tmp_path / "run", [0], hz=HZ) as sampler:
        sampler.mark("load")
        summary = sampler.stop()
    assert json.loads(json.dumps(summary.to_json()))["phases"]["load"]["samples"] >= 1
