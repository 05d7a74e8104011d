"""Energy, clocks and processor time over exactly the measured stretch."""

import pytest

from bench.telemetry.samples import Sample
from bench.telemetry.window import load_window

START = 1_000_000.0


def _timeline(**readings):
    """Ten seconds at 4 Hz; each reading is a function of the seconds since START."""
    return [
        Sample(i / 4, "load:x", START + i / 4, **{name: read(i / 4) for name, read in readings.items()})
        for i in range(-8, 41)
    ]


def test_counters_are_taken_at_the_ends_of_the_window_not_at_the_next_sample():
    # 100 W before the third second, 300 W from then on.
    samples = _timeline(energy_j=lambda t: 100 * min(t, 3) + 300 * max(t - 3, 0) + 5000, device_index=lambda _: 0)
    window = load_window(samples, START + 3.1, 2.0)
    assert window.energy_j == pytest.approx(600) and window.energy_source == "counter"
    assert window.power_mean_w == pytest.approx(300)
    assert load_window(samples, START + 2, 2.0).energy_j == pytest.approx(400)
    assert window.duration_s == 2.0 and window.samples == 8


def test_power_is_integrated_where_there_is_no_counter():
    samples = _timeline(power_w=lambda t: 100.0 + 10 * t, device_index=lambda _: 0)
    window = load_window(samples, START + 1.05, 3.0)
    assert window.energy_j == pytest.approx(3 * (100 + 10 * (1.05 + 4.05) / 2))
    assert window.energy_source == "power_integral"


def test_a_counter_that_did_not_step_within_the_window_is_not_believed():
    steps = {"power_w": lambda _: 100.0, "energy_j": lambda t: 5000.0 if t < 6 else 9000.0, "device_index": lambda _: 0}
    samples = _timeline(**steps)
    window = load_window(samples, START + 1, 2.0)
    assert (window.energy_j, window.energy_source) == (pytest.approx(200), "power_integral")
    idle = load_window(_timeline(power_w=lambda _: 0.0, energy_j=lambda _: 5.0, device_index=lambda _: 0), START, 2.0)
    assert (idle.energy_j, idle.energy_source) == (0, "counter")


def test_two_gpus_add_up_and_their_extremes_count():
    one = _timeline(energy_j=lambda t: 100 * t, sm_clock_mhz=lambda _: 1980, device_index=lambda _: 0)
    two = _timeline(energy_j=lambda t: 50 * t, sm_clock_mhz=lambda t: 1500 if 2 < t < 3 else 1980,
                    throttle_reasons=lambda t: 0x20 if 2 < t < 3 else 0, tree_cpu_s=lambda t: t,
                    temperature_c=lambda _: 66, device_index=lambda _: 1)  # fmt: skip
    for row in one:
        row.tree_cpu_s = row.t_s
    samples = [row for pair in zip(one, two, strict=True) for row in pair]
    window = load_window(samples, START + 1, 4.0)
    assert window.energy_j == pytest.approx(600) and window.power_mean_w == pytest.approx(150)
    assert window.sm_clock_min_mhz == 1500 and 1900 < window.sm_clock_mean_mhz < 1980
    assert window.throttle_names == ("sw_thermal_slowdown",) and window.temperature_peak_c == 66
    assert window.engine_cpu_s == pytest.approx(4.0), "the host's column repeats on each device and counts once"
    assert load_window(samples, START + 4, 4.0).throttle_names == ()


def test_a_host_without_gpu_has_processor_time_alone():
    window = load_window(_timeline(tree_cpu_s=lambda t: 1.5 * t), START + 0.1, 5.0)
    assert window.engine_cpu_s == pytest.approx(7.5)
    assert (window.energy_j, window.energy_source, window.power_mean_w, window.throttle_names) == (None,) * 4


def test_what_the_samples_do_not_span_is_unknown_and_not_guessed():
    samples = _timeline(energy_j=lambda t: 100 * t, power_w=lambda _: 100.0, tree_cpu_s=lambda t: t)
    window = load_window(samples, START + 8, 10.0)
    assert (window.energy_j, window.engine_cpu_s) == (None, None) and window.samples > 0
    assert load_window([], START, 1.0).samples == 0
    fallen = _timeline(energy_j=lambda t: 100 * (t + 3) if t < 2 else t)
    assert load_window(fallen, START + 1, 3.0).energy_j is None, "the driver was reloaded in between"


def test_telemetry_that_is_off_answers_everything_and_loses_nothing(tmp_path):
    from bench.rows import telemetry_columns
    from bench.telemetry.off import NoSampler

    with NoSampler(tmp_path) as sampler:
        sampler.mark("load:x")
        sampler.watch(1, 1)
        assert sampler.latest() is None and not sampler.path.exists()
        summary = sampler.stop()
    assert summary.complete and summary.errors == [] and summary.phases == {}
    columns = telemetry_columns(summary)
    told = {name: value for name, value in columns.items() if value is not None}
    assert told == {"samples": 0}, told
