"""Engine starts as the charts see them: restarts of a point in one environment together, by their medians."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from analysis.fit.starts import measured_on_cpu, measured_on_gpu
from analysis.report.palette import LIGHT
from analysis.report.read import ResultSet, Row
from analysis.rows import started

GIB: Final = 2**30
MIB: Final = 2**20

GPU_TERMS: Final = (
    ("weights", "weights", "c1"), ("kv_pool", "KV pool", "c5"), ("activation", "activation peak", "c2"),
    ("cuda_graph", "CUDA graphs", "c4"), ("non_torch", "non-torch", "c3"), ("context", "context", "c8"),
    ("runtime", "load adds", "c6"),
)  # fmt: skip
CPU_TERMS: Final = (
    ("weights", "weights", "c1"), ("kv_pool", "KV pool", "c5"), ("runtime", "load adds", "c6"),
    ("non_torch", "held besides (repacked weights, allocator)", "c3"), ("context", "process before the model", "c8"),
)  # fmt: skip
"""Terms of a bar: key, name, colour; the steady ones first, so that bars can be compared from the axis on."""


@dataclass(frozen=True)
class Unit:
    """What sizes are shown in: one unit for a whole report."""

    name: str
    bytes: int
    decimals: int

    def of(self, size: float | None) -> float | None:
        return None if size is None else round(size / self.bytes, self.decimals + 2)

    def text(self, size: float | None) -> str:
        return "–" if size is None else f"{size / self.bytes:,.{self.decimals}f} {self.name}"


def unit_for(largest_bytes: float) -> Unit:
    """MiB for what is small, so that no figure begins with zeros."""
    return Unit("MiB", MIB, 1) if largest_bytes < 4 * GIB else Unit("GiB", GIB, 2)


@dataclass
class Point:
    """All starts of one configuration in one environment of one set."""

    set_name: str
    environment_id: str
    point_id: str
    rows: list[Row] = field(default_factory=list)
    workloads: list[Row] = field(default_factory=list)

    @property
    def row(self) -> Row:
        """The first start: configuration columns are equal in all of them."""
        return self.rows[0]

    @property
    def on_cpu(self) -> bool:
        return self.row.get("device_kind") == "cpu"

    @property
    def run_ids(self) -> list[str]:
        return [str(row.get("run_id")) for row in self.rows]

    @cached_property
    def good(self) -> list[Row]:
        return started(self.rows)

    def median(self, column: str) -> float | None:
        return median(row.get(column) for row in self.good)

    @cached_property
    def terms(self) -> dict[str, float]:
        """Measured terms, bytes; medians over the restarts. What no row gives is absent."""
        found: dict[str, list[float]] = {}
        for row in self.good:
            one = dict(measured_on_cpu(row) if self.on_cpu else measured_on_gpu(row))
            one |= {"weights": row.get("weights_bytes"), "kv_pool": row.get("kv_cache_bytes")}
            if not self.on_cpu and one.get("kv_pool") is None:
                one["kv_pool"] = row.get("available_kv_cache_bytes")
            for term, size in one.items():
                if size is not None and size >= 0 and term != "cuda_graph_estimate":
                    found.setdefault(term, []).append(float(size))
        return {term: statistics.median(sizes) for term, sizes in found.items()}

    @property
    def peak(self) -> float | None:
        """What was seen from outside, bytes: the worker's high-water mark on a CPU, NVML's device peak on a GPU."""
        if self.on_cpu:
            return self.median("worker_rss_runtime_peak_bytes") or self.median("tree_pss_peak_bytes")
        return self.median("device_memory_peak_bytes")

    @property
    def capacity(self) -> float | None:
        row = self.row
        size = row.get("host_memory_bytes") if self.on_cpu else row.get("device_memory_total_bytes")
        return float(size) if size else None  # type: ignore[arg-type]

    @property
    def tokens(self) -> int:
        return int(self.row.get("effective_max_num_batched_tokens") or self.row.get("max_num_batched_tokens") or 0)  # type: ignore[call-overload]

    @property
    def seqs(self) -> int:
        return int(self.row.get("effective_max_num_seqs") or self.row.get("max_num_seqs") or 0)  # type: ignore[call-overload]

    @property
    def model(self) -> str:
        return str(self.row.get("model") or self.row.get("model_hub_id") or "unknown model")

    @property
    def quantization(self) -> str:
        return str(self.row.get("quantization") or "not quantized")

    @property
    def other(self) -> str:
        """What sets it apart from its neighbours besides format, T and S: pool, TP, length, eager."""
        row, words = self.row, []
        if row.get("kv_pool_mode"):
            words.append(f"{row['kv_pool_mode']} pool")
        tp, pp = row.get("tensor_parallel_size"), row.get("pipeline_parallel_size")
        words += [f"TP {tp}"] if tp not in (None, 1) else []
        words += [f"PP {pp}"] if pp not in (None, 1) else []
        return ", ".join(words)

    @property
    def label(self) -> str:
        return f"{short(self.quantization, 16)}  T {self.tokens:,}  S {self.seqs:,}"


def median(values: Iterable[object]) -> float | None:
    """Of the numbers among the values; None without any."""
    numbers = [float(one) for one in values if isinstance(one, int | float) and one == one]
    return statistics.median(numbers) if numbers else None


def short(text: str, most: int) -> str:
    """The text with its middle left out where it is longer than a chart has room for."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 3
    return f"{text[: most - 1 - tail]}…{text[-tail:]}"


