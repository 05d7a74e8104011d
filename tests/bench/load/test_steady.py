"""Finding the steady part: on series whose answer is known, and on synthetic queues."""

from __future__ import annotations

import random

import numpy as np
import pytest

from bench.load.latency import window_between
from bench.load.records import RequestRecord
from bench.load.steady import BINS, RULES, closed_loop_window, drifts, in_flight, mser5, open_loop_window

S = 1_000_000_000


def request(due_s: float, end_s: float, index: int = 0) -> RequestRecord:
    due_ns, end_ns = round(due_s * S), round(end_s * S)
    first_ns = due_ns + (end_ns - due_ns) // 2
    return RequestRecord(index, index, "ok", 200, "", due_ns, due_ns, first_ns, end_ns, end_ns, 8, 2)


def queue(rate: float, service_s: float, servers: int, seconds: float, seed: int = 1) -> list[RequestRecord]:
    """Poisson arrivals at a queue of ``servers``, exponential service: first come, first served."""
    generator = random.Random(seed)
    free, now, found = [0.0] * servers, 0.0, []
    while (now := now + generator.expovariate(rate)) < seconds:
        at = free.index(min(free))
        free[at] = max(now, free[at]) + generator.expovariate(1 / service_s)
        found.append(request(now, free[at], len(found)))
    return found


def test_in_flight_is_the_time_average_in_each_bin():
    records = [request(0, 2), request(1, 4), request(3, 3.5)]
    level = in_flight(records, 0, 4 * S, 4)
    assert level == pytest.approx([1, 2, 1, 1.5])


def test_mser_cuts_a_transient_and_keeps_a_flat_series():
    generator = np.random.default_rng(1)
    noise = generator.normal(10, 1, 400)
    assert mser5(noise) < 100
    ramped = noise.copy()
    ramped[:80] = np.linspace(0, 10, 80) + generator.normal(0, 1, 80)
    assert 50 <= mser5(ramped) <= 110
    assert mser5(np.full(400, 3.0)) == 0
    overshoot = noise + 40 * np.exp(-np.arange(400) / 25)
    assert 50 <= mser5(overshoot) <= 150


def test_mser_finds_no_level_in_a_series_that_never_reaches_one():
    assert mser5(np.arange(400.0)) is None
    assert drifts(np.arange(400.0) ** 2)  # MSER alone keeps all of it: the steep end spoils every shorter remainder
    assert mser5(np.array([1.0, 2.0])) is None


def test_drift_needs_to_be_more_than_chance_and_more_than_little():
    generator = np.random.default_rng(2)
    noise = generator.normal(100, 5, 400)
    assert not drifts(noise)
    assert drifts(noise + np.linspace(0, 60, 400)) and drifts(noise - np.linspace(0, 60, 400))
    assert not drifts(noise + np.linspace(0, 10, 400))  # significant, but a tenth
    assert not drifts(np.full(400, 7.0)) and not drifts(np.zeros(400))


@pytest.mark.parametrize("seed", range(8))
def test_a_queue_below_its_capacity_is_steady_after_it_has_filled(seed):
    """30 requests/s of 1 s each on servers without end: 30 in flight, reached within a few seconds."""
    window = open_loop_window(queue(30, 1.0, 500, 60, seed))
    assert window.begin_ns is not None and not window.drifts
    assert window.begin_ns < 15 * S and window.end_ns > 59 * S


def test_the_filling_up_is_left_out():
    """Service of 5 s: nothing ends in the first seconds, and the level is only reached after them."""
    records = [request(n / 20, n / 20 + 5, n) for n in range(1200)]  # 60 s, 100 in flight from 5 s on
    window = open_loop_window(records)
    assert 3.5 * S < window.begin_ns < 8 * S
    steady = window_between(records, window.begin_ns, window.end_ns, {})
    assert steady.requests_per_s == pytest.approx(20, rel=0.02)


@pytest.mark.parametrize("rate", [11, 12, 15, 40])
def test_a_queue_above_its_capacity_is_never_steady(rate):
    """10 servers of 1 s each take 10 requests/s."""
    window = open_loop_window(queue(rate, 1.0, 10, 120))
    assert window.begin_ns is None and window.drifts


def test_too_few_requests_say_nothing():
    few = open_loop_window([request(n, n + 0.5) for n in range(49)])
    assert few.begin_ns is None and not few.drifts
    at_once = open_loop_window([request(1, 2) for _ in range(50)])
    assert at_once.begin_ns is None and not at_once.drifts
    assert open_loop_window([]).begin_ns is None


def test_the_window_does_not_choose_the_quiet_part():
    """Low load, where the rule could cut off whatever burst comes early: the rate in the window stays the rate."""
    rates = []
    for seed in range(40):
        generator, now, records = random.Random(seed), 0.0, []
        for index in range(100):
            records.append(request(now, now + 0.1, index))
            now += generator.expovariate(1.0)
        window = open_loop_window(records)
        whole = 99 / (records[-1].scheduled_ns / S)
        if window.begin_ns is not None:
            inside = sum(window.begin_ns <= record.scheduled_ns <= window.end_ns for record in records)
            rates.append(inside / ((window.end_ns - window.begin_ns) / S) / whole)
    assert len(rates) > 36 and np.mean(rates) == pytest.approx(1.0, abs=0.015)


def test_requests_that_take_no_time_are_steady():
    window = open_loop_window([request(n / 10, n / 10 + 1e-6) for n in range(400)])
    assert window.begin_ns is not None and window.begin_ns < 10 * S


def test_the_closed_loop_window_names_its_rule_and_may_be_missing():
    assert closed_loop_window([], 2).rule == "all_slots_busy" and closed_loop_window([], 2).begin_ns is None
    one = request(0, 4)
    two = request(1, 3, index=1)
    window = closed_loop_window([one, two], 2)
    assert (window.begin_ns, window.end_ns) == (2 * S, 3 * S)
    assert closed_loop_window([one, two], 3).begin_ns is None


def cut_short(due_s: float, end_s: float, index: int) -> RequestRecord:
    record = request(due_s, end_s, index)
    record.outcome = "aborted"
    return record


def test_no_window_outlasts_what_counted():
    """A run called off: of the requests cut short no token counts, so the rate is wrong from when they were due."""
    ran = [request(0, 4), request(1, 5, 1), cut_short(4, 60, 0), cut_short(5, 60, 1)]
    window = closed_loop_window(ran, 2)
    assert (window.begin_ns, window.end_ns) == (3 * S, 4 * S)
    failed = request(5, 60, 1)
    failed.outcome = "timeout"
    assert closed_loop_window([request(0, 7), request(1, 5, 1), failed], 2).end_ns == 7 * S
    assert closed_loop_window([cut_short(0, 60, 0)], 1).begin_ns is None


def test_an_open_window_ends_before_the_first_request_that_was_cut_short():
    went = [request(n / 10, n / 10 + 0.2, n) for n in range(100)]
    window = open_loop_window([*went, *(cut_short(n / 10, 30, n) for n in range(100, 150))])
    assert window.begin_ns is not None and window.end_ns == went[-1].scheduled_ns
    assert open_loop_window([*went[:40], *(cut_short(n / 10, 30, n) for n in range(40, 150))]).begin_ns is None


def test_every_rule_is_explained():
    assert {closed_loop_window([], 1).rule, open_loop_window([]).rule, "none"} == set(RULES)


def test_the_number_of_bins_is_a_whole_number_of_batches():
    assert BINS % 5 == 0
