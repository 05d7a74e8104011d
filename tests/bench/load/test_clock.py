"""The client's figures are the engine's, or the row says that they may be the client's."""

from __future__ import annotations

import time

import pytest

from bench.load.http import Stream
from tests.fakes.sim_server import SimServer
from tests.fakes.sim_truth import compare

VOCAB_SIZE = 2048  # of run_load


def checked(run_load, sim, on_progress=None, **load):
    """Run a load with exact counts, and hold the either-or against it."""
    result = run_load(sim.base_url, pattern="constant", on_progress=on_progress, **load)
    compared = compare(result, sim.truth(), VOCAB_SIZE)
    assert result.completed == load["num_requests"] and not result.failed
    assert compared.counts_agree
    assert compared.accurate or "client_bound" in result.flags, (compared, result.client)
    return result, compared


def test_a_thousand_streams_at_twenty_thousand_tokens_a_second(run_load):
    with SimServer(ttft_s=0.2, itl_s=0.05) as sim:
        result, _ = checked(run_load, sim, num_requests=1000, rate_per_s=1000.0, output_tokens=45)
    assert result.itl_s.count == 1000 * 44 - sum(int(record.chunk_tokens[0]) - 1 for record in result.records)
    assert result.peak_in_flight > 900


def test_varied_delays_are_reported_as_they_were(run_load):
    with SimServer(ttft_s=[0.02, 0.05, 0.3], itl_s=[0.01, 0.01, 0.06]) as sim:
        result, compared = checked(run_load, sim, num_requests=90, rate_per_s=100.0, output_tokens=13)
    assert compared.accurate or "client_bound" in result.flags
    assert result.ttft_s.max > 0.3 and result.ttft_s.p50 < 0.3 < result.e2e_s.max
    assert result.itl_s.max > 0.06 * 0.9


@pytest.mark.parametrize("block_s", [0.004, 0.03, 0.12])
def test_a_client_that_blocks_now_and_then_is_flagged_or_right(run_load, block_s):
    """On the loop's thread, four times a second. The longest must be flagged; any that is not must be right."""
    with SimServer(ttft_s=0.05, itl_s=0.02) as sim:
        result, compared = checked(
            run_load, sim, lambda progress: burn(block_s), num_requests=60, rate_per_s=60.0, output_tokens=30
        )
    if block_s == 0.12:
        assert {"client_bound", "client_lag"} <= set(result.flags)
        assert not compared.accurate or result.client.loop_lag_max_s > 0.05


def test_a_client_that_is_slow_with_every_token_is_flagged(run_load, monkeypatch):
    """Half a millisecond for each piece, 100 streams every 20 ms: it cannot keep up."""
    receive = Stream.arrived

    def slow(self: Stream, data: bytes, at_ns: int) -> None:
        burn(0.0005)
        receive(self, data, at_ns)

    monkeypatch.setattr(Stream, "arrived", slow)
    with SimServer(ttft_s=0.05, itl_s=0.02) as sim:
        result, compared = checked(run_load, sim, num_requests=100, rate_per_s=200.0, output_tokens=20)
    assert "client_bound" in result.flags and not compared.accurate


def test_a_stalled_server_shows_in_every_request_it_held_up(run_load):
    """Nothing is read or sent for a second; requests go on being due, and their latency runs from then."""
    with SimServer(ttft_s=0.02, itl_s=0.01, freezes=[[0.5, 1.0]]) as sim:
        result = run_load(sim.base_url, pattern="constant", rate_per_s=50.0, num_requests=100, output_tokens=6)
        first_ns = min(line["received_ns"] for line in sim.truth())
    assert result.completed == 100
    over_ns = first_ns + round(1.5e9)  # not before this does the server speak again
    held_up = [r for r in result.records if 0.6e9 < r.scheduled_ns - first_ns < 1.45e9]
    assert len(held_up) >= 40
    for record in held_up:
        assert record.ttft_s >= (over_ns - record.scheduled_ns) / 1e9, record.index
    assert result.ttft_s.max > 0.85 and result.ttft_s.p90 > 0.5
    under_way = [r for r in result.records if 0.47e9 < r.scheduled_ns - first_ns < 0.49e9]
    assert all(record.e2e_s > 0.9 for record in under_way)
    before = [r for r in result.records if r.scheduled_ns - first_ns < 0.2e9]
    assert before and min(record.e2e_s for record in before) < 0.4


def burn(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
