"""Arithmetic of the summary, on timelines small enough to check by hand."""

from __future__ import annotations

import json

import pytest

from bench.telemetry.peaks import between, peaks
from bench.telemetry.samples import Sample, SampleLog
from bench.telemetry.summary import summarize


def timeline(*rows):
    return [Sample(t_s, phase, **values) for t_s, phase, values in rows]


def test_memory_peaks_by_phase_and_in_all():
    rows = timeline(
        (0.0, "idle", {"device_index": 0, "device_memory_used_bytes": 10}),
        (1.0, "idle", {"device_index": 0, "device_memory_used_bytes": 14}),
        (2.0, "idle", {"device_index": 0, "device_memory_used_bytes": 12}),
        (3.0, "load", {"device_index": 0, "device_memory_used_bytes": 90, "process_memory_used_bytes": 70}),
        (4.0, "load", {"device_index": 0, "device_memory_used_bytes": 50}),
    )
    summary = summarize(SampleLog(samples=rows))
    assert summary.device_memory_baseline_bytes == 12
    assert summary.device_memory_peak_bytes == 90
    assert summary.process_memory_peak_bytes == 70
    assert summary.phases["idle"].device_memory_peak_bytes == 14
    assert summary.phases["load"].device_memory_peak_bytes == 90
    assert summary.devices[0]["total"].device_memory_peak_bytes == 90


def test_without_an_idle_phase_there_is_no_baseline():
    rows = timeline((0.0, "start", {"device_index": 0, "device_memory_used_bytes": 10}))
    assert summarize(SampleLog(samples=rows)).device_memory_baseline_bytes is None


def test_energy_is_the_counters_difference_within_each_run_of_the_phase():
    rows = timeline(
        (0.0, "load", {"energy_j": 100.0, "power_w": 50.0}),
        (1.0, "load", {"energy_j": 160.0, "power_w": 50.0}),
        (2.0, "pause", {"energy_j": 1000.0, "power_w": 10.0}),
        (3.0, "load", {"energy_j": 2000.0, "power_w": 50.0}),
        (4.0, "load", {"energy_j": 2070.0, "power_w": 70.0}),
    )
    load = peaks(rows, {"load"})
    assert (load.energy_j, load.energy_source) == (130.0, "counter")
    assert load.duration_s == 2.0
    assert load.power_mean_w == pytest.approx((50.0 + 60.0) / 2)
    assert load.power_peak_w == 70.0


def test_without_a_counter_energy_is_the_integral_of_power_over_uneven_steps():
    rows = timeline(
        (0.0, "a", {"power_w": 100.0}), (1.0, "a", {"power_w": 200.0}), (4.0, "a", {"power_w": 200.0})
    )
    figures = peaks(rows)
    assert (figures.energy_j, figures.energy_source) == (750.0, "power_integral")
    assert figures.power_mean_w == pytest.approx(187.5)


def test_a_counter_that_went_back_is_not_used():
    rows = timeline(
        (0.0, "a", {"energy_j": 500.0, "power_w": 10.0}), (2.0, "a", {"energy_j": 3.0, "power_w": 10.0})
    )
    assert (peaks(rows).energy_j, peaks(rows).energy_source) == (20.0, "power_integral")


def test_two_devices_give_the_fullest_ones_memory_and_the_sum_of_power():
    rows = []
    for tick, phase in enumerate(["idle", "load", "load"]):
        for index, used in ((0, 40 + tick), (1, 60 + tick)):
            rows.append(
                Sample(
                    float(tick), phase, device_index=index, device_memory_used_bytes=used,
                    power_w=100.0 * (index + 1), energy_j=1000.0 * tick, sm_clock_mhz=1500 + index,
                    temperature_c=50 - index, tree_cpu_s=tick * 2.0,
                    throttle_reasons=4 if index else 0,
                )
            )  # fmt: skip
    summary = summarize(SampleLog(samples=rows))
    assert (summary.device_memory_peak_bytes, summary.device_memory_peak_index) == (62, 1)
    assert summary.device_memory_baseline_bytes == 60
    assert (summary.power_mean_w, summary.power_peak_w) == (300.0, 300.0)
    assert (summary.energy_j, summary.energy_source) == (4000.0, "counter")
    assert (summary.sm_clock_min_mhz, summary.sm_clock_median_mhz) == (1500, 1500.5)
    assert summary.temperature_peak_c == 50
    assert summary.throttle_names == ["sw_power_cap"]
    assert summary.tree_cpu_s == 4.0  # of the tree, not once per device
    assert summary.devices[0]["load"].device_memory_peak_bytes == 42


