"""The client's clock against the simulated server's record of when it really sent each token.

Both processes read the same clock, so a client time can be compared with a server time directly. What is
compared is the median over many tokens: single ones may be late on a busy machine, and that is not the
client's doing.
"""

from __future__ import annotations

import asyncio
from statistics import median

import numpy as np
import pytest

from bench.load import drive
from tests.fakes.sim_server import SimServer

CLOSE_S = 0.004  # far under the delays below, far over what the client adds


def pairs(result, truth):
    """Each completed record with the server's truth about it, matched by the prompt's unique head."""
    from bench.load.prompts import prompt_token_ids

    by_head = {tuple(line["head"]): line for line in truth}
    spec = result.spec
    for record in result.records:
        if record.outcome == "ok":
            head = prompt_token_ids(spec.seed, record.index, spec.input_tokens, 2048)[:2]
            yield record, by_head[tuple(head)]


@pytest.mark.parametrize(
    ("event_loop", "layout"),
    [("asyncio", {}), *(("uvloop", layout) for layout in ({}, {"coalesce": 3}, {"merge": 2}, {"split": 3}))],
    ids=lambda value: str(value or "plain"),
)
def test_times_and_counts_are_the_servers(run_load, monkeypatch, event_loop, layout):
    if event_loop == "uvloop":
        pytest.importorskip("uvloop")
    else:
        monkeypatch.setattr(drive, "_event_loop", lambda: ("asyncio", asyncio.new_event_loop))
    with SimServer(ttft_s=0.06, itl_s=0.02, **layout) as sim:
        result = run_load(sim.base_url, concurrency=4, num_requests=12, output_tokens=16)
        truth = sim.truth()
    assert result.client.event_loop == event_loop
    assert (result.completed, result.failed) == (12, 0)
    matched = list(pairs(result, truth))
    assert len(matched) == 12

    sent_delays, arrival_delays, gap_errors, ttft_errors, e2e_errors, tpot_errors = [], [], [], [], [], []
    for record, true in matched:
        assert record.output_tokens == 16 and record.prompt_tokens == 8
        # The server's time for the n-th token, where n ends a chunk. The client may see two as one if it
        # was kept from running, but never a chunk in parts.
        ends = np.cumsum([tokens for _, tokens in true["sends"]])
        sent_at = dict(zip(ends.tolist(), [at for at, _ in true["sends"]], strict=True))
        seen = np.cumsum(record.chunk_tokens).tolist()
        assert set(seen) <= set(sent_at) and seen[-1] == 16
        times = [sent_at[n] for n in seen]
        first_ns, last_ns = true["sends"][0][0], true["sends"][-1][0]
        sent_delays.append((true["received_ns"] - record.sent_ns) / 1e9)
        arrival_delays += ((np.array(record.chunk_ns) - np.array(times)) / 1e9).tolist()
        gap_errors += (np.abs(np.diff(record.chunk_ns) - np.diff(times)) / 1e9).tolist()
        # From the sending: how late that was is a figure of its own, and on a busy machine not small.
        ttft_errors.append(abs((record.first_token_ns - record.sent_ns) - (first_ns - true["received_ns"])) / 1e9)
        e2e_errors.append(abs((record.last_token_ns - record.sent_ns) - (last_ns - true["received_ns"])) / 1e9)
        tpot_errors.append(abs(record.tpot_s - (last_ns - first_ns) / 1e9 / 15))
    assert min(sent_delays) > 0  # a request cannot arrive before it was sent, nor a token
    # The server notes the time just before it writes, so only a client that stamps too early can be below.
    assert min(arrival_delays) > 0
    # A server that took requests late is not the client's doing: what it costs is part of `sent_delays` alone.
    close_s = CLOSE_S + median(sent_delays)
    for delays, within_s in (
        (arrival_delays, CLOSE_S), (gap_errors, CLOSE_S), (tpot_errors, CLOSE_S), (ttft_errors, close_s),
        (e2e_errors, close_s),
    ):  # fmt: skip
        assert median(delays) < within_s or "client_bound" in result.flags


def gaps_seen(result) -> int:
    """Tokens after each completed request's first chunk."""
    ok = [record for record in result.records if record.outcome == "ok"]
    return sum(record.output_tokens - record.chunk_tokens[0] for record in ok)


