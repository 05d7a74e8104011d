"""Peaks, means and energy over any stretch of a timeline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.telemetry import throttle
from bench.telemetry.samples import Sample


@dataclass(kw_only=True)
class PhasePeaks:
    """Figures over a stretch of the timeline; None where nothing was read. Units are in the names.

    Over several devices: memory peaks are those of the fullest device (`device_memory_peak_index`), since
    every tensor-parallel rank must fit its own; power and energy are sums; clocks and temperatures are
    extremes.

    energy_source: "counter" (difference of the driver's counter) or "power_integral" (trapezoids over
    power_w).
    throttle_names: every reason seen. tree_cpu_s: CPU seconds the tree used in this stretch.
    cgroup_peak_bytes: in a cgroup of the engine's own the kernel's peak where it rose in this stretch, else
    the
        largest sample; includes page cache.
    """

    phase: str = "total"
    samples: int = 0
    duration_s: float = 0.0
    device_memory_peak_bytes: int | None = None
    device_memory_peak_index: int | None = None
    process_memory_peak_bytes: int | None = None
    process_memory_hidden_reason: str | None = None
    foreign_memory_peak_bytes: int | None = None
    power_mean_w: float | None = None
    power_peak_w: float | None = None
    energy_j: float | None = None
    energy_source: str | None = None
    sm_clock_min_mhz: int | None = None
    sm_clock_median_mhz: float | None = None
    mem_clock_median_mhz: float | None = None
    temperature_peak_c: int | None = None
    gpu_utilization_mean_pct: float | None = None
    throttle_names: list[str] = field(default_factory=list)
    tree_rss_peak_bytes: int | None = None
    tree_pss_peak_bytes: int | None = None
    tree_uss_peak_bytes: int | None = None
    tree_anon_peak_bytes: int | None = None
    tree_processes_peak: int | None = None
    tree_cpu_s: float | None = None
    cgroup_peak_bytes: int | None = None
    cgroup_scope: str | None = None


def largest(values: Iterable[Any]) -> Any:
    """The largest value that is not None; None without any."""
    return max((value for value in values if value is not None), default=None)


def median(values: Iterable[Any]) -> float | None:
    """The median of the values that are not None; None without any."""
    known = [value for value in values if value is not None]
    return float(statistics.median(known)) if known else None


def _stretches(rows: Sequence[Sample], phases: Collection[str] | None) -> list[list[Sample]]:
    """Runs of successive rows of one device within `phases`; energy and time exist only inside a run."""
    runs: list[list[Sample]] = []
    inside = False
    for row in rows:
        if phases is not None and row.phase not in phases:
            inside = False
            continue
        if not inside:
            runs.append([])
        runs[-1].append(row)
        inside = True
    return runs


def _counter_energy_j(runs: list[list[Sample]]) -> float | None:
    total = 0.0
    measured = False
    for run in runs:
        readings = [row.energy_j for row in run if row.energy_j is not None]
        if len(readings) >= 2:
            measured = True
            total += readings[-1] - readings[0]
            if readings[-1] < readings[0]:  # the driver was reloaded
                return None
    return total if measured else None


def _integral(
    runs: list[list[Sample]], value: Callable[[Sample], float | None]
) -> tuple[float, float] | None:
    """(trapezoid integral, seconds covered) of a reading over the runs; None without two readings."""
    area = covered_s = 0.0
    for run in runs:
        known = [(row.t_s, reading) for row in run if (reading := value(row)) is not None]
        for (start_s, first), (end_s, second) in zip(known, known[1:], strict=False):
            area += (end_s - start_s) * (first + second) / 2
            covered_s += end_s - start_s
    return (area, covered_s) if covered_s > 0 else None


def _delta(runs: list[list[Sample]], value: Callable[[Sample], float | None]) -> float | None:
    """What a running counter gained within the runs; all of it where it began to be read inside a run."""
    gains = []
    for run in runs:
        known = [reading for row in run if (reading := value(row)) is not None]
        if known:
            gains.append(known[-1] - (known[0] if value(run[0]) is not None else 0))
    return sum(gains) if gains else None


def _cgroup_peak(runs: list[list[Sample]]) -> tuple[int | None, str | None]:
    rows = [row for run in runs for row in run if row.cgroup_bytes is not None]
    own = [row for row in rows if row.cgroup_scope == "own"]
    peak = largest(row.cgroup_bytes for row in own or rows)
    scope = ("own" if own else "shared") if rows else None
    for run in runs:
        kernel = [row.cgroup_peak_bytes for row in run if row.cgroup_peak_bytes is not None]
        # The watch may begin within this run: then the kernel's whole peak belongs to it.
        began_here = bool(kernel) and run[0].cgroup_peak_bytes is None
        if kernel and (began_here or kernel[-1] > kernel[0]):
            peak = largest((peak, kernel[-1]))
    return peak, scope


def of_one_device(rows: Sequence[Sample], phases: Collection[str] | None, name: str) -> PhasePeaks:
    """Figures over the rows of one device (or of a host without one) whose phase is in `phases`."""
    runs = _stretches(rows, phases)
    inside = [row for run in runs for row in run]
    power = _integral(runs, lambda row: row.power_w)
    readings = [row.power_w for row in inside if row.power_w is not None]
    energy_j = _counter_energy_j(runs)
    source = None if energy_j is None else "counter"
    if energy_j is None and power is not None:
        energy_j, source = power[0], "power_integral"
    busy = [row.gpu_utilization_pct for row in inside if row.gpu_utilization_pct is not None]
    mask = 0
    for row in inside:
        mask |= row.throttle_reasons or 0
    process_peak = largest(row.process_memory_used_bytes for row in inside)
    reasons = [row.process_memory_hidden_reason for row in inside if row.process_memory_hidden_reason]
    cgroup_peak, cgroup_scope = _cgroup_peak(runs)
    memory_peak = largest(row.device_memory_used_bytes for row in inside)
    return PhasePeaks(
        phase=name,
        samples=len(inside),
        duration_s=sum(run[-1].t_s - run[0].t_s for run in runs),
        device_memory_peak_bytes=memory_peak,
        device_memory_peak_index=inside[0].device_index if inside and memory_peak is not None else None,
        process_memory_peak_bytes=process_peak,
        process_memory_hidden_reason=reasons[-1] if reasons and process_peak is None else None,
        foreign_memory_peak_bytes=largest(row.foreign_memory_used_bytes for row in inside),
        power_mean_w=power[0] / power[1] if power else (readings[0] if readings else None),
        power_peak_w=largest(readings),
        energy_j=energy_j,
        energy_source=source,
        sm_clock_min_mhz=min(
            (row.sm_clock_mhz for row in inside if row.sm_clock_mhz is not None), default=None
        ),
        sm_clock_median_mhz=median(row.sm_clock_mhz for row in inside),
        mem_clock_median_mhz=median(row.mem_clock_mhz for row in inside),
        temperature_peak_c=largest(row.temperature_c for row in inside),
        gpu_utilization_mean_pct=sum(busy) / len(busy) if busy else None,
        throttle_names=throttle.names(mask),
        tree_rss_peak_bytes=largest(row.tree_rss_bytes for row in inside),
        tree_pss_peak_bytes=largest(row.tree_pss_bytes for row in inside),
        tree_uss_peak_bytes=largest(row.tree_uss_bytes for row in inside),
        tree_anon_peak_bytes=largest(row.tree_anon_bytes for row in inside),
        tree_processes_peak=largest(row.tree_processes for row in inside),
        tree_cpu_s=_delta(runs, lambda row: row.tree_cpu_s),
        cgroup_peak_bytes=cgroup_peak,
        cgroup_scope=cgroup_scope,
    )


def by_device(samples: Iterable[Sample]) -> dict[int | None, list[Sample]]:
    """Rows by device index, in order; the key is None on a host without a GPU."""
    rows: dict[int | None, list[Sample]] = {}
    for sample in samples:
        rows.setdefault(sample.device_index, []).append(sample)
    return rows


def _sum_if_all(values: list[float | None]) -> float | None:
    return None if not values or None in values else math.fsum(value for value in values if value is not None)


def peaks(
    samples: Sequence[Sample], phases: Collection[str] | None = None, name: str | None = None
) -> PhasePeaks:
    """Figures over the samples whose phase is one of `phases` (all if None), in the order in which they were
    taken.
    """
    name = name or ("total" if phases is None else "+".join(sorted(phases)))
    parts = [of_one_device(rows, phases, name) for rows in by_device(samples).values()]
    if not parts:
        return PhasePeaks(phase=name)
    fullest = max(parts, key=lambda part: part.device_memory_peak_bytes or -1)
    if len(parts) == 1:
        return fullest
    together: dict[float, list[float]] = {}
    for sample in samples:
        if sample.power_w is not None and (phases is None or sample.phase in phases) and not sample.at_mark:
            together.setdefault(sample.t_s, []).append(sample.power_w)
    energy_j = _sum_if_all([part.energy_j for part in parts])
    counted = all(part.energy_source == "counter" for part in parts)
    clocks = [part.sm_clock_min_mhz for part in parts if part.sm_clock_min_mhz is not None]
    inside = [row for row in samples if phases is None or row.phase in phases]
    busy = [part.gpu_utilization_mean_pct for part in parts if part.gpu_utilization_mean_pct is not None]
    seen = {name for part in parts for name in part.throttle_names}
    process_peak = largest(part.process_memory_peak_bytes for part in parts)
    reason = largest(part.process_memory_hidden_reason for part in parts)
    return PhasePeaks(
        **(
            vars(fullest)
            | {
                "process_memory_peak_bytes": process_peak,
                "process_memory_hidden_reason": reason if process_peak is None else None,
                "foreign_memory_peak_bytes": largest(part.foreign_memory_peak_bytes for part in parts),
                "power_mean_w": _sum_if_all([part.power_mean_w for part in parts]),
                "power_peak_w": max(map(sum, together.values()), default=None),
                "energy_j": energy_j,
                "energy_source": None if energy_j is None else ("counter" if counted else "power_integral"),
                "sm_clock_min_mhz": min(clocks, default=None),
                "sm_clock_median_mhz": median(row.sm_clock_mhz for row in inside),
                "mem_clock_median_mhz": median(row.mem_clock_mhz for row in inside),
                "temperature_peak_c": largest(part.temperature_peak_c for part in parts),
                "gpu_utilization_mean_pct": sum(busy) / len(busy) if busy else None,
                "throttle_names": [name for name in throttle.ALL if name in seen]
                + sorted(seen - set(throttle.ALL)),
            }
        )
    )


def between(samples: Sequence[Sample], first_phase: str, last_phase: str) -> PhasePeaks:
    """Figures from the first mark of `first_phase` up to the next mark of `last_phase` (or the end), whatever
    phases
    lie between: `between(samples, "ready", "stop")` is the engine's service life."""
    start = next((i for i, row in enumerate(samples) if row.phase == first_phase), len(samples))
    end = next((i for i in range(start, len(samples)) if samples[i].phase == last_phase), len(samples))
    return peaks(samples[start:end], name=f"{first_phase}..{last_phase}")
