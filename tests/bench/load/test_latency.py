"""Statistics on cases computed by hand."""

from __future__ import annotations

from array import array

import pytest

from bench.load.latency import (
    Distribution,
    Window,
    inter_token_latencies_s,
    longest_itl_s,
    mean_in_flight,
    meets,
    whole_window,
    window_between,
)
from bench.load.records import RequestRecord
from bench.load.steady import closed_loop_window

MS = 1_000_000


def steady_window(records, ok, slots) -> Window:
    window = closed_loop_window(records, slots)
    return window_between(records, window.begin_ns, window.end_ns, {})


def record(index=0, slot=0, sent=0, chunks=(), tail=0, outcome="ok", prompt=10, due=None) -> RequestRecord:
    """``chunks`` are (arrival in ms, tokens); the last byte comes ``tail`` ms after the last of them."""
    times, tokens = [t * MS for t, _ in chunks], [k for _, k in chunks]
    return RequestRecord(
        index=index,
        slot=slot,
        outcome=outcome,
        http_status=200,
        error="",
        scheduled_ns=(sent if due is None else due) * MS,
        sent_ns=sent * MS,
        first_token_ns=times[0] if times else None,
        last_token_ns=times[-1] if times else None,
        end_ns=(times[-1] if times else sent * MS) + tail * MS,
        prompt_tokens=prompt,
        output_tokens=sum(tokens),
        chunk_ns=array("q", times),
        chunk_tokens=array("i", tokens),
    )


def test_ttft_e2e_and_tpot_of_one_request():
    r = record(sent=100, chunks=[(150, 1), (170, 1), (200, 1)], tail=5)
    assert r.ttft_s == pytest.approx(0.050)
    assert r.e2e_s == pytest.approx(0.100)  # to the last token, not to the last byte
    assert r.tpot_s == pytest.approx((0.100 - 0.050) / 2)


def test_a_single_token_has_no_tpot_and_no_itl():
    r = record(chunks=[(10, 1)])
    assert r.ttft_s == r.e2e_s == pytest.approx(0.010)
    assert r.tpot_s is None and inter_token_latencies_s(r).size == 0


def test_tokens_in_one_chunk_have_no_tpot():
    """A TPOT of 0 would be a fast engine; that nothing is known is something else."""
    r = record(chunks=[(10, 5)])
    assert r.tpot_s is None and inter_token_latencies_s(r).size == 0 and r.e2e_s == pytest.approx(0.010)


def test_nothing_received_has_no_latencies():
    r = record(chunks=[])
    assert r.ttft_s is None and r.e2e_s is None and r.tpot_s is None


def test_itl_spreads_a_gap_over_the_tokens_of_its_chunk():
    r = record(chunks=[(0, 2), (10, 1), (50, 4), (60, 2)])
    assert inter_token_latencies_s(r).tolist() == pytest.approx([0.010] + [0.010] * 4 + [0.005] * 2)
    # All gaps together are the time from the first to the last chunk.
    assert inter_token_latencies_s(r).sum() == pytest.approx(0.060)


def test_itl_is_over_tokens_not_over_requests():
    long = record(chunks=[(10 * i, 1) for i in range(10)])
    short = record(chunks=[(0, 1), (100, 1)])
    itl = whole_window([long, short], {}).itl_s
    assert itl.count == 10 and itl.p50 == pytest.approx(0.010) and itl.max == pytest.approx(0.100)
    assert itl.mean == pytest.approx((9 * 0.010 + 0.100) / 10)


