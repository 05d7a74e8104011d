"""Whether an open load piles up, on queues whose answer is known."""

from __future__ import annotations

import random
from array import array

import pytest

from bench.load.growth import latency_growth, served_share
from bench.load.records import RequestRecord
from bench.load.steady import open_loop_window

S = 1_000_000_000


def request(index: int, due_s: float, first_s: float, tokens: int, itl_s: float) -> RequestRecord:
    arrivals = array("q", [round((first_s + step * itl_s) * S) for step in range(tokens)])
    due_ns = round(due_s * S)
    return RequestRecord(
        index, index, "ok", 200, "", due_ns, due_ns, arrivals[0], arrivals[-1], arrivals[-1], 8, tokens,
        chunk_ns=arrivals, chunk_tokens=array("i", [1] * tokens),
    )  # fmt: skip


def served(rate: float, capacity: float, seconds: float, seed: int, servers: int = 4) -> list[RequestRecord]:
    """Poisson arrivals at a queue that completes ``capacity`` requests/s, with outputs of very unequal length."""
    generator = random.Random(seed)
    free, now, found = [0.0] * servers, 0.0, []
    while (now := now + generator.expovariate(rate)) < seconds:
        at = free.index(min(free))
        begin_s, tokens = max(now, free[at]), generator.randrange(2, 200)
        itl_s = servers / capacity / 101  # a request has 101 tokens on average
        found.append(request(len(found), now, begin_s + itl_s, tokens, itl_s))
        free[at] = begin_s + tokens * itl_s
    return found


@pytest.mark.parametrize("rate", [1.0, 2.0, 8.0])
def test_an_engine_without_limit_serves_all_of_it_however_unequal_the_lengths(rate):
    """Completions a second said of 58 to 100 % of such trials that they broke."""
    for seed in range(30):
        generator = random.Random(seed)
        due_s = [number / rate for number in range(round(10 * rate))]
        records = [request(n, at, at + 0.05, generator.randrange(2, 500), 0.02) for n, at in enumerate(due_s)]
        assert latency_growth(records)[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("rate", "share"), [(6.0, 1.0), (15.0, 10 / 15), (20.0, 0.5)])
def test_the_share_that_is_served_follows_from_it(rate, share):
    found = [served_share(latency_growth(served(rate, 10.0, 120.0, seed))[0]) for seed in range(20)]
    assert sorted(found)[10] == pytest.approx(share, rel=0.06)


def test_a_step_time_that_grows_counts_for_all_its_tokens():
    records = [request(n, n * 0.1, n * 0.1 + 0.05, 101, 0.01 + 0.0001 * n) for n in range(200)]
    assert latency_growth(records)[0] == pytest.approx(0.1, rel=0.01)  # 100 steps, each 1 ms longer every second


def test_too_few_requests_say_nothing():
    assert latency_growth([request(n, n, n + 0.1, 3, 0.01) for n in range(7)]) is None
    assert latency_growth([request(n, 1.0, 1.1, 3, 0.01) for n in range(9)]) is None
    assert latency_growth([]) is None


@pytest.mark.parametrize(("rate", "steady"), [(5.0, 0.9), (12.0, 0.25)])
def test_an_engine_below_the_offered_rate_is_hardly_ever_called_steady(rate, steady):
    """At 1.2 times its capacity, 200 requests: the number in flight alone let one in four pass, or more."""
    found = [open_loop_window(served(rate, 10.0, 200 / rate, seed)).end_ns is not None for seed in range(40)]
    share = sum(found) / len(found)
    assert share >= steady if rate < 10 else share <= steady
