"""Memory over time, as columns of a workload's row: does what the engine holds grow while the load holds?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from analysis.drift.series import METRICS, Metric, series
from bench.telemetry.samples import Sample

_BY_COLUMN = {metric.column: metric for metric in METRICS}
_HOST = (_BY_COLUMN["tree_rss_bytes"],)
# This engine's own share where the driver shows it, else all of the device.
_DEVICE = (_BY_COLUMN["process_memory_used_bytes"], _BY_COLUMN["device_memory_used_bytes"])
_WORST = ("leak", "undecided", "levels_off", "flat")
_SHAPELESS = ("ramp", "trace")

MOST_LINES = 20


def drift_columns(row: Mapping[str, Any], phase: str, samples: Sequence[Sample]) -> dict[str, Any]:
    """The drift of host and device memory over a load that was held for a stated time; empty for other loads, and for
    one that was held too shortly to tell a leak from settling (`analysis.drift.slope.LEAST_SECONDS`).

    A ramp and a trace hold no load, and a knee's trials are too many and too short to be told apart from settling.
    """
    if row.get("duration_s") is None or row.get("pattern") in _SHAPELESS or row.get("knee_trial") is not None:
        return {}
    held = [dataclasses.asdict(sample) for sample in samples if sample.phase == phase]
    columns: dict[str, Any] = {}
    for name, choices in (("host", _HOST), ("device", _DEVICE)):
        columns |= _one(name, choices, held)
    verdicts = [columns[f"drift_{name}_verdict"] for name in ("host", "device") if f"drift_{name}_verdict" in columns]
    if verdicts:
        columns["drift_verdict"] = min(verdicts, key=_WORST.index)
    return columns


def _one(name: str, choices: Iterable[Metric], held: list[dict[str, Any]]) -> dict[str, Any]:
    from analysis.drift.slope import TooShort, drift

    for metric in choices:
        try:
            found = drift(*series(held, metric))
        except TooShort:
            continue
        return {
            "drift_seconds": found.seconds,
            "drift_least_bytes_per_s": found.least_bytes_per_s,
            f"drift_{name}_metric": metric.column,
            f"drift_{name}_verdict": found.verdict,
            f"drift_{name}_first_bytes": round(found.first_bytes),
            f"drift_{name}_growth_bytes": round(found.growth_bytes),
            **{
                f"drift_{name}_{part}slope{end}_bytes_per_s": getattr(slope, value)
                for part, slope in (("", found.whole), ("late_", found.late))
                for end, value in (("", "value"), ("_low", "low"), ("_high", "high"))
            },
        }
    return {}


def sentences(workloads: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The drift of each load that was held: verdict, and a sentence, one a kind of memory."""
    found = []
    for row in workloads:
        for name, what in (("host", "host memory (RSS)"), ("device", "device memory")):
            if verdict := row.get(f"drift_{name}_verdict"):
                held = f"{row['workload']}, {what} over {row['drift_seconds']:.0f} s"
                found.append((verdict, f"{held}: {_said(row, name, verdict)}"))
    return found


def _said(row: Mapping[str, Any], name: str, verdict: str) -> str:
    whole, late = (_slope(row, f"drift_{name}_{part}slope") for part in ("", "late_"))
    growth = row[f"drift_{name}_growth_bytes"] / 2**20
    slopes = f"{growth:+.1f} MiB; slope {whole}, second half {late} MiB a minute (95 % intervals)"
    return f"{verdict.replace('_', ' ')}, {slopes}"


def _slope(row: Mapping[str, Any], name: str) -> str:
    value, low, high = (row[f"{name}{end}_bytes_per_s"] * 60 / 2**20 for end in ("", "_low", "_high"))
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
