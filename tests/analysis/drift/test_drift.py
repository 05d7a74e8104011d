"""Slopes of known series: leaks are found, flat and levelling ones are not accused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from analysis.cli import main
from analysis.drift.cli import answers, rate
from analysis.drift.slope import LEAST_BYTES_PER_S, TooShort, drift

MIB = 2**20
T = np.arange(0, 300, 0.25)
BASE = 800 * MIB


def autocorrelated(rng, size_bytes, correlation=0.98):
    """Noise that wanders, as memory does."""
    shocks = rng.normal(0, size_bytes * np.sqrt(1 - correlation**2), T.size)
    noise = np.empty(T.size)
    last = 0.0
    for place, shock in enumerate(shocks):
        last = correlation * last + shock
        noise[place] = last
    return noise


def share(verdict, make, trials=100):
    rng = np.random.default_rng(7)
    return np.mean([drift(T, make(rng)).verdict == verdict for _ in range(trials)])


def test_the_slope_of_a_clean_ramp_is_its_slope():
    found = drift(T, BASE + 0.1 * MIB * T)
    assert found.whole.value == pytest.approx(0.1 * MIB, rel=1e-6)
    assert found.late.value == pytest.approx(0.1 * MIB, rel=1e-6)
    assert found.verdict == "leak"
    assert found.growth_bytes == pytest.approx(0.1 * MIB * 300, rel=0.05)


def test_a_leak_in_wandering_noise_is_found():
    assert share("leak", lambda rng: BASE + 5 * LEAST_BYTES_PER_S * T + autocorrelated(rng, MIB / 2)) >= 0.95


def test_a_flat_series_that_wanders_is_not_accused():
    assert share("leak", lambda rng: BASE + autocorrelated(rng, MIB)) <= 0.03
    assert share("flat", lambda rng: BASE + autocorrelated(rng, MIB / 2)) >= 0.90


def test_growth_that_levels_off_is_no_leak():
    def make(rng):
        return BASE + 60 * MIB * (1 - np.exp(-T / 25)) + autocorrelated(rng, MIB / 4)

    assert share("leak", make) <= 0.02
    assert share("levels_off", make) >= 0.90


@pytest.mark.parametrize("at", [30, 150, 226, 290])
def test_one_step_of_an_allocator_is_no_leak(at):
    assert drift(T, BASE + 64 * MIB * (at < T)).verdict != "leak"


def test_a_constant_is_flat_and_shrinking_is_no_leak():
    assert drift(T, np.full(T.size, BASE)).verdict == "flat"
    assert drift(T, BASE - 0.1 * MIB * T).verdict == "flat"


def test_order_and_gaps_do_not_matter():
    y = BASE + 0.1 * MIB * T
    mixed = np.random.default_rng(0).permutation(T.size)
    assert drift(T[mixed], y[mixed]) == drift(T, y)
    with_gaps = np.where(np.arange(T.size) % 7 == 0, np.nan, y)
    assert drift(T, with_gaps).whole.value == pytest.approx(0.1 * MIB, rel=1e-6)


@pytest.mark.parametrize("count", [0, 1, 31])
def test_too_few_samples_are_said_to_be_too_few(count):
    with pytest.raises(TooShort, match=f"{count} samples"):
        drift(T[:count], np.full(count, BASE))


RATES = [("1MiB/min", MIB / 60), ("64KiB/s", 65536), ("2.5 GiB/h", 2.5 * 2**30 / 3600)]


@pytest.mark.parametrize(("text", "bytes_per_s"), RATES)
def test_rates_are_read_with_their_units(text, bytes_per_s):
    assert rate(text) == pytest.approx(bytes_per_s)


@pytest.mark.parametrize("text", ["1MB/min", "fast", "0MiB/min", "-1MiB/s", "1MiB"])
def test_a_rate_without_known_units_is_refused(text):
    with pytest.raises(ValueError, match="write a rate"):
        rate(text)


def timeline(size, phase="load:soak", **columns):
    return [{"run_id": "r", "t_s": float(t), "phase": phase, "tree_rss_bytes": size(t), **columns} for t in T]


def test_only_the_load_counts_and_each_kind_of_memory_is_answered():
    before = [row | {"t_s": row["t_s"] - 300} for row in timeline(lambda t: t * MIB, "launch")]
    pss = [row | {"tree_pss_bytes": row["tree_rss_bytes"] / 2} for row in timeline(lambda t: BASE + 0.1 * MIB * t)]
    found = {one["column"]: one for one in answers([*before, *pss])}
    assert {name: one["verdict"] for name, one in found.items()} == {"tree_rss_bytes": "leak", "tree_pss_bytes": "leak"}
    assert found["tree_rss_bytes"]["slope_bytes_per_s"] == pytest.approx(0.1 * MIB)


def test_pss_that_was_read_too_seldom_is_left_out_without_a_complaint():
    rows = timeline(lambda t: BASE)
    for row in rows[::60]:
        row["tree_pss_bytes"] = BASE
    (answer,) = answers(rows)
    assert (answer["column"], answer["verdict"]) == ("tree_rss_bytes", "flat")


def test_several_devices_are_added_up_tick_by_tick():
    rows = []
    for row in timeline(lambda t: BASE):
        first = 10 * 2**30 + 0.1 * MIB * row["t_s"]
        rows += [row | {"device_index": 0, "device_memory_used_bytes": first},
                 row | {"device_index": 1, "device_memory_used_bytes": 4 * 2**30 if row["t_s"] != 100 else None}]
    found = {one["column"]: one for one in answers(rows)}
    device = found["device_memory_used_bytes"]
    assert device["first_bytes"] == pytest.approx(14 * 2**30, rel=1e-3), "and not a series that jumps between them"
    assert device["verdict"] == "leak" and device["slope_bytes_per_s"] == pytest.approx(0.1 * MIB, rel=1e-6)
    assert device["samples"] == T.size - 1, "a tick without one of the devices is no sum"
    assert found["tree_rss_bytes"]["samples"] == T.size


def test_a_short_run_is_not_answered_unless_asked_for_and_then_names_only_more_than_a_step_of_an_allocator():
    t = np.arange(0, 12, 0.05)
    with pytest.raises(TooShort, match=r"^12 s of load cannot tell a leak from settling; hold it for 120 s or more$"):
        drift(t, BASE + 2 * MIB * t)
    assert drift(t, BASE + 0.1 * MIB * t, least_seconds=10).verdict == "flat", "1.2 MiB in all"
    found = drift(t, BASE + 2 * MIB * t, least_seconds=10)
    assert found.verdict == "leak" and found.least_bytes_per_s == pytest.approx(4 * MIB / 11.95)
    assert drift(t, BASE + 0.1 * MIB * t, LEAST_BYTES_PER_S, 10).verdict == "leak", "whoever states a rate is answered"


@pytest.mark.parametrize(("seconds", "told"), [(100, False), (113, False), (119.5, True), (130, True)])
def test_two_minutes_of_load_are_the_least(seconds, told):
    t = np.arange(0, seconds, 0.25)
    if told:
        assert drift(t, BASE + 0.2 * MIB * t).verdict == "leak"
    else:
        with pytest.raises(TooShort, match="settling"):
            drift(t, BASE + 0.2 * MIB * t)


def test_the_command_reads_a_set(tmp_path, capsys):
    from bench.record.store import ResultSet

    results = ResultSet(tmp_path / "s")
    results.create()
    samples = [{"run_id": "r", "t_s": float(t), "phase": "load:soak", "tree_rss_bytes": int(BASE + 0.1 * MIB * t)}
               for t in T]  # fmt: skip
    results.write("r", {"run_id": "r", "status": "ok"}, [], samples)
    assert main(["drift", str(tmp_path / "s")]) == 1
    assert "leak" in capsys.readouterr().out
    assert main(["drift", str(tmp_path / "s"), "--least", "60MiB/min", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["slope_bytes_per_s"] == pytest.approx(0.1 * MIB, rel=1e-3)


@pytest.mark.parametrize("words", [["nowhere"], ["{set}", "--least", "quick"], ["{set}", "--run", "nobody"]])
def test_a_bad_request_is_one_sentence(words, tmp_path, capsys):
    from bench.record.store import ResultSet

    results = ResultSet(tmp_path / "s")
    results.create()
    results.write("r", {"run_id": "r"}, [], [{"run_id": "r", "t_s": 0.0, "phase": "load:x", "tree_rss_bytes": 1}])
    assert main(["drift", *(word.format(set=tmp_path / "s") for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("tau_s", [60, 75])
def test_growth_that_slows_down_is_not_accused(tau_s):
    verdicts = []
    for seed in range(10):
        t = np.arange(0, 300, 0.5)
        noise = np.random.default_rng(seed).normal(0, 2 * 2**20, t.size)
        verdicts.append(drift(t, 3 * 2**30 + 100 * 2**20 * (1 - np.exp(-t / tau_s)) + noise).verdict)
    assert verdicts.count("leak") <= 1, verdicts


def test_a_leak_behind_a_warm_up_is_found():
    t = np.arange(0, 300, 0.5)
    noise = np.random.default_rng(0).normal(0, 2 * 2**20, t.size)
    size = 3 * 2**30 + 100 * 2**20 * (1 - np.exp(-t / 15)) + 5 * 2**20 / 60 * t + noise
    assert drift(t, size).verdict == "leak"


def test_a_swing_that_only_returns_is_not_accused():
    t = np.arange(0, 300, 0.5)
    size = 3 * 2**30 + 30 * 2**20 * np.cos(2 * np.pi * t / 300)
    assert drift(t, size).verdict != "leak"


# -- shapes: what settles is not accused, what leaks is found --------------------------------------------------


def shape(make, noise_mib=0.5, seeds=range(12), seconds=300):
    """Verdicts of a shape in MiB, with white noise, one a seed."""
    t = np.arange(0, seconds, 0.25)
    found = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        found.append(drift(t, BASE + MIB * (make(t, rng) + rng.normal(0, noise_mib, t.size))).verdict)
    return found


SETTLING = {
    "exponential, 100 s": lambda t, rng: 100 * (1 - np.exp(-t / 100)),
    "exponential, 200 s": lambda t, rng: 100 * (1 - np.exp(-t / 200)),
    "exponential, 400 s": lambda t, rng: 100 * (1 - np.exp(-t / 400)),
    "in steps of 8 MiB": lambda t, rng: 8 * np.floor(100 * (1 - np.exp(-t / 200)) / 8),
    "in steps of 20 MiB": lambda t, rng: 20 * np.floor(100 * (1 - np.exp(-t / 200)) / 20),
    "logarithm, 10 s": lambda t, rng: 20 * np.log1p(t / 10),
    "logarithm, 100 s": lambda t, rng: 100 * np.log1p(t / 100),
    "square root": lambda t, rng: 5 * np.sqrt(t),
}


@pytest.mark.parametrize("name", SETTLING)
@pytest.mark.parametrize("noise_mib", [0.0, 1.0])
def test_growth_that_still_slows_is_never_a_leak(name, noise_mib):
    assert set(shape(SETTLING[name], noise_mib)) <= {"undecided", "levels_off"}


@pytest.mark.parametrize("mib_per_minute", [1.2, 2, 5, 20])
def test_a_steady_leak_is_found_in_five_minutes(mib_per_minute):
    found = shape(lambda t, rng: mib_per_minute / 60 * t, noise_mib=0.1)
    assert set(found) == {"leak"}, found


def test_a_random_walk_is_hardly_ever_accused():
    found = shape(lambda t, rng: np.cumsum(rng.normal(0, 0.2, t.size)), noise_mib=0.0, seeds=range(60))
    assert found.count("leak") <= 1, found


def test_a_staircase_that_goes_on_is_a_leak_and_one_that_has_ended_is_not():
    def rising(t, rng):
        return 32 * np.floor((t + rng.uniform(10, 90)) / 100)

    assert set(shape(rising)) == {"leak"}, "three equal steps, 19 MiB a minute"
    # Two steps are what two allocations of a warm-up look like as well: ten minutes tell.
    assert set(shape(lambda t, rng: 32 * np.floor(t / 100))) == {"undecided"}
    assert set(shape(lambda t, rng: 32 * np.floor(t / 100), seconds=600)) == {"leak"}
    ended = shape(lambda t, rng: 32 * np.minimum(np.floor((t + 20) / 60), 3))
    assert "leak" not in ended, ended
    uneven = shape(lambda t, rng: 32 * np.minimum(np.floor((t + 20) / 60), 3) + 90.0 * (t > 250))
    assert "leak" not in uneven, uneven


def test_no_leak_while_the_whole_may_be_level():
    """It falls for a while and then climbs: the whole's interval includes zero."""
    t = np.arange(0, 300, 0.25)
    found = drift(t, BASE + MIB * np.where(t < 150, -0.4 * t, 0.41 * (t - 150) - 60 + 0.01))
    assert found.whole.low <= 0 < found.late.low and found.verdict != "leak"
