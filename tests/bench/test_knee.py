"""The knee search against systems whose knee is known exactly."""

import math
import random

import pytest

from bench.config.knee import KneeConfig
from bench.errors import BadRequest
from bench.knee import AT_LEAST, BELOW, BRACKETED, UNFINISHED, KneeSearch, judge


def run(search, holds):
    """Drive a search with `holds(value, trial)`; returns (knee, values tried)."""
    tried = []
    while (value := search.next_value()) is not None:
        assert len(tried) < 100, "the search does not end"
        search.tell(value, holds(value, len(tried)))
        tried.append(value)
    return search.knee(), tried


def mm1_p99_s(rate, service_rate):
    """99th percentile of the sojourn time of an M/M/1 queue: exponential with rate mu - lambda."""
    return math.inf if rate >= service_rate else math.log(100) / (service_rate - rate)


@pytest.mark.parametrize("high", [None, 40.0, 11.0])
@pytest.mark.parametrize("limit_s", [0.5, 2.0])
def test_the_knee_of_a_queue_is_bracketed_within_the_tolerance(limit_s, high):
    truth = 10 - math.log(100) / limit_s  # the rate at which p99 is exactly the limit
    search = KneeSearch(0.5, high, 0.05, 30)
    knee, tried = run(search, lambda rate, _: mm1_p99_s(rate, 10) <= limit_s)
    assert knee.outcome == BRACKETED
    assert knee.highest_met <= truth < knee.lowest_broken <= knee.highest_met * 1.05 * (1 + 1e-6)
    assert tried[-1] == knee.highest_met
    assert tried.count(knee.highest_met) == tried.count(knee.lowest_broken) == 2, "both ends are tried once more"
    assert knee.trials == len(tried) <= 16
    assert knee.notes == ()


def test_the_load_doubles_until_it_breaks_then_halves_the_ratio():
    _, tried = run(KneeSearch(1, None, 0.3, 20, confirm=False), lambda v, _: v <= 9)
    assert tried == [1, 2, 4, 8, 16, 11.31, 9.512]


def test_a_concurrency_is_a_whole_number_and_found_exactly():
    for truth in range(1, 70):
        knee, tried = run(KneeSearch(1, None, 0.001, 40, whole=True), lambda v, _: v <= truth)  # noqa: B023
        assert (knee.outcome, knee.highest_met, knee.lowest_broken) == (BRACKETED, truth, truth + 1)
        assert all(value == int(value) for value in tried)


def test_a_lowest_load_that_breaks_ends_the_search_at_once():
    knee, tried = run(KneeSearch(4, None), lambda *_: False)
    assert (knee.outcome, knee.highest_met, knee.lowest_broken, tried) == (BELOW, None, 4, [4, 4])
    assert run(KneeSearch(4, None, confirm=False), lambda *_: False)[1] == [4]
    assert "below 4 requests/s" in knee.sentence("rate")


def test_a_highest_load_that_holds_is_an_at_least():
    knee, tried = run(KneeSearch(1, 8), lambda *_: True)
    assert (knee.outcome, knee.highest_met, knee.lowest_broken, tried) == (AT_LEAST, 8, None, [1, 8, 8])
    assert knee.sentence("concurrency").startswith("at least concurrency 8")


def test_trials_that_run_out_are_said():
    knee, tried = run(KneeSearch(1, None, max_trials=4), lambda *_: True)
    assert (knee.outcome, tried) == (AT_LEAST, [1, 2, 4, 8])
    knee, _ = run(KneeSearch(1, 100, tolerance=0.01, max_trials=4), lambda v, _: v < 50)
    assert knee.outcome == UNFINISHED and "max_trials=4" in knee.notes[-1]
    assert "did not finish" in knee.sentence("rate")


def test_an_answer_that_does_not_hold_again_sends_the_search_below_it():
    seen = set()

    def once(value, _):
        """16 holds the first time only; what it breaks on is noise."""
        again = value in seen
        seen.add(value)
        return value <= 8 or value == 16 and not again

    knee, tried = run(KneeSearch(1, None, 0.1, 30, whole=True), once)
    assert (knee.outcome, knee.highest_met, knee.lowest_broken) == (BRACKETED, 8, 9)
    assert tried.count(16) == 3, "where two trials disagree, a third decides"
    assert any("unstable: 16" in note for note in knee.notes)


def test_answers_that_contradict_each_other_are_noted_and_the_lowest_failure_decides():
    search = KneeSearch(1, None)
    for value, met in ((1, True), (2, True), (4, True), (8, False), (3, False)):
        search.tell(value, met)
    knee = search.knee()
    assert (knee.highest_met, knee.lowest_broken) == (2, 3)
    assert any("not monotone: 3 broke although 4 held" in note for note in knee.notes)


