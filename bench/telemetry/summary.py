"""What a whole timeline amounts to, phase by phase, and how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.telemetry import throttle
from bench.telemetry.peaks import PhasePeaks, by_device, median, of_one_device, peaks
from bench.telemetry.samples import Sample, SampleLog

IDLE = "idle"
_NOT_LOAD = ("start", IDLE)


@dataclass(kw_only=True)
class TelemetrySummary(PhasePeaks):
    """The whole timeline, its phases, and how far to trust it.

    device_memory_baseline_bytes: median over the phase "idle" on the device of `device_memory_peak_index`.
    process_memory_hidden_reason: set only if our processes' memory was never seen on the GPU (see
        gpu_processes.py). foreign_pids: every pid seen on a device and not known to be ours;
        foreign_pids_before_launch: those of them already there in the first phases, so surely not ours.
    throttle_names: over the load phases, those whose name begins with "load" or "workload"; without any such
    phase,
        over all but "start" and "idle". throttled: one of them means that the GPU could not hold its clocks.
    missed_ticks, achieved_hz, interval_p99_s: how well the schedule was kept. sampler_cpu_s: all of
        the process's CPU time, its start included; sampler_cpu_share: what sampling took of one core, without
        it.
    pss_hz: readings of PSS per second, as achieved; while the tree's resident memory stands still it is read
        only at marks.
    gpu_lost: a device stopped answering; its last samples are those before. complete: the sampler ended in
    order.
    unavailable: readings that a device does not give, with the reason.
    """

    device_memory_baseline_bytes: int | None = None
    device_memory_source: str | None = None
    foreign_pids: list[int] = field(default_factory=list)
    foreign_pids_before_launch: list[int] = field(default_factory=list)
    throttled: bool | None = None
    missed_ticks: int | None = None
    achieved_hz: float | None = None
    interval_p99_s: float | None = None
    sampler_cpu_s: float | None = None
    sampler_cpu_share: float | None = None
    pss_hz: float | None = None
    gpu_lost: bool = False
    complete: bool = False
    nvml_reason: str | None = None
    errors: list[str] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)
    phases: dict[str, PhasePeaks] = field(default_factory=dict)
    devices: dict[int, dict[str, PhasePeaks]] = field(default_factory=dict)
    """Per device index: the same figures by phase, with "total" among them. Empty on a host without a GPU."""

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings."""
        return asdict(self)


def _intervals(samples: Sequence[Sample]) -> list[float]:
    ticks = sorted({row.t_s for row in samples if not row.at_mark})
    return [after - before for before, after in zip(ticks, ticks[1:], strict=False)]


def summarize(log: SampleLog, errors: Sequence[str] = ()) -> TelemetrySummary:
    """The summary of a sample file, complete or cut off; `errors` are sentences known from elsewhere."""
    samples = log.samples
    names = list(dict.fromkeys(row.phase for row in samples))
    phases = {name: peaks(samples, {name}, name) for name in names}
    total = peaks(samples)
    devices = {
        index: {"total": of_one_device(rows, None, "total")}
        | {name: of_one_device(rows, {name}, name) for name in names}
        for index, rows in by_device(samples).items()
        if index is not None
    }
    load = [name for name in names if name.startswith(("load", "workload"))]
    load = load or [name for name in names if name not in _NOT_LOAD]
    under_load = peaks(samples, load).throttle_names if load else []
    throttle_known = any(row.throttle_reasons is not None for row in samples)
    baseline = median(
        row.device_memory_used_bytes
        for row in samples
        if row.phase == IDLE and row.device_index == total.device_memory_peak_index
    )
    intervals = _intervals(samples)
    elapsed_s = log.stats.get("t_s")
    cpu_s = log.stats.get("cpu_s")
    sampling_cpu_s = None if cpu_s is None else cpu_s - log.stats.get("start_cpu_s", 0.0)
    problems = [*log.errors, *errors]
    if samples and not log.complete:
        problems.append(f"the sampler did not end in order; the last sample is from {samples[-1].t_s:.2f} s")
    if log.damaged_lines:
        problems.append(f"{log.damaged_lines} line(s) of the sample file are damaged and were left out")
    described = log.header.get("devices") or [{}]
    first_seen = {pid: phase for seen in log.foreign.values() for pid, phase in seen.items()}
    pss_readings = log.stats.get("readings", {}).get("pss", [0])[0]
    return TelemetrySummary(
        **(vars(total) | {"throttle_names": under_load}),
        device_memory_baseline_bytes=None if baseline is None else int(baseline),
        device_memory_source=described[0].get("memory_source"),
        foreign_pids=sorted(first_seen),
        foreign_pids_before_launch=sorted(pid for pid, phase in first_seen.items() if phase in _NOT_LOAD),
        throttled=bool(set(under_load) - throttle.BENIGN) if throttle_known else None,
        missed_ticks=log.stats.get("missed_ticks"),
        achieved_hz=len(intervals) / sum(intervals) if intervals else None,
        interval_p99_s=sorted(intervals)[math.ceil(0.99 * len(intervals)) - 1] if intervals else None,
        sampler_cpu_s=cpu_s,
        sampler_cpu_share=sampling_cpu_s / elapsed_s if sampling_cpu_s is not None and elapsed_s else None,
        pss_hz=pss_readings / elapsed_s if elapsed_s else None,
        gpu_lost=bool(log.lost_devices),
        complete=log.complete,
        nvml_reason=log.header.get("nvml_reason"),
        errors=problems,
        unavailable=log.stats.get("unavailable", {}),
        phases=phases,
        devices=devices,
    )
