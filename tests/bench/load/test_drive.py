"""The loop itself: what it counts, when it stops, what it leaves behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from bench.load import drive, engine_watch
from bench.load.monitor import Progress
from bench.load.prompts import prompt_token_ids
from tests.fakes.sim_server import SimServer, free_port

ROOT = Path(__file__).resolve().parents[3]


def heads(indices, input_tokens=8):
    return {tuple(prompt_token_ids(0, index, input_tokens, 2048)[:2]) for index in indices}


def test_exact_counts_and_distinct_prompts(run_load):
    with SimServer(ttft_s=0.005, itl_s=0.001) as sim:
        result = run_load(sim.base_url, concurrency=5, num_requests=23, output_tokens=7)
        truth = sim.truth()
    assert len(truth) == 23 and all(line["prompt_tokens"] == 8 for line in truth)
    assert len({line["head"][0] for line in truth}) == 23  # no two begin alike
    assert result.outcomes["ok"] == result.completed == 23 and result.failed == result.not_sent == 0
    assert [record.index for record in result.records] == list(range(23))
    assert {record.slot for record in result.records} == set(range(5))
    assert result.whole.counted_output_tokens == 23 * 7
    assert result.errors == {} and result.abort_reason == ""


def test_concurrency_is_reached_and_never_exceeded(run_load):
    with SimServer(ttft_s=0.02, itl_s=0.002) as sim:
        run_load(sim.base_url, concurrency=6, num_requests=30)
        truth = sim.truth()
    changes = sorted([(t["received_ns"], 1) for t in truth] + [(t["end_ns"], -1) for t in truth])
    level = highest = 0
    for _, change in changes:
        level += change
        highest = max(highest, level)
    assert highest == 6


def test_fewer_requests_than_slots(run_load):
    with SimServer(ttft_s=0.005, itl_s=0.001) as sim:
        result = run_load(sim.base_url, concurrency=50, num_requests=3)
    assert result.completed == 3 and {record.slot for record in result.records} == {0, 1, 2}
    assert {"fewer_requests_than_slots", "few_samples_p99"} <= set(result.flags)


def test_engine_gauges_are_watched(run_load):
    with SimServer(ttft_s=0.7, itl_s=0.001) as sim:
        result = run_load(sim.base_url, concurrency=4, num_requests=4)
    assert result.engine.kv_cache_usage_max_ratio == pytest.approx(0.04)  # four running, a hundredth each
    assert result.engine.num_preemptions == 0 and result.cache_config["num_gpu_blocks"] == "1000"
    assert result.engine.prefix_cache_hits_tokens is None


def test_progress(run_load):
    seen = []
    with SimServer(ttft_s=0.1, itl_s=0.05) as sim:
        run_load(sim.base_url, concurrency=2, num_requests=6, on_progress=seen.append)
    assert len(seen) >= 3 and {p.total for p in seen} == {6}  # a run of nearly a second, and its end
    assert all(0 <= p.in_flight <= 2 and p.failed <= p.finished <= p.sent <= p.total for p in seen)
    assert (seen[-1].sent, seen[-1].finished, seen[-1].failed) == (6, 6, 0)


def test_progress_of_several_workers_adds_up():
    parts = [Progress(3, 2, 1, 1, 0.5), Progress(2, 2, 2, 0, 0.7)]
    assert Progress.merged(parts) == Progress(5, 4, 3, 1, 0.7)
    assert Progress.merged([*parts, Progress(None, 1, 0, 0, 0.1)]).total is None


def test_abort_ends_requests_in_flight_at_once(run_load):
    with SimServer(ttft_s=0.02, itl_s=0.01, faults={n: {"itl_s": 60} for n in (4, 5)}) as sim:
        begun = time.monotonic()
        result = run_load(
            sim.base_url,
            num_requests=20,
            should_abort=lambda: "The engine is gone." if time.monotonic() - begun > 1 else None,
        )
        took_s = time.monotonic() - begun
    assert took_s < 3
    assert result.outcomes == {**dict.fromkeys(result.outcomes, 0), "ok": 4, "aborted": 2}
    assert result.not_sent == 14 and result.abort_reason == "The engine is gone."
    assert result.errors["aborted"].startswith("The engine is gone. 1 of 5 tokens")
    assert "aborted" in result.flags and result.ttft_s.count == 4


@pytest.mark.parametrize("when", ["before", "while it waits"])
def test_abort_before_anything_came(run_load, when):
    under_way = []
    with SimServer(ttft_s=60) as sim:
        result = run_load(
            sim.base_url, on_progress=lambda progress: under_way.append(progress.sent == 2),
            should_abort=lambda: "Enough." if when == "before" or any(under_way) else None,
        )  # fmt: skip
    assert result.outcomes["aborted"] == len(result.records) == (0 if when == "before" else 2)
    assert result.not_sent == 4 - len(result.records) and result.abort_reason == "Enough."
    assert {"aborted", "no_completed_requests"} <= set(result.flags) and result.client.cpu_us_per_token is None
    assert (result.to_row()["client_core_share"] is None) == (when == "before")


def test_an_engine_that_dies_ends_the_run(run_load):
    """The server is killed under load; the caller's liveness check ends the run, whatever was in flight."""
    with SimServer(ttft_s=0.02, itl_s=0.02) as sim:
        pid = sim.pid

        def kill_when_running(progress):
            if progress.finished >= 2:
                sim.kill()

        begun = time.monotonic()
        result = run_load(
            sim.base_url,
            concurrency=4,
            num_requests=20_000,
            output_tokens=10,
            on_progress=kill_when_running,
            should_abort=lambda: (
                None if os.path.exists(f"/proc/{pid}") else f"The engine (pid {pid}) has exited."
            ),
        )
        took_s = time.monotonic() - begun
    assert result.completed >= 2 and result.outcomes["connection_error"] >= 4
    assert result.not_sent > 15_000 and f"(pid {pid}) has exited" in result.abort_reason
    assert took_s < 60  # most of it is making the prompts