def test_reported_statistics_are_those_of_the_truth(run_load):
    with SimServer(ttft_s=0.08, itl_s=0.02, faults={n: {"ttft_s": 0.4} for n in (4, 9)}) as sim:
        result = run_load(sim.base_url, concurrency=4, num_requests=20, output_tokens=11)
        truth = sim.truth()
    sends = [[at for at, _ in line["sends"]] for line in truth]
    ttft = [(s[0] - line["received_ns"]) / 1e9 for s, line in zip(sends, truth, strict=True)]
    e2e = [(s[-1] - line["received_ns"]) / 1e9 for s, line in zip(sends, truth, strict=True)]
    itl = np.concatenate([np.diff(s) for s in sends]) / 1e9
    assert result.ttft_s.count == 20 and result.itl_s.count == gaps_seen(result) and result.e2e_s.count == 20
    assert result.ttft_s.p50 == pytest.approx(np.percentile(ttft, 50), abs=CLOSE_S)
    assert result.ttft_s.p95 == pytest.approx(np.percentile(ttft, 95), abs=5 * CLOSE_S)
    assert result.ttft_s.max > 0.4  # the slow ones are seen
    assert result.itl_s.p50 == pytest.approx(np.percentile(itl, 50), abs=CLOSE_S)
    assert result.itl_s.mean == pytest.approx(itl.mean(), abs=CLOSE_S)
    assert result.tpot_s.p50 == pytest.approx(itl.mean(), abs=CLOSE_S)
    assert result.e2e_s.p50 == pytest.approx(np.percentile(e2e, 50), abs=2 * CLOSE_S)
    window_s = (max(line["end_ns"] for line in truth) - min(line["received_ns"] for line in truth)) / 1e9
    assert result.whole.window_s == pytest.approx(window_s, abs=10 * CLOSE_S)
    assert result.whole.output_tokens_per_s == pytest.approx(20 * 11 / window_s, rel=0.1)
    assert result.whole.total_tokens_per_s == pytest.approx(20 * (11 + 8) / window_s, rel=0.1)


def test_coalesced_tokens_do_not_halve_the_itl(run_load):
    """Three tokens every 30 ms are one every 10 ms, and not two of none and one of 30."""
    with SimServer(ttft_s=0.03, itl_s=0.01, coalesce=3) as sim:
        result = run_load(sim.base_url, output_tokens=31)
        gaps = np.concatenate([np.diff([at for at, _ in line["sends"]]) for line in sim.truth()]) / 1e9
    assert result.tokens_per_chunk >= 31 / 11 - 1e-9  # more if the client was kept from running
    assert result.itl_s.count == gaps_seen(result) <= 4 * 28
    assert result.itl_s.p50 == pytest.approx(np.median(gaps) / 3, abs=CLOSE_S / 2)
    assert result.tpot_s.p50 < result.itl_s.p50 * 1.2


def test_next_request_goes_out_when_the_last_has_ended(run_load):
    with SimServer(ttft_s=0.02, itl_s=0.005) as sim:
        result = run_load(sim.base_url, concurrency=3, num_requests=15)
    for slot in range(3):
        mine = sorted((r for r in result.records if r.slot == slot), key=lambda r: r.sent_ns)
        assert mine, "a slot did nothing"
        for last, following in zip(mine, mine[1:], strict=False):
            assert following.scheduled_ns == last.end_ns <= following.sent_ns
    delays_s = [(r.sent_ns - r.scheduled_ns) / 1e9 for r in result.records]
    assert median(delays_s) < CLOSE_S
    assert result.client.send_delay_p99_s <= max(delays_s) == result.client.send_delay_max_s
    assert result.mean_in_flight == pytest.approx(3, rel=0.2)


def test_a_busy_client_is_reported(run_load):
    """Blocking the loop's thread must show in the client's own figures, or they are no check."""
    import time

    with SimServer(ttft_s=0.05, itl_s=0.01) as sim:
        calm = run_load(sim.base_url, output_tokens=20)
        busy = run_load(sim.base_url, output_tokens=20, on_progress=lambda progress: _burn(time, 0.7))
    assert busy.client.loop_lag_max_s > 0.15 > calm.client.loop_lag_p50_s
    assert busy.client.cpu_s > calm.client.cpu_s + 0.6
    assert (
        busy.client.core_share > calm.client.core_share
        and busy.client.share_of_machine < busy.client.core_share + 1e-9
    )
    assert "client_lag" in busy.flags
    # Blocked for most of the time, so most of the time must show it: one sample for each block would not.
    assert busy.client.loop_lag_p50_s > 0.02


def test_a_starved_client_is_reported(run_load):
    """Busy processes on the client's only core: it was ready, but did not run."""
    import os
    import subprocess
    import sys

    cores = os.sched_getaffinity(0)
    hogs = []
    with SimServer(ttft_s=0.05, itl_s=0.01) as sim:
        try:
            os.sched_setaffinity(0, {min(cores)})
            hogs += [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
            result = run_load(sim.base_url, num_requests=8, output_tokens=50)
        finally:
            os.sched_setaffinity(0, cores)
            for hog in hogs:
                hog.kill()
                hog.wait()
    assert result.completed == 8 and result.client.core_share < 0.5
    assert result.client.cpu_wait_s > 0.001


def _burn(time, seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
