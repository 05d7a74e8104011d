"""Windows within one load: what is switched when, and what is compared with what."""

from __future__ import annotations

import pytest

from bench.load import engine_watch
from bench.load.receive import Receiver
from tests.benchmarks import toggled
from tests.benchmarks.load import Load, drive
from tests.benchmarks.toggled import Windows, our_reader_switched
from tests.fakes.sim_server import SimServer


class Clock:
    """Stands for `time`: tokens take as long as they are told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(toggled, "time", clock)
    return clock


def run(clock: Clock, windows: Windows, tokens: int, seconds_per_token) -> None:
    for token in range(tokens):
        clock.now_s += seconds_per_token(token, windows.on)
        windows.took(1)


def test_what_is_switched_makes_the_difference_and_a_drift_does_not(clock):
    windows = Windows(tokens=10, skip=20, last=900)
    run(clock, windows, 1000, lambda token, on: (1.0 + 0.02 * on) * (1 + token / 1000))
    pairs = windows.pairs()
    assert len(pairs) == 22  # 88 windows between token 20 and token 900
    for on, off in pairs:
        assert on / off == pytest.approx(1 / 1.02, rel=1e-4)


def test_the_order_is_mirrored_and_the_ends_are_left_alone(clock):
    switched = []
    windows = Windows(tokens=5, skip=3, last=48, switch=switched.append)
    run(clock, windows, 100, lambda token, on: 1.0)
    assert switched == [True, False, False, True, False, True, True, False, True, True]
    assert windows.on and len(windows.pairs()) == 2
    assert windows.on_s == 5 * (2 + 2 + 1)


def test_a_load_too_short_for_a_group_gives_none(clock):
    windows = Windows(tokens=10, skip=0, last=35)
    run(clock, windows, 50, lambda token, on: 1.0)
    assert windows.pairs() == [] and windows.on


def test_our_client_rests_while_the_leanest_reads_and_finds_every_answer_whole():
    before = Receiver._take, engine_watch._get
    load = Load(concurrency=4, requests=4, input_tokens=8, output_tokens=120, warmup=0)
    windows = Windows(tokens=16, skip=40, last=4 * 110)
    with SimServer(ttft_s=0.02, itl_s=0.005) as sim, our_reader_switched(windows):
        measured = drive(sim.base_url, "sim", load, 0, 1000)
    measured.check(load, "ours")
    assert len(windows.pairs()) == 6 and windows.on
    assert (Receiver._take, engine_watch._get) == before
