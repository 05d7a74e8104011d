"""Power, clocks and processor time over exactly the stretch in which a load was measured.

A phase of the timeline is longer than that: prompts are built in it and connections opened, and the engine idles
meanwhile. So the stretch is given by wall-clock times, and running counters are interpolated to its ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.telemetry import throttle
from bench.telemetry.peaks import by_device
from bench.telemetry.samples import Sample

_MARGIN_S = 1.0  # samples this far outside serve to interpolate the counters at the ends


@dataclass(frozen=True, kw_only=True)
class LoadWindow:
    """Figures over one stretch of wall-clock time; None where nothing was read. Over several GPUs power and energy are
    sums, the lowest clock and the highest temperature are extremes, other means are means over the GPUs.

    energy_source: "counter" (the driver's, interpolated to the ends) or "power_integral" (trapezoids over power_w).
    engine_cpu_s: CPU seconds of the watched process tree, all cores. throttle_names: every reason seen; None without a
    GPU that tells. samples: instants inside the stretch.
    """

    duration_s: float
    samples: int = 0
    power_mean_w: float | None = None
    energy_j: float | None = None
    energy_source: str | None = None
    sm_clock_mean_mhz: float | None = None
    sm_clock_min_mhz: float | None = None
    temperature_peak_c: float | None = None
    gpu_utilization_mean_pct: float | None = None
    throttle_names: tuple[str, ...] | None = None
    engine_cpu_s: float | None = None


def load_window(samples: Sequence[Sample], start_unix_s: float, duration_s: float) -> LoadWindow:
    """Figures from `start_unix_s` for `duration_s` seconds (above 0)."""
    end_unix_s = start_unix_s + duration_s
    near = [
        row for row in samples
        if row.t_unix_s is not None and start_unix_s - _MARGIN_S <= row.t_unix_s <= end_unix_s + _MARGIN_S
    ]  # fmt: skip
    rows_of = list(by_device(near).values())
    inside = [row for row in near if start_unix_s <= (row.t_unix_s or 0.0) <= end_unix_s]

    def gained(rows: Sequence[Sample], value: Callable[[Sample], float | None]) -> float | None:
        points = _points(rows, value)
        ends = _at(points, start_unix_s), _at(points, end_unix_s)
        if ends[0] is None or ends[1] is None or ends[1] < ends[0]:
            return None
        return ends[1] - ends[0]

    energy = [gained(rows, lambda row: row.energy_j) for rows in rows_of]
    source: str | None = "counter"
    integrals = [_area(_points(rows, lambda row: row.power_w), start_unix_s, end_unix_s) for rows in rows_of]
    stuck = _all(energy) and not any(energy) and any(integrals)  # short windows fall between two steps of the counter
    if stuck or not _all(energy):
        energy, source = integrals, "power_integral"
    energy_j = sum(value for value in energy if value is not None) if _all(energy) else None
    power_w = energy_j / duration_s if energy_j is not None else None
    clocks = _known(inside, lambda row: row.sm_clock_mhz)
    busy = _known(inside, lambda row: row.gpu_utilization_pct)
    masks = [row.throttle_reasons for row in inside if row.throttle_reasons is not None]
    mask = 0
    for reasons in masks:
        mask |= reasons
    return LoadWindow(
        duration_s=duration_s,
        samples=len({row.t_s for row in inside}),
        power_mean_w=power_w,
        energy_j=energy_j,
        energy_source=source if energy_j is not None else None,
        sm_clock_mean_mhz=_mean(clocks),
        sm_clock_min_mhz=min(clocks, default=None),
        temperature_peak_c=max(_known(inside, lambda row: row.temperature_c), default=None),
        gpu_utilization_mean_pct=_mean(busy),
        throttle_names=tuple(throttle.names(mask)) if masks else None,
        # The host's columns repeat on the row of each device.
        engine_cpu_s=gained(rows_of[0], lambda row: row.tree_cpu_s) if rows_of else None,
    )


def _points(rows: Sequence[Sample], value: Callable[[Sample], float | None]) -> list[tuple[float, float]]:
    """(wall clock, reading) of the rows that have one, in time's order."""
    return sorted((row.t_unix_s or 0.0, reading) for row in rows if (reading := value(row)) is not None)


def _at(points: Sequence[tuple[float, float]], when_s: float) -> float | None:
    """The reading at `when_s`, on the line between its neighbours; None outside of all of them."""
    for (before_s, before), (after_s, after) in pairwise(points):
        if before_s <= when_s <= after_s:
            share = (when_s - before_s) / (after_s - before_s) if after_s > before_s else 1.0
            return before + share * (after - before)
    return None


def _area(points: Sequence[tuple[float, float]], start_s: float, end_s: float) -> float | None:
    """Integral from `start_s` to `end_s`; None where the readings do not span it."""
    first, last = _at(points, start_s), _at(points, end_s)
    if first is None or last is None:
        return None
    line = [(start_s, first), *(point for point in points if start_s < point[0] < end_s), (end_s, last)]
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(line))


def _known(rows: Sequence[Sample], value: Callable[[Sample], float | None]) -> list[float]:
    return [reading for row in rows if (reading := value(row)) is not None]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _all(values: Sequence[float | None]) -> bool:
    return bool(values) and None not in values