def test_a_frozen_engine_is_aborted(run_load, monkeypatch):
    """Stopped, not dead: connections stay open and nothing comes. Only the abort can end that."""
    monkeypatch.setattr(engine_watch, "TIMEOUT_S", 0.5)  # a poll that got no answer is waited for
    with SimServer(ttft_s=0.02, itl_s=0.02) as sim:
        frozen = []

        def freeze_when_running(progress):
            if not frozen and progress.finished >= 3:
                os.kill(sim.pid, signal.SIGSTOP)
                frozen.append(time.monotonic())

        def should_abort():
            return "No sign of life." if frozen and time.monotonic() - frozen[0] > 0.3 else None

        try:
            result = run_load(
                sim.base_url,
                concurrency=3,
                num_requests=3_000,
                on_progress=freeze_when_running,
                should_abort=should_abort,
            )
        finally:
            os.kill(sim.pid, signal.SIGCONT)
    assert result.outcomes["aborted"] == 3 and result.completed > 0
    assert time.monotonic() - frozen[0] < 10


@pytest.mark.parametrize("name", ["on_progress", "should_abort"])
def test_what_a_callers_function_raises_comes_through(run_load, name):
    before = open_files()
    with SimServer(ttft_s=60) as sim:
        calls = []

        def fail(*_):
            calls.append(1)
            if len(calls) > 2:
                raise ZeroDivisionError("mine")

        with pytest.raises(ZeroDivisionError, match="mine"):
            run_load(sim.base_url, **{name: fail})
    assert open_files() == before and gc.isenabled()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_nothing_is_left_behind(run_load):
    with SimServer(ttft_s=0.005, itl_s=0.001, faults={1: {"drop": 1}, 2: {"stall": 1}}) as sim:
        run_load(sim.base_url, num_requests=2)  # first use of the event loop may keep files of its own
        before = open_files()
        run_load(sim.base_url, concurrency=8, num_requests=30, stall_timeout_s=0.2)
        assert open_files() == before
    run_load(f"http://127.0.0.1:{free_port()}")
    assert open_files() == before - 2  # the server's pipes
    assert gc.isenabled()


def test_the_garbage_collector_rests_only_while_measuring(run_load):
    states = []
    with SimServer(ttft_s=0.005, itl_s=0.001) as sim:
        run_load(sim.base_url, on_progress=lambda progress: states.append(gc.isenabled()))
        gc.disable()
        try:
            run_load(sim.base_url)
            assert not gc.isenabled()  # it was off before, so it stays off
        finally:
            gc.enable()
    assert states and not any(states)


def test_little_memory_for_responses_changes_no_result(run_load, monkeypatch):
    monkeypatch.setattr(drive, "RAW_BYTES_LIMIT", 3000)
    with SimServer(ttft_s=0.005, itl_s=0.001) as sim:
        result = run_load(sim.base_url, num_requests=20, output_tokens=10)
    assert result.completed == 20 and result.whole.counted_output_tokens == 200
    assert [record.index for record in result.records] == list(range(20))


SCRIPT = """
    import sys, time
    from bench.load.run import run_load
    from bench.load.spec import LoadSpec

    def report(progress):
        if progress.sent:
            print("running", flush=True)

    try:
        spec = LoadSpec(concurrency=3, num_requests=9, input_tokens=8, output_tokens=5)
        run_load(sys.argv[1], "sim", spec, 2048, on_progress=report)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        time.sleep(0.5)  # the connections must be gone before the process is
"""


def test_keyboard_interrupt_comes_through_and_closes_the_connections():
    with SimServer(ttft_s=60) as sim:
        command = [sys.executable, "-c", textwrap.dedent(SCRIPT), sim.base_url]
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "running\n"
        child.send_signal(signal.SIGINT)
        for line in child.stdout:
            if line == "interrupted\n":
                break
        else:
            pytest.fail(f"no KeyboardInterrupt: {child.communicate()[1]}")
        deadline = time.monotonic() + 0.4
        while len(sim.truth()) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        ended = [line["ended"] for line in sim.truth()]
        _, errors = child.communicate(timeout=10)
    assert ended == ["connection lost"] * 3
    assert child.returncode == 0 and errors == ""


def test_a_duration_ends_the_sending_and_what_is_in_flight_is_awaited(run_load):
    with SimServer(ttft_s=0.05, itl_s=0.01) as sim:
        result = run_load(sim.base_url, concurrency=3, duration_s=0.5)
    assert result.failed == result.not_sent == 0 and result.completed == len(result.records) > 3
    assert max(record.scheduled_ns for record in result.records) - result.start_ns < 0.5e9
    assert max(record.end_ns for record in result.records) - result.start_ns > 0.5e9
    assert result.to_row()["num_requests"] == result.completed and result.abort_reason == ""


def test_the_number_ends_a_load_that_its_duration_would_not(run_load):
    with SimServer(ttft_s=0.005, itl_s=0.001) as sim:
        result = run_load(sim.base_url, concurrency=3, duration_s=60, num_requests=9)
    assert result.completed == 9 and result.whole.window_s < 30