def test_throttling_counts_under_load_only():
    rows = timeline(
        (0.0, "idle", {"throttle_reasons": 0x8}),
        (1.0, "launch", {"throttle_reasons": 0x40}),
        (2.0, "load c=8", {"throttle_reasons": 0x1 | 0x4}),
        (3.0, "stop", {"throttle_reasons": 0x20}),
    )
    summary = summarize(SampleLog(samples=rows))
    assert (summary.throttle_names, summary.throttled) == (["gpu_idle", "sw_power_cap"], True)
    assert summary.phases["launch"].throttle_names == ["hw_thermal_slowdown"]
    assert summarize(SampleLog(samples=rows[:1])).throttled is False
    assert summarize(SampleLog(samples=timeline((0.0, "load", {})))).throttled is None


def test_between_covers_every_phase_in_the_middle_and_no_other():
    rows = timeline(
        (0.0, "launch", {"tree_pss_bytes": 99}),
        (1.0, "ready", {"tree_pss_bytes": 10}),
        (2.0, "load", {"tree_pss_bytes": 30}),
        (3.0, "stop", {"tree_pss_bytes": 50}),
        (4.0, "load", {"tree_pss_bytes": 70}),
    )
    assert between(rows, "ready", "stop").tree_pss_peak_bytes == 30
    assert between(rows, "ready", "never").tree_pss_peak_bytes == 70
    assert between(rows, "never", "stop").samples == 0


def test_cpu_time_before_the_first_look_belongs_to_the_phase_of_the_launch():
    rows = timeline(
        (0.0, "launch", {}),
        (1.0, "launch", {"tree_cpu_s": 3.0}),
        (2.0, "launch", {"tree_cpu_s": 5.0}),
        (2.0, "load", {"tree_cpu_s": 5.0}),
        (3.0, "load", {"tree_cpu_s": 9.0}),
    )
    assert peaks(rows, {"launch"}).tree_cpu_s == 5.0
    assert peaks(rows, {"load"}).tree_cpu_s == 4.0
    assert peaks(rows).tree_cpu_s == 9.0


def test_a_cgroup_of_ones_own_replaces_the_shared_one_and_the_kernels_peak_the_samples():
    own = {"cgroup_scope": "own"}
    rows = timeline(
        (0.0, "idle", {"cgroup_bytes": 900, "cgroup_scope": "shared"}),
        (1.0, "launch", {"cgroup_bytes": 100, "cgroup_peak_bytes": 300, **own}),
        (2.0, "load", {"cgroup_bytes": 200, "cgroup_peak_bytes": 300, **own}),
        (3.0, "load", {"cgroup_bytes": 150, "cgroup_peak_bytes": 300, **own}),
    )
    total = peaks(rows)
    assert (total.cgroup_peak_bytes, total.cgroup_scope) == (300, "own")
    assert peaks(rows, {"load"}).cgroup_peak_bytes == 200  # the kernel's peak is from before
    assert peaks(rows, {"idle"}).cgroup_scope == "shared"


def test_a_hidden_process_has_a_reason_only_while_it_was_never_seen():
    hidden = {"process_memory_hidden_reason": "pid_namespace", "device_index": 0}
    rows = timeline((0.0, "a", hidden), (1.0, "a", hidden))
    assert summarize(SampleLog(samples=rows)).process_memory_hidden_reason == "pid_namespace"
    seen = rows + timeline((2.0, "a", {"process_memory_used_bytes": 5, "device_index": 0}))
    assert summarize(SampleLog(samples=seen)).process_memory_hidden_reason is None


def test_the_schedule_is_judged_by_ticks_not_by_marks():
    rows = timeline(*[(n / 10, "a", {}) for n in range(11)])
    rows.insert(3, Sample(0.21, "a", at_mark=True))
    summary = summarize(SampleLog(samples=rows, stats={"t_s": 2.0, "cpu_s": 0.09, "start_cpu_s": 0.05}))
    assert summary.achieved_hz == pytest.approx(10.0)
    assert summary.interval_p99_s == pytest.approx(0.1)
    assert summary.sampler_cpu_share == pytest.approx(0.02)


def test_an_empty_log_and_its_json():
    summary = summarize(SampleLog(), ["the sampler process ended by itself"])
    assert json.loads(json.dumps(summary.to_json()))["errors"] == ["the sampler process ended by itself"]
    assert (summary.samples, summary.complete, summary.device_memory_peak_bytes) == (0, False, None)
