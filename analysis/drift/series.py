"""Which columns of the timeline tell how much memory an engine holds, and one series of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Metric:
    """A column of the samples table. `of_device`: a reading per device, which a start with several GPUs adds up."""

    column: str
    title: str
    of_device: bool


METRICS = (
    Metric("device_memory_used_bytes", "device memory", True),
    Metric("process_memory_used_bytes", "engine's device memory", True),
    # Resident pages are read at every tick and do not depend on who else maps the same libraries, as PSS does: of the
    # host's figures the one for slopes. Pages that processes of the tree share count once for each, all the time.
    Metric("tree_rss_bytes", "engine's host memory (RSS)", False),
    Metric("tree_pss_bytes", "engine's host memory (PSS)", False),
)


def series(samples: Iterable[Mapping[str, Any]], metric: Metric) -> tuple[list[float], list[float]]:
    """Times in seconds and sizes in bytes of one metric, one value a tick.

    `samples` are rows of the samples table of one engine start, one a device and tick; the host's columns repeat on
    each. A tick at which a device did not answer is left out: the sum of the others would be a step.
    """
    ticks: dict[float, list[Any]] = {}
    for row in samples:
        ticks.setdefault(row["t_s"], []).append(row.get(metric.column))
    t_s, size_bytes = [], []
    for at, values in ticks.items():
        if any(value is None for value in values):
            continue
        t_s.append(at)
        size_bytes.append(float(sum(values)) if metric.of_device else float(values[0]))
    return t_s, size_bytes
