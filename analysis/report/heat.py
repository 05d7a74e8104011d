"""Heat maps over max-num-batched-tokens x max-num-seqs: one small map per format, one scale per model and metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Final

from analysis.report.chart import NARROW, Chart
from analysis.report.context import Context, Section, View
from analysis.report.grid import Cell, drawn
from analysis.report.loads import Load, loads_of
from analysis.report.palette import HEAT, variables
from analysis.report.points import Point, grouped, median, short
from analysis.report.table import Column, Table

MAPS: Final = 200
"""Maps of all choices: four metrics of ten models in five formats, for one workload."""
CELLS: Final = 8_000
"""Cells of all maps, some 2 MB of the page."""
FORMATS: Final = 12
"""Formats of one choice."""
SIDE: Final = 10
"""Most values of T and of S in one map; of more, that many evenly."""


@dataclass(frozen=True)
class Metric:
    """`value` of a point in the unit shown, and whether it is one that nobody should quote; `decimals` of figures."""

    title: str
    unit: str
    decimals: int
    value: Callable[[Point], float | None]
    doubtful: Callable[[Point], bool] = lambda _: False


Loads = dict[str, dict[int, Load]]
"""By workload, then by the identity of its point."""
Cells = dict[tuple[int, int], tuple[float, list[Point]]]


def section(context: Context) -> Section:
    out = Section("maps", "Batch tokens × sequences", choose="Metric and model")
    groups = grouped(context.good, context.naming.group)
    ranked = sorted(groups, key=lambda name: (-len(groups[name]), name))
    workloads = _workloads(context.good)
    left: dict[str, list[str]] = {}
    seen: dict[str, int] = {}
    maps_left, cells_left = MAPS, CELLS
    for metric in [*_memory(context), *(one for name in workloads for one in _speed(name, workloads[name]))]:
        for name in ranked:
            every = _maps(groups[name], metric)
            if not every:
                continue
            seen[metric.title] = seen.get(metric.title, 0) + 1
            maps = dict(list(every.items())[:FORMATS])
            cells = sum(len(_shown(one)) for one in maps.values())
            if len(maps) > maps_left or cells > cells_left:
                left.setdefault(metric.title, []).append(name)
                continue
            maps_left, cells_left = maps_left - len(maps), cells_left - cells
            out.views.append(_view(f"{metric.title}: {name}", maps, list(every)[FORMATS:], metric, len(out.views)))
    if not out.views:
        out.lead = "No metric was measured at more than one value of max-num-batched-tokens or max-num-seqs: no map."
        return out
    out.lead = (
        "How a metric moves with the two settings that start-up sizes everything by. Cells are medians over all points "
        "of that format, T and S; every map of a choice shares one scale. An empty cell was not "
        "measured. Throughput and latency are of one workload each; the trials of a knee search are in no map."
    )
    if left:
        words = [f"{metric} ({'every model' if len(names) == seen[metric] else ', '.join(names)})"
                 for metric, names in left.items()]  # fmt: skip
        out.notes.append(f"The page has room for {MAPS} maps. Left out of it, and in the table below: "
                         f"{'; '.join(words)}.")  # fmt: skip
    out.tables.append(_table(context, workloads))
    return out


def _workloads(points: list[Point]) -> Loads:
    """Of every workload its figures by point, those of the most points first; no trials of a knee search."""
    found: Loads = {}
    for load in loads_of(points):
        if not load.trial:
            found.setdefault(load.name, {})[id(load.point)] = load
    return {name: found[name] for name in sorted(found, key=lambda name: (-len(found[name]), name))}


def _memory(context: Context) -> list[Metric]:
    unit = context.unit
    return [
        Metric("Peak memory", unit.name, unit.decimals if unit.name == "GiB" else 0,
               lambda point: unit.of(point.peak or sum(point.terms.values()) or None)),
        Metric("KV tokens", "tokens", 0, lambda point: point.median("kv_cache_tokens")),
    ]  # fmt: skip


def _speed(workload: str, loads: dict[int, Load]) -> list[Metric]:
    def rate(point: Point) -> float | None:
        return loads[id(point)].rate if id(point) in loads else None

    def wait(point: Point) -> float | None:
        value = loads[id(point)].medians["ttft_p50_s"] if id(point) in loads else None
        return None if value is None else 1e3 * value

    def doubtful(point: Point) -> bool:
        return id(point) in loads and loads[id(point)].doubtful

    name = short(workload, 40)
    return [Metric(f"Throughput, {name}", "tokens/s", 0, rate, doubtful),
            Metric(f"TTFT p50, {name}", "ms", 0, wait, doubtful)]  # fmt: skip


def _maps(points: list[Point], metric: Metric) -> dict[str, Cells]:
    """Cells by format: (T, S) to the median and its points. Empty where neither setting varies."""
    found: dict[str, dict[tuple[int, int], list[tuple[float, Point]]]] = {}
    for point in points:
        value = metric.value(point)
        if value is not None and point.tokens and point.seqs:
            found.setdefault(point.quantization, {}).setdefault((point.tokens, point.seqs), []).append((value, point))
    places = {place for cells in found.values() for place in cells}
    if len(places) < 2:
        return {}
    return {
        name: {place: (median(value for value, _ in inside) or 0.0, [point for _, point in inside])
               for place, inside in cells.items()}
        for name, cells in sorted(found.items())
    }  # fmt: skip


def _view(name: str, maps: dict[str, Cells], more: list[str], metric: Metric, number: int) -> View:
    every = [value for cells in maps.values() for value, _ in cells.values()]
    low, high = min(every), max(every)
    charts = []
    for place, (fmt, cells) in enumerate(maps.items()):
        shown = _shown(cells)
        left = f" {len(shown)} of {len(cells)} cells, evenly." if len(shown) < len(cells) else ""
        charts.append(Chart(
            f"map-{number + 1}-{place + 1}", f"{short(name, 90)}, {short(fmt, 30)}",
            lambda width, shown=shown: _map(shown, metric, low, high, width),  # type: ignore[misc]
            note=f"{metric.title} in {metric.unit}, {_range(low, high, metric)} over all maps of this model.{left}",
            widths=(NARROW,), heading=f"{short(fmt, 40)}{f',{left[:-1]}' if left else ''}", quiet=True,
        ))  # fmt: skip
    steps = "".join(
        f'<rect x="{14 * place}" width="14" height="12" fill="{colour}"/>' for place, colour in enumerate(HEAT)
    )
    scale = variables(f'<svg class=scale viewBox="0 0 98 12" aria-hidden="true">{steps}</svg>')
    after = [f"{high:,.{metric.decimals}f}."]
    points = [point for cells in maps.values() for _, inside in cells.values() for point in inside]
    if doubtful := sum(metric.doubtful(point) for point in points):
        after.append(f"{doubtful:,} of {len(points):,} figures are flagged, as in the charts of throughput against "
                     "latency: do not quote them.")  # fmt: skip
    if more:
        after.append(f"In the table only: {', '.join(more)}.")
    return View(name, tuple(charts), head=f"{escape(metric.title)}, {metric.unit}: {low:,.{metric.decimals}f} {scale} "
                                          f"{escape(' '.join(after))}")  # fmt: skip


def _range(low: float, high: float, metric: Metric) -> str:
    return f"{low:,.{metric.decimals}f} to {high:,.{metric.decimals}f}"


def _some(values: set[int]) -> list[int]:
    ordered = sorted(values)
    if len(ordered) <= SIDE:
        return ordered
    return [ordered[round(place * (len(ordered) - 1) / (SIDE - 1))] for place in range(SIDE)]


def _shown(cells: Cells) -> Cells:
    """Those of the values of T and S that a map has room for."""
    tokens, seqs = _some({t for t, _ in cells}), _some({s for _, s in cells})
    return {(t, s): cell for (t, s), cell in cells.items() if t in tokens and s in seqs}


def _map(cells: Cells, metric: Metric, low: float, high: float, width: int) -> str:
    found = {}
    for (t, s), (value, points) in cells.items():
        share = (value - low) / (high - low) if high > low else 0.5
        text = f"{value:,.{metric.decimals}f}"
        count = f"{len(points)} {'point' if len(points) == 1 else 'points'}"
        flagged = ", flagged" if any(map(metric.doubtful, points)) else ""
        found[t, s] = Cell(
            min(int(share * len(HEAT)), len(HEAT) - 1), text,
            f"T {t:,}, S {s:,}: {metric.title} {text} {metric.unit}, {count}{flagged}",
            f"#find:{points[0].point_id}",
        )  # fmt: skip
    return drawn(found, sorted({t for t, _ in cells}), sorted({s for _, s in cells}), "max-num-batched-tokens",
                 "max-num-seqs", width)  # fmt: skip


def _table(context: Context, workloads: Loads) -> Table:
    """One row per point and workload; a point without any has one row too."""
    memory = _memory(context)
    speed = {name: _speed(name, loads) for name, loads in workloads.items()}
    columns = [Column("Model"), Column("Format"), Column("Pool, ranks"), Column("T", "0"), Column("S", "0"),
               *(Column(f"{one.title}, {one.unit}", str(one.decimals)) for one in memory), Column("Workload"),
               Column("Throughput, tokens/s", "0"), Column("TTFT p50, ms", "0"), Column("Flagged"),
               Column("point_id", "id")]  # fmt: skip
    rows = []
    for point in context.good:
        names = [name for name, loads in workloads.items() if id(point) in loads]
        for name in names or [None]:
            figures = [one.value(point) for one in speed[name]] if name else [None, None]
            rows.append([context.naming.group(point), point.quantization, point.other, point.tokens, point.seqs,
                         *(one.value(point) for one in memory), name, *figures,
                         workloads[name][id(point)].doubtful if name else None, point.point_id])  # fmt: skip
    return Table("maps", "Values of the maps", columns, rows, "Throughput and TTFT are of the workload named.",
                 "SELECT * FROM engines WHERE point_id = 'POINT_ID'", sets=context.roots)  # fmt: skip
