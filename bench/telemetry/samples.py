"""The timeline: one `Sample` per device and tick, and the file they are kept in.

The file is JSON lines, each written whole by one append, so whatever ends the writer loses at most the line
it was writing. Line kinds: "header" (machine, start times), "sample", "error", "foreign", "stats" (once a
second, and last with "final": true). None values are left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

FILE_NAME = "samples.jsonl"


@dataclass(slots=True)
class Sample:
    """What was seen at one instant. None: not supported, not permitted, nothing to read, or not due at this
    tick (costly readings are taken less often than the cheap ones).

    t_s counts seconds of the monotonic clock from the sampler's start; phase is the caller's label.
    device_index is NVML's index, None on a machine without a GPU. With several devices, the host's columns
    repeat on each row of a tick. at_mark: taken because the phase changed; such an instant stands twice, as
    the end of the old phase and the start of the new.

    Device (bytes, W, J, MHz, °C, %): device_memory_used leaves out the driver's reservation where the driver
    says how much that is; process_memory is that of the watched tree, foreign_memory that of all other
    processes (see gpu_processes.py for what hides them); energy_j is the driver's running counter;
    throttle_reasons is its bit mask.

    Host: sums over the watched process tree in bytes, tree_cpu_s in CPU seconds. tree_rss counts shared pages
    once per process, tree_pss once in all, tree_uss those of single processes only, tree_anon those without a
    file. cgroup_bytes (scope "own" or "shared") includes page cache; cgroup_peak_bytes is the kernel's own
    peak so far.
    """

    t_s: float
    phase: str
    t_unix_s: float | None = None
    at_mark: bool = False
    device_index: int | None = None
    device_memory_used_bytes: int | None = None
    process_memory_used_bytes: int | None = None
    process_memory_hidden_reason: str | None = None
    foreign_memory_used_bytes: int | None = None
    power_w: float | None = None
    energy_j: float | None = None
    sm_clock_mhz: int | None = None
    mem_clock_mhz: int | None = None
    temperature_c: int | None = None
    throttle_reasons: int | None = None
    gpu_utilization_pct: int | None = None
    memory_utilization_pct: int | None = None
    tree_rss_bytes: int | None = None
    tree_pss_bytes: int | None = None
    tree_uss_bytes: int | None = None
    tree_anon_bytes: int | None = None
    tree_processes: int | None = None
    tree_cpu_s: float | None = None
    cgroup_bytes: int | None = None
    cgroup_scope: str | None = None
    cgroup_peak_bytes: int | None = None


_NAMES = tuple(item.name for item in fields(Sample))


@dataclass
class SampleLog:
    """A whole file. `stats` is the last report of the sampler about itself; `complete` whether it ended in
    order; `foreign` maps a device index to every pid seen there that is not known to be ours, with the phase
    it was first seen in.
    """

    header: dict[str, Any] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    foreign: dict[int, dict[int, str]] = field(default_factory=dict)
    lost_devices: list[int] = field(default_factory=list)
    stats: dict[str, Any] = field(default_factory=dict)
    complete: bool = False
    damaged_lines: int = 0


def encode(kind: str, values: dict[str, Any]) -> bytes:
    """One line of the file."""
    return (json.dumps({"kind": kind, **values}, separators=(",", ":")) + "\n").encode()


def encode_sample(sample: Sample) -> bytes:
    values = {name: value for name in _NAMES if (value := getattr(sample, name)) is not None}
    if not sample.at_mark:
        del values["at_mark"]
    return encode("sample", values)


def _sample(values: dict[str, Any]) -> Sample:
    return Sample(**{name: values[name] for name in _NAMES if name in values})


def read_log(path: Path) -> SampleLog:
    """Everything in the file. Lines torn by a kill or not of this format are counted and left out."""
    log = SampleLog()
    with open(path, "rb") as lines:
        for line in lines:
            try:
                values = json.loads(line)
                _take(log, values.pop("kind"), values)
            except (ValueError, KeyError, TypeError, AttributeError):
                log.damaged_lines += 1
    return log


def _take(log: SampleLog, kind: str, values: dict[str, Any]) -> None:
    if kind == "sample":
        log.samples.append(_sample(values))
    elif kind == "header":
        log.header = values
    elif kind == "error":
        log.errors.append(values["text"])
        if "lost_device" in values:
            log.lost_devices.append(values["lost_device"])
    elif kind == "foreign":
        seen = log.foreign.setdefault(values["device_index"], {})
        for pid in values["pids"]:
            seen.setdefault(pid, values["phase"])
    elif kind == "stats":
        log.stats = values
        log.complete = bool(values.get("final"))


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file, in the order in which they were taken."""
    return read_log(path).samples


def read_latest(path: Path, tail_bytes: int = 16384) -> Sample | None:
    """The newest sample, read from the end of the file; with several devices, that of the fullest one."""
    try:
        with open(path, "rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - tail_bytes))
            lines = handle.read().split(b"\n")
    except OSError:
        return None
    newest: Sample | None = None
    for line in reversed(lines[:-1]):  # what follows the last newline is empty or still being written
        if not line.startswith(b'{"kind":"sample"'):
            continue
        try:
            sample = _sample(json.loads(line) | {})
        except (ValueError, TypeError):
            continue
        if newest is not None and sample.t_s != newest.t_s:
            break
        # An instant at a mark stands twice: the later line has the phase that holds now.
        if newest is None or (
            sample.phase == newest.phase
            and (sample.device_memory_used_bytes or 0) > (newest.device_memory_used_bytes or 0)
        ):
            newest = sample
    return newest