def test_percentiles_interpolate_linearly():
    d = Distribution.of([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (d.count, d.mean, d.p50, d.max) == (5, 3.0, 3.0, 5.0)
    assert d.p90 == pytest.approx(4.6) and d.p95 == pytest.approx(4.8) and d.p99 == pytest.approx(4.96)


def test_distribution_leaves_out_none_and_may_be_empty():
    assert Distribution.of([None, 2.0, None]) == Distribution(1, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0)
    assert Distribution.of([]) == Distribution(0)
    assert Distribution.of([None]).columns("x") == {
        "x_count": 0, "x_mean_s": None, "x_p50_s": None, "x_p90_s": None, "x_p95_s": None, "x_p99_s": None,
        "x_max_s": None,
    }  # fmt: skip


def test_whole_window_is_first_sending_to_last_byte():
    a = record(0, sent=100, chunks=[(200, 1), (300, 3)], tail=100)
    b = record(1, sent=300, chunks=[(400, 2), (1000, 4)], tail=100)
    rates = whole_window([a, b], {})
    assert rates.window_s == pytest.approx(1.0)
    assert rates.counted_output_tokens == 10
    assert rates.output_tokens_per_s == pytest.approx(10.0)
    assert rates.total_tokens_per_s == pytest.approx(30.0)
    assert rates.requests_per_s == pytest.approx(2.0)
    assert whole_window([], {}) == Window()


def test_steady_window_leaves_out_ramp_and_drain():
    records = [
        record(0, slot=0, sent=0, chunks=[(100, 1), (200, 1)]),
        record(1, slot=1, sent=0, chunks=[(150, 1), (400, 1)], tail=10),  # opens the window at 150
        record(2, slot=0, sent=200, chunks=[(300, 1), (350, 2), (600, 1)], tail=50),
        record(
            3, slot=1, sent=410, chunks=[(500, 1), (550, 1)], tail=100
        ),  # slot 1 runs out at 650, as slot 0 does
    ]
    rates = steady_window(records, records, slots=2)
    assert rates.window_s == pytest.approx(0.500)
    # Arrivals in (150, 650]: 200; 400; 300, 350 x2, 600; 500, 550.
    assert rates.counted_output_tokens == 8
    assert rates.output_tokens_per_s == pytest.approx(16.0)
    # First tokens in it: requests 2 and 3. Last tokens in it: all four.
    assert rates.total_tokens_per_s == pytest.approx((8 + 20) / 0.5)
    assert rates.requests_per_s == pytest.approx(8.0)


def test_steady_window_closes_when_the_first_slot_runs_out():
    records = [
        record(0, slot=0, chunks=[(100, 1), (300, 1)]),
        record(1, slot=1, chunks=[(100, 1), (200, 1), (900, 1)]),
    ]
    rates = steady_window(records, records, slots=2)
    assert rates.window_s == pytest.approx(0.200) and rates.counted_output_tokens == 2


def test_no_steady_window():
    one = record(0, slot=0, chunks=[(100, 1), (300, 1)])
    late = record(1, slot=1, chunks=[(400, 1), (500, 1)])
    silent = record(1, slot=1, chunks=[], outcome="timeout")
    assert steady_window([one, late], [one, late], 2) == Window()
    assert steady_window([one, silent], [one], 2) == Window()
    assert steady_window([one], [one], 2) == Window()
    assert steady_window([], [], 2) == Window()
    failed = record(0, slot=0, chunks=[(100, 1), (300, 1)], outcome="short")
    assert steady_window([failed], [], 1) == Window()  # not a rate of 0


def test_failed_requests_hold_the_window_but_give_no_tokens():
    good = record(0, slot=0, chunks=[(100, 1), (500, 1)])
    bad = record(1, slot=1, chunks=[(100, 1), (200, 5), (400, 5)], outcome="short")
    rates = steady_window([good, bad], [good], 2)
    assert rates.window_s == pytest.approx(0.300) and rates.counted_output_tokens == 0


def test_mean_in_flight():
    assert mean_in_flight([record(0, 0, 0, [(100, 1)]), record(1, 1, 0, [(100, 1)])]) == pytest.approx(2.0)
    assert mean_in_flight([record(0, 0, 0, [(100, 1)]), record(1, 0, 100, [(200, 1)])]) == pytest.approx(1.0)
    assert mean_in_flight([]) is None


def test_latency_counts_from_when_the_request_was_due():
    late = record(due=100, sent=400, chunks=[(450, 1), (500, 1)])
    assert late.ttft_s == pytest.approx(0.350) and late.e2e_s == pytest.approx(0.400)
    assert late.tpot_s == pytest.approx(0.050) and late.send_delay_s == pytest.approx(0.300)
    late.released_ns = 390 * MS  # a cap held it back; the client itself was 10 ms late
    assert late.ttft_s == pytest.approx(0.350) and late.send_delay_s == pytest.approx(0.010)


def test_latencies_of_a_window_are_of_the_requests_due_in_it():
    """A long request due in the window counts though it ends after it, a short one due before does not."""
    records = [
        record(0, sent=0, chunks=[(50, 1), (150, 1)]),
        record(1, sent=100, chunks=[(120, 1), (900, 1)]),
        record(2, sent=210, chunks=[(250, 1), (260, 1)]),
    ]
    window = window_between(records, 100 * MS, 200 * MS, {})
    assert window.e2e_s.count == 1 and window.e2e_s.p50 == pytest.approx(0.800)
    assert window.counted_output_tokens == 2 and window.requests_per_s == pytest.approx(10)
    assert window_between(records, 200 * MS, 200 * MS, {}) == window_between(records, None, None, {}) == Window()


@pytest.mark.parametrize(
    ("slo", "expected"),
    [
        ({"ttft": 0.05}, True), ({"ttft": 0.049}, False), ({"tpot": 0.04}, True), ({"tpot": 0.039}, False),
        ({"itl": 0.06}, True), ({"itl": 0.059}, False), ({"e2e": 0.13}, True), ({"e2e": 0.129}, False),
        ({"ttft": 1.0, "e2e": 0.129}, False), ({}, True),
    ],
)  # fmt: skip
def test_limits_are_met_or_not(slo, expected):
    assert meets(record(chunks=[(50, 1), (70, 1), (130, 1)]), slo) is expected
    assert not meets(record(chunks=[(50, 1), (70, 1), (130, 1)], outcome="short"), slo)


def test_a_latency_that_does_not_exist_breaks_no_limit():
    assert longest_itl_s(record(chunks=[(10, 5)])) is None
    assert meets(record(chunks=[(10, 5)]), {"tpot": 0.001, "itl": 0.001, "ttft": 0.011})


def test_goodput_is_of_all_requests_but_aborted_ones():
    quick, slow = record(0, chunks=[(10, 1), (100, 1)]), record(1, chunks=[(60, 1), (1000, 1)])
    failed, aborted = record(2, outcome="timeout"), record(3, outcome="aborted")
    window = whole_window([quick, slow, failed, aborted], {"ttft": 0.05})
    assert window.goodput_share == pytest.approx(1 / 3) and window.goodput_requests_per_s == pytest.approx(1.0)
    silent = whole_window([quick, slow], {})
    assert silent.goodput_share is None and silent.goodput_requests_per_s is None
