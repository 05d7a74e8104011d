"""Several load processes behave as one, also when one of them does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from bench.errors import BadRequest
from bench.load import workers
from bench.load.plan import make_plans
from bench.load.spec import LoadSpec
from tests.fakes.sim_server import SimServer
from tests.fakes.sim_truth import compare

ROOT = Path(__file__).resolve().parents[3]


def load_workers(pid: int | None = None) -> list[psutil.Process]:
    """Children that ran or run a load worker; the resource tracker of multiprocessing is none."""
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_two_workers_send_what_one_would(run_load):
    with SimServer(ttft_s=0.05, itl_s=0.02) as sim:
        result = run_load(sim.base_url, concurrency=5, num_requests=15, output_tokens=8, workers=2)
        truth = sim.truth()
    assert [record.index for record in result.records] == list(range(15))
    assert {record.worker for record in result.records} == {0, 1}
    assert {record.slot for record in result.records} == set(range(5))
    assert result.completed == 15 and compare(result, truth, 2048).counts_agree
    assert result.client.workers == 2 and result.client.placement and result.client.event_loop == "uvloop"
    assert not load_workers()


def test_uneven_slots_are_busy_to_the_end(run_load):
    """Three slots on two workers: dealt evenly, the requests of one slot would outlast those of the two others."""
    with SimServer(ttft_s=0.05, itl_s=0.02) as sim:
        result = run_load(sim.base_url, concurrency=3, num_requests=24, output_tokens=6, workers=2)
    ends_s = [max(r.end_ns for r in result.records if r.slot == slot) / 1e9 for slot in range(3)]
    taken = sorted(sum(record.slot == slot for record in result.records) for slot in range(3))
    assert taken[0] >= 7 and taken[-1] <= 9 and max(ends_s) - min(ends_s) < 0.5 * result.window_s
    assert result.mean_in_flight > 2.6 or "client_bound" in result.flags


def test_an_open_load_keeps_its_schedule_over_workers(run_load):
    with SimServer(ttft_s=0.02, itl_s=0.005) as sim:
        result = run_load(sim.base_url, pattern="constant", rate_per_s=40.0, num_requests=20, workers=2)
    due_s = sorted((record.scheduled_ns - result.start_ns) / 1e9 for record in result.records)
    gaps = [after - before for before, after in zip(due_s, due_s[1:], strict=False)]
    assert result.completed == 20 and gaps == pytest.approx([1 / 40] * 19, abs=1e-6)


def test_progress_is_of_all_and_an_abort_reaches_all(run_load):
    seen = []
    with SimServer(ttft_s=0.02, itl_s=0.02) as sim:
        result = run_load(
            sim.base_url, concurrency=4, num_requests=400, output_tokens=20, workers=2,
            on_progress=seen.append, should_abort=lambda: "Enough." if seen and seen[-1].finished >= 8 else None,
        )  # fmt: skip
    assert result.abort_reason == "Enough." and "aborted" in result.flags
    assert max(progress.in_flight for progress in seen) == 4 and seen[0].total == 400
    assert len(result.records) + result.not_sent == 400 and result.completed >= 8
    assert {record.worker for record in result.records} == {0, 1} and not load_workers()


def test_a_dead_worker_is_counted_and_said(run_load):
    killed = []

    def kill_one(progress) -> None:
        if progress.finished >= 4 and not killed:
            killed.append(load_workers()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    with SimServer(ttft_s=0.02, itl_s=0.02) as sim:
        result = run_load(
            sim.base_url, concurrency=4, num_requests=40, output_tokens=8, workers=2, on_progress=kill_one
        )
    assert killed and "was lost after" in result.abort_reason and "SIGKILL" in result.abort_reason
    assert result.not_sent == 20 and result.completed == len(result.records) == 20  # the other one went on
    assert not load_workers()


def test_a_silent_worker_is_given_up(monkeypatch):
    monkeypatch.setattr(workers, "SILENCE_LIMIT_S", 1.5)
    stopped = []

    def stop_one(progress) -> None:
        if progress.finished >= 2 and not stopped:
            stopped.append(load_workers()[0].pid)
            os.kill(stopped[0], signal.SIGSTOP)

    with SimServer(ttft_s=0.02, itl_s=0.01) as sim:
        spec = LoadSpec(concurrency=2, num_requests=20, input_tokens=8, output_tokens=10)
        outcomes = workers.drive_all(make_plans(sim.base_url, "sim", spec, 2048, 2), on_progress=stop_one)
    assert stopped and sorted(len(outcome.records) for outcome in outcomes) == [0, 10]
    assert "silent for 1.5 s" in next(outcome.abort_reason for outcome in outcomes if not outcome.records)
    assert not load_workers()


def test_a_refusal_comes_through(monkeypatch):
    spec = LoadSpec(concurrency=2, num_requests=4, input_tokens=8, output_tokens=5)
    plans = [replace(plan, vocab_size=3) for plan in make_plans("http://127.0.0.1:9", "sim", spec, 2048, 2)]
    with pytest.raises(BadRequest, match="vocab_size is 3"):
        workers.drive_all(plans)
    assert not load_workers()


def test_what_a_callers_function_raises_comes_through_and_leaves_nothing(run_load):
    def fail(progress) -> None:
        raise KeyboardInterrupt

    with SimServer(ttft_s=0.02, itl_s=0.01) as sim, pytest.raises(KeyboardInterrupt):
        run_load(sim.base_url, num_requests=20, workers=2, on_progress=fail)
    assert not load_workers()


def test_workers_end_with_the_process_that_started_them():
    program = (
        "import sys; from bench.load.run import run_load; from bench.load.spec import LoadSpec; "
        "spec = LoadSpec(concurrency=2, num_requests=10000, input_tokens=8, output_tokens=5, workers=2); "
        "run_load(sys.argv[1], 'sim', spec, 2048, on_progress=lambda p: p.finished and print(p.finished, flush=True))"
    )
    with SimServer(ttft_s=0.02, itl_s=0.01) as sim:
        command = [sys.executable, "-c", program, sim.base_url]
        parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None and parent.stdout.readline()
        children = load_workers(parent.pid)
        assert len(children) == 2
        parent.kill()
        parent.communicate()
        gone, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_how_many_workers_a_load_wants(monkeypatch):
    def spec(**fields) -> LoadSpec:
        return LoadSpec(num_requests=10, input_tokens=8, output_tokens=5, **fields)

    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: set(range(16)))
    assert workers.choose_workers(spec(concurrency=4)) == 1
    assert workers.choose_workers(spec(concurrency=1024)) == 2
    assert workers.choose_workers(spec(concurrency=100_000)) == 4
    assert workers.choose_workers(spec(pattern="poisson", rate_per_s=600.0)) == 2
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: {0, 1})
    assert workers.choose_workers(spec(concurrency=100_000)) == 1


def test_waiting_for_workers_takes_no_core(run_load):
    """The parent of the workers must not take from the engine what they leave to it."""
    with SimServer(ttft_s=0.3, itl_s=0.1) as sim:
        before_s, began_s = time.process_time(), time.monotonic()
        run_load(sim.base_url, num_requests=2, output_tokens=15, workers=2)
        share = (time.process_time() - before_s) / (time.monotonic() - began_s)
    assert share < 0.5