def test_a_noisy_system_still_ends_and_errs_to_the_safe_side():
    for seed in range(200):
        rng = random.Random(seed)
        search = KneeSearch(1, None, 0.05, 14)
        knee, tried = run(search, lambda v, _: v * rng.lognormvariate(0, 0.1) <= 20)  # noqa: B023
        assert len(tried) <= 14
        if knee.highest_met is not None:
            held = [t for t in search.trials if t.value == knee.highest_met]
            assert sum(t.met for t in held) > len(held) / 2
            assert knee.lowest_broken is None or knee.highest_met < knee.lowest_broken


@pytest.mark.parametrize("hiccup", range(6))
def test_one_trial_that_breaks_by_chance_does_not_lower_the_knee(hiccup):
    knee, _ = run(KneeSearch(1, None, 0.1, 40, whole=True), lambda value, trial: value <= 20 and trial != hiccup)
    assert (knee.outcome, knee.highest_met, knee.lowest_broken) == (BRACKETED, 20, 21)


def test_a_load_that_cannot_be_sent_ends_the_search_with_what_it_knows():
    search = KneeSearch(1, None)
    search.tell(1, True)
    search.stopped = "2 cannot be sent: too few files"
    assert search.next_value() is None
    knee = search.knee()
    assert (knee.outcome, knee.highest_met, knee.notes[-1]) == (AT_LEAST, 1, "2 cannot be sent: too few files")


ROW = {"num_requests": 100, "completed": 100, "ttft_p99_s": 0.4, "goodput_share": 0.97, "offered_requests_per_s": 10.0,
       "latency_growth": 0.02}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "config", "reason"),
    [
        ({}, {}, ""),
        ({"completed": 99}, {}, "99 of 100 requests completed"),
        ({"completed": 99}, {"min_completed_share": 0.99}, ""),
        ({"completed": 0, "num_requests": 0}, {"min_completed_share": 0.01}, "0 of 0 requests"),
        ({"completed": 9, "failure_cause": "too_slow"}, {}, "9 of 100 requests completed (too_slow)"),
        ({"ttft_p99_s": 0.6}, {}, "ttft_p99_s 0.6 s > 0.5 s"),
        ({"ttft_p99_s": None}, {}, "ttft_p99_s was not measured"),
        ({"goodput_share": 0.8}, {"slo": {"goodput_share": 0.9}}, "goodput_share 0.800 < 0.9"),
        ({"latency_growth": 0.25}, {}, "served about 80% of the rate: latency grew 0.25 s every second"),
        ({"latency_growth": 0.25}, {"axis": "concurrency"}, ""),
        ({"latency_growth": None}, {}, ""),
        # The burst at the beginning is no part of the load that lasts.
        ({"ttft_p99_s": 0.9, "steady_requests": 75, "steady_ttft_p99_s": 0.3}, {}, ""),
        ({"steady_requests": 75, "steady_ttft_p99_s": 0.7}, {}, "ttft_p99_s 0.7 s > 0.5 s, steady state"),
        ({"ttft_p99_s": 0.9, "steady_requests": 30, "steady_ttft_p99_s": 0.3}, {}, "ttft_p99_s 0.9 s > 0.5 s"),
    ],
)
def test_a_trial_is_judged_by_every_objective(changes, config, reason):
    config = KneeConfig(**({"axis": "rate", "slo": {"ttft_p99_s": 0.5}} | config))
    met, said = judge(ROW | changes, config)
    assert met is (reason == "") and reason in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"axis": "qps"}, "knee.axis=qps: choose one of rate, concurrency"),
        ({"slo": {}}, "name at least one objective"),
        ({"slo": {"ttft_p97_s": 1.0}}, "knee.slo=ttft_p97_s"),
        ({"slo": {"ttft_p99_s": 0.0}}, "knee.slo.ttft_p99_s=0.0"),
        ({"slo": {"goodput_share": 95.0}}, "say what counts as good"),
        ({"high": 1.0}, "must be greater than low=1"),
        ({"low": 1.5}, "a concurrency is a whole number"),
        ({"low": 0.0}, "must be greater than 0"),
        ({"tolerance": 0.0}, "knee.tolerance=0.0"),
        ({"max_trials": 1}, "at least 2 trials"),
        ({"min_completed_share": 1.5}, "knee.min_completed_share=1.5"),
        ({"axis": "rate", "low": 0.5}, "needs pattern constant or poisson or gamma, not closed_loop"),
        ({"slo": {"goodput_share": 0.9}}, "say what counts as good: slo_ttft_s"),
    ],
)
def test_a_bad_knee_is_refused_with_field_value_and_fix(changes, said):
    with pytest.raises(BadRequest, match="^knee") as refused:
        KneeConfig(**({"slo": {"ttft_p99_s": 0.5}} | changes)).check("knee", "closed_loop", False)
    assert said in str(refused.value)
