"""Reads the files that the probe's workers leave, and takes single figures out of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def read_probe_reports(probe_dir: str | Path) -> list[dict[str, Any]]:
    """The workers' reports, by rank. Files that are no report (half a disk, another program) are passed
    over.
    """
    reports = []
    for path in sorted(Path(probe_dir).glob("worker-*.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(report, dict) and isinstance(report.get("phases"), list):
            reports.append(report)
    return sorted(reports, key=lambda report: (report.get("rank") is None, report.get("rank") or 0))


def startup_phases(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The phases in order of beginning."""
    return [phase for phase in report.get("phases") or [] if isinstance(phase, dict)]


def phase_named(report: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The last phase of that name, or None."""
    found = [phase for phase in startup_phases(report) if phase["name"] == name]
    return found[-1] if found else None


def number(text: Any) -> float | None:
    """A finite number from a label's text; None for `"None"`, `"auto"` and the like."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def cuda_peaks(readings: Iterable[Mapping[str, Any]]) -> tuple[int | None, int | None]:
    """Largest allocated and reserved bytes of torch's CUDA allocator over readings (vLLM resets the peak
    between).
    """
    cuda = [reading["cuda"] for reading in readings if reading.get("cuda")]
    allocated = [one["allocated_peak_bytes"] for one in cuda if "allocated_peak_bytes" in one]
    reserved = [one["reserved_peak_bytes"] for one in cuda if "reserved_peak_bytes" in one]
    return max(allocated, default=None), max(reserved, default=None)


def runtime_peaks(reports: Sequence[Mapping[str, Any]], all_windows: bool = False) -> dict[str, int | None]:
    """Peaks under load, the largest over workers, of the window that is open or, if asked, of all windows.

    Keys: `torch_allocated_peak_bytes`, `worker_rss_peak_bytes`, `activation_peak_bytes` (the peak above the
    level when the window began: torch's allocator on CUDA, else the worker's resident memory). None where
    there was no window.
    """
    torch, rss, above = [], [], []
    for report in reports:
        runtime = report.get("runtime") or {}
        windows = runtime.get("windows") or []
        for window in windows if all_windows else windows[-1:]:
            begin, end = window["begin"], window.get("end")
            current = runtime.get("current")
            if end is None and current and current["unix_s"] >= begin["unix_s"]:
                end = current
            if end is None:
                continue
            peak = end["host"].get("rss_peak_bytes")
            if peak is not None:
                rss.append(peak)
            if end.get("cuda") and begin.get("cuda"):
                torch.append(end["cuda"]["allocated_peak_bytes"])
                above.append(end["cuda"]["allocated_peak_bytes"] - begin["cuda"]["allocated_bytes"])
            elif peak is not None and "rss_bytes" in begin["host"]:
                above.append(max(peak - begin["host"]["rss_bytes"], 0))
    return {
        "torch_allocated_peak_bytes": max(torch, default=None),
        "worker_rss_peak_bytes": max(rss, default=None),
        "activation_peak_bytes": max(above, default=None),
    }