def points_of(sets: Sequence[ResultSet]) -> list[Point]:
    """Points of all sets, ordered by model, format, pool, T and S."""
    found: dict[tuple[str, str, str], Point] = {}
    by_run: dict[str, Point] = {}
    for one in sets:
        for row in one.engines:
            key = (one.name, str(row.get("environment_id")), str(row.get("point_id") or row.get("run_id")))
            point = found.setdefault(key, Point(*key))
            point.rows.append(row)
            by_run[f"{one.name}/{row.get('run_id')}"] = point
        for load in one.workloads:
            if point := by_run.get(f"{one.name}/{load.get('run_id')}"):
                point.workloads.append(load)
    return sorted(
        found.values(),
        key=lambda one: (one.model, one.quantization, one.other, one.tokens, one.seqs, one.set_name, one.point_id),
    )


def grouped(points: Iterable[Point], key: Callable[[Point], str]) -> dict[str, list[Point]]:
    """Points by a word, the largest groups first where there are more than anyone would look through."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(key(point), []).append(point)
    return groups


def spread(items: Sequence[Point], most: int) -> list[Point]:
    """At most so many, evenly over the whole sequence, its ends included."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


class Naming:
    """What a group is called: the set and the environment are named only where there are several."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.several_sets = len({one.set_name for one in points}) > 1
        by_set: dict[str, list[str]] = {}
        for one in points:
            ids = by_set.setdefault(one.set_name, [])
            if one.environment_id not in ids:
                ids.append(one.environment_id)
        self.environments = {name: ids for name, ids in by_set.items() if len(ids) > 1}

    def where(self, point: Point) -> str:
        words = [point.set_name] if self.several_sets else []
        if ids := self.environments.get(point.set_name):
            words.append(f"environment {ids.index(point.environment_id) + 1}")
        return ", ".join(words)

    def group(self, point: Point) -> str:
        where = self.where(point)
        return point.model + (f" ({where})" if where else "")


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour per name, the same in every chart; beyond eight they repeat, and shapes and tables tell them apart."""
    return {name: LIGHT[f"c{place % 8 + 1}"] for place, name in enumerate(sorted(set(names)))}


SHAPES: Final = (
    "circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left",
)  # fmt: skip


def shapes(names: Iterable[str]) -> dict[str, str]:
    """A mark per name, the same in every chart; where colours begin again, shapes are one further on."""
    return {name: SHAPES[(place + place // 8) % 8] for place, name in enumerate(sorted(set(names)))}
