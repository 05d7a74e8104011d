"""Open loops against the simulated server: sent when due, timed from when due, whatever the server does."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from statistics import median

import pytest

from bench.load import clock, pool
from bench.load.schedule import planned_requests
from tests.fakes.sim_server import SimServer, free_port

CLOSE_S = 0.004


def test_requests_go_out_when_they_are_due(run_load):
    with SimServer(ttft_s=0.03, itl_s=0.002) as sim:
        result = run_load(sim.base_url, pattern="poisson", rate_per_s=80, num_requests=100)
        truth = sim.truth()
    due_ns = [request.due_ns for request in planned_requests(result.spec)]
    assert [record.scheduled_ns - result.start_ns for record in result.records] == due_ns
    assert result.completed == 100 and result.not_sent == 0
    assert min(record.sent_ns - record.scheduled_ns for record in result.records) >= 0
    assert median(record.send_delay_s for record in result.records) < 0.002 or "client_bound" in result.flags
    received = sorted(line["received_ns"] for line in truth)
    lateness = [at - result.start_ns - due for at, due in zip(received, due_ns, strict=True)]
    assert min(lateness) > 0 and (median(lateness) / 1e9 < CLOSE_S or "client_bound" in result.flags)
    assert result.to_row()["offered_requests_per_s"] == pytest.approx(80, rel=1e-6)
    assert result.ttft_s.p50 == pytest.approx(0.030, abs=CLOSE_S)


def test_a_stalled_server_shows_in_every_request_it_kept_waiting(run_load):
    """The server is stopped for a while. A closed loop would send nothing meanwhile and report one slow request a
    slot; here every request due in the stall has at least the rest of it in its TTFT and E2E."""
    stopped: list[int] = []
    with SimServer(ttft_s=0.01, itl_s=0.001) as sim:

        def stall(progress):
            if not stopped and progress.elapsed_s > 0.4:
                os.kill(sim.pid, signal.SIGSTOP)
                stopped.append(time.perf_counter_ns())
            elif len(stopped) == 1 and progress.elapsed_s > 1.3:
                stopped.append(time.perf_counter_ns())
                os.kill(sim.pid, signal.SIGCONT)

        try:
            result = run_load(
                sim.base_url, pattern="constant", rate_per_s=50, duration_s=2.5, slo_ttft_s=0.2, on_progress=stall
            )
        finally:
            os.kill(sim.pid, signal.SIGCONT)
    begin_ns, end_ns = stopped
    affected = [r for r in result.records if begin_ns < r.scheduled_ns < end_ns]
    assert result.completed == 125 and result.failed == 0
    assert len(affected) == pytest.approx((end_ns - begin_ns) / 1e9 * 50, abs=2) and len(affected) > 30
    for record in affected:
        waited_s = (end_ns - record.scheduled_ns) / 1e9
        assert record.e2e_s >= record.ttft_s > waited_s  # equal where all tokens came in one piece
        assert record.send_delay_s < 0.5 * waited_s + 0.05  # it was sent all the same
    assert result.ttft_s.max > 0.7 and result.ttft_s.p90 > 0.4 and result.ttft_s.p50 < 0.1
    assert result.whole.goodput_share == pytest.approx(
        sum(record.ttft_s <= 0.2 for record in result.records) / 125
    )  # fmt: skip
    assert result.whole.goodput_share < 0.85


def test_a_cap_holds_requests_back_and_their_wait_counts(run_load):
    with SimServer(ttft_s=0.05, itl_s=0.001) as sim:
        result = run_load(sim.base_url, pattern="constant", rate_per_s=100, num_requests=40, concurrency=2)
        truth = sim.truth()
    changes = sorted([(t["received_ns"], 1) for t in truth] + [(t["end_ns"], -1) for t in truth])
    levels = [sum(step for _, step in changes[: n + 1]) for n in range(len(changes))]
    assert max(levels) == 2 == result.peak_in_flight and result.completed == 40
    last = max(result.records, key=lambda record: record.scheduled_ns)
    assert last.ttft_s > 0.5 and last.released_ns - last.scheduled_ns > 0.4e9
    assert "held_back" in result.flags
    # The cap's doing, not the client's: what the client is blamed for is a small part of the wait.
    assert result.client.send_delay_max_s == pytest.approx(result.send_delay_s.max)
    assert result.send_delay_s.p50 < 0.1 * (last.released_ns - last.scheduled_ns) / 1e9


def test_places_that_come_free_together_are_not_held_against_the_client(run_load):
    """The engine ends four requests in one step: the second to take a free place waited for the cap as the first."""
    with SimServer(tick_s=0.1) as sim:
        result = run_load(
            sim.base_url, pattern="constant", rate_per_s=200, num_requests=32, concurrency=4, output_tokens=1
        )
    last = result.records[-1]
    assert result.completed == 32 and last.released_ns - last.scheduled_ns > 0.4e9
    assert result.send_delay_s.max < 0.05 * (last.released_ns - last.scheduled_ns) / 1e9 + 0.05


def test_trace_lengths_are_sent(run_load, tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("timestamp,input_length,output_length\n0,5,3\n0.05,9,2\n0.05,7,4\n0.3,6,1\n")
    with SimServer(ttft_s=0.01, itl_s=0.001) as sim:
        result = run_load(
            sim.base_url, pattern="trace", trace_file=str(trace), trace_speed=2, input_tokens=1
        )
    assert [(r.input_tokens, r.prompt_tokens, r.output_tokens) for r in result.records] == [
        (5, 5, 3), (9, 9, 2), (7, 7, 4), (6, 6, 1),
    ]  # fmt: skip
    assert result.completed == 4 and "prompt_tokens_mismatch" not in result.flags
    row = result.to_row()
    assert (row["input_tokens"], row["input_tokens_min"], row["input_tokens_max"]) == (6.75, 5, 9)
    assert row["num_requests"] == 4 and row["input_tokens_json"] is None


def test_varied_lengths_are_exact_and_judged_one_by_one(run_load):
    with SimServer(ttft_s=0.005, itl_s=0.0005, faults={3: {"stop_after": 0}}) as sim:
        result = run_load(
            sim.base_url, concurrency=3, num_requests=30, input_tokens={"kind": "uniform", "min": 2, "max": 30},
            output_tokens={"kind": "lognormal", "mean": 6, "std": 4, "max": 20},
        )  # fmt: skip
        truth = sim.truth()
    assert result.outcomes["ok"] == 29 and result.outcomes["short"] == 1
    assert sorted(line["prompt_tokens"] for line in truth) == sorted(r.input_tokens for r in result.records)
    assert all(r.output_tokens == r.asked_output_tokens for r in result.records if r.outcome == "ok")
    assert len({r.asked_output_tokens for r in result.records}) > 5


def test_a_ramp_has_no_steady_state_and_says_so(run_load):
    with SimServer(ttft_s=0.01, itl_s=0.001) as sim:
        result = run_load(sim.base_url, pattern="ramp", rate_per_s=20, rate_end_per_s=80, duration_s=1.0)
    row = result.to_row()
    assert row["steady_rule"] == "none" and row["steady_window_s"] is None and row["steady_requests"] is None
    assert result.completed == 50 and not {"no_steady_state", "not_steady"} & set(result.flags)


def test_the_row_says_what_the_steady_window_leaves_out(run_load):
    with SimServer(ttft_s=0.2, itl_s=0.002) as sim:
        result = run_load(sim.base_url, pattern="constant", rate_per_s=60, num_requests=120, slo_e2e_s=5)
    row = result.to_row()
    assert row["steady_rule"] == "mser5_in_flight" and "no_steady_state" not in result.flags
    assert 0.1 < row["steady_begin_s"] == row["steady_left_out_before_s"] < 0.6  # the first answers take 0.2 s
    assert row["steady_end_s"] == pytest.approx(119 / 60, rel=1e-6)
    assert row["steady_left_out_after_s"] == pytest.approx(row["window_s"] - row["steady_end_s"], abs=1e-6)
    assert row["steady_left_out_after_s"] > 0.2
    assert row["steady_window_s"] == pytest.approx(row["steady_end_s"] - row["steady_begin_s"])
    assert row["steady_requests"] + row["steady_left_out_requests"] == 120 > row["steady_requests"] > 80
    assert row["steady_ttft_count"] == row["steady_requests"] and row["steady_goodput_share"] == 1.0
    assert row["steady_requests_per_s"] == pytest.approx(60, rel=0.05) and row["requests_per_s"] < 57


def test_failures_of_an_open_loop_are_counted_and_the_run_completes(run_load):
    faults = {1: {"drop": 2}, 3: {"status": 500}, 5: {"malformed": 1}, 7: {"stop_after": 2}, 9: {"stall": 1}}
    with SimServer(ttft_s=0.01, itl_s=0.001, faults=faults) as sim:
        result = run_load(sim.base_url, pattern="poisson", rate_per_s=60, num_requests=40, stall_timeout_s=0.3)
    wanted = {"ok": 35, "connection_error": 1, "http_error": 1, "malformed": 1, "short": 1, "stalled": 1}
    assert {kind: count for kind, count in result.outcomes.items() if count} == wanted
    assert result.ttft_s.count == 35 and result.whole.counted_output_tokens == 35 * 5


def test_nobody_listens_to_an_open_loop(run_load):
    result = run_load(f"http://127.0.0.1:{free_port()}", pattern="constant", rate_per_s=200, num_requests=20)
    assert result.outcomes["connection_error"] == 20 and result.to_row()["send_delay_p99_s"] is None


def test_an_abort_does_not_wait_for_the_next_arrival(run_load, tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("timestamp,input_length,output_length\n0,5,3\n900,9,2\n")
    seen = []
    with SimServer(ttft_s=0.01, itl_s=0.001) as sim:
        begun = time.monotonic()
        result = run_load(
            sim.base_url, pattern="trace", trace_file=str(trace), on_progress=seen.append,
            should_abort=lambda: "Enough." if seen and seen[-1].finished else None,
        )  # fmt: skip
    assert time.monotonic() - begun < 60  # the next arrival is a quarter of an hour away
    assert (result.completed, result.not_sent, result.abort_reason) == (1, 1, "Enough.")


def test_an_abort_ends_a_capped_load_that_waits_for_room(run_load):
    seen = []
    with SimServer(ttft_s=60) as sim:
        begun = time.monotonic()
        result = run_load(
            sim.base_url, pattern="constant", rate_per_s=50, num_requests=500, concurrency=3, on_progress=seen.append,
            should_abort=lambda: "Enough." if seen and seen[-1].in_flight == 3 else None,
        )  # fmt: skip
    assert time.monotonic() - begun < 45  # the first answer takes a minute
    assert result.outcomes["aborted"] == 3 and result.not_sent == 497


def test_more_in_flight_than_files_ends_the_run_with_the_reason(run_load, monkeypatch):
    monkeypatch.setattr(pool.resource, "getrlimit", lambda what: (pool.OTHER_FILES + 5,) * 2)
    with SimServer(ttft_s=0.4, itl_s=0.001) as sim:
        result = run_load(sim.base_url, pattern="constant", rate_per_s=100, num_requests=300)
    assert result.abort_reason.startswith("5 requests were in flight and this process may open no more files")
    assert result.outcomes["aborted"] == 5 and result.not_sent == 295 and "aborted" in result.flags


def test_connections_are_opened_ahead_and_used_again(run_load):
    with SimServer(ttft_s=0.01, itl_s=0.001) as sim:
        result = run_load(sim.base_url, pattern="constant", rate_per_s=60, num_requests=60)
        connections = sim.truth()[-1]["connections"]
    assert len({record.slot for record in result.records}) < 20  # few carry all
    assert connections < 60 + pool.SPARE + 4


def test_connections_that_the_server_closes_are_replaced_ahead_of_need(run_load):
    with SimServer(ttft_s=0.01, itl_s=0.001, close="silent") as sim:
        result = run_load(sim.base_url, pattern="constant", rate_per_s=60, num_requests=40)
    assert result.completed == 40 and result.resends < 5  # as it goes out, now and then, but not as a rule


@pytest.mark.parametrize("by_file", [True, False])
def test_the_alarm_rings_on_time(monkeypatch, by_file):
    if not by_file:
        monkeypatch.setattr(clock.TimerFile, "open", lambda: None)

    async def late_ns():
        found = []
        with clock.Alarm() as alarm:
            for step_us in (0, 50, 700, 1500, 3000) * 4:
                due_ns = time.perf_counter_ns() + step_us * 1000
                await alarm.until(due_ns)
                found.append(time.perf_counter_ns() - due_ns)
        return found

    before = len(os.listdir("/proc/self/fd"))
    late = asyncio.run(late_ns())
    assert min(late) >= 0 or not by_file
    assert median(late) < (2_000_000 if by_file else 20_000_000)
    assert len(os.listdir("/proc/self/fd")) <= before
