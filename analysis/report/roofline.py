"""Speed, predicted against measured: the roofline fitted to these rows, judged on models it has not seen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

from analysis.report.chart import NARROW, Chart, Spec
from analysis.report.context import Context, Section, View
from analysis.report.palette import LIGHT
from analysis.report.read import Row
from analysis.report.table import Column, Table

METRICS: Final = {
    "tpot": ("TPOT", "ms", 1e3), "ttft": ("TTFT", "ms", 1e3), "throughput": ("Throughput", "tokens/s", 1.0),
}  # fmt: skip
DOTS: Final = 120
MOST: Final = 120
"""Workloads of one format and environment that are fitted, at most: more would hardly move the few factors."""


@dataclass
class Question:
    """Rows to be fitted: engine rows and workload rows that may be pooled, and what was left aside of which."""

    groups: list[tuple[list[Row], list[Row]]] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)
    """Workloads that cannot be fitted, by reason."""
    usable: int = 0
    taken: int = 0


@dataclass
class HeldOut:
    """Every prediction of a workload by a fit that has not seen its model: the miss, its log interval, the metric."""

    found: list[tuple[Any, float, str]]
    left: dict[str, int]


def question(context: Context) -> Question:
    """What is fitted: never pooled over sets or environments, thinned evenly within a format."""
    from analysis.throughput.observations import unusable

    out = Question()
    groups: dict[tuple[str, str], dict[str, list[tuple[Row, Row]]]] = {}
    for point in context.good:
        starts = {row.get("run_id"): row for row in point.good}
        for load in point.workloads:  # told apart first: what cannot be fitted must not take the room of what can
            start = starts.get(load.get("run_id"))
            reason = "the start was not measured in full" if start is None else unusable(start, load)
            if start is None or reason is not None:
                out.left[str(reason)] = out.left.get(str(reason), 0) + 1
            else:
                formats = groups.setdefault((point.set_name, point.environment_id), {})
                formats.setdefault(point.quantization, []).append((start, load))
    for formats in groups.values():
        taken = []
        for pairs in formats.values():
            out.usable += len(pairs)
            if len(pairs) > MOST:
                pairs = [pairs[round(place * (len(pairs) - 1) / (MOST - 1))] for place in range(MOST)]
            taken += pairs
        out.taken += len(taken)
        engines = {str(start.get("run_id")): start for start, _ in taken}
        out.groups.append((list(engines.values()), [load for _, load in taken]))
    return out


def held_out(asked: Question) -> HeldOut:
    """Fits of the groups, each workload predicted with its model left out."""
    from analysis.throughput.holdout import half_width, leave_out
    from analysis.throughput.observations import read

    found: list[tuple[Any, float, str]] = []
    left = dict(asked.left)
    for engines, loads in asked.groups:
        every = read(engines, loads)
        for reason, count in every.left_out.items():
            left[reason] = left.get(reason, 0) + count
        for observations in every.observations.values():
            if len({one.model for one in observations}) < 2:
                left["only one model of its kind, so none could be held out"] = len(observations) + left.get(
                    "only one model of its kind, so none could be held out", 0)  # fmt: skip
                continue
            held = leave_out("model", observations)
            for metric in METRICS:
                misses = held.of(metric)  # type: ignore[arg-type]
                for unit in {miss.unit for miss in misses}:
                    others = [miss for miss in misses if miss.unit != unit]
                    width = half_width(others) if others else math.inf
                    found += [(miss, width, metric) for miss in misses if miss.unit == unit]
    return HeldOut(found, left)


def section(context: Context, asked: Question, held: HeldOut) -> Section:
    """`held` is what `held_out` gives of `asked`."""
    out = Section("roofline", "Speed, predicted against measured")
    found, left = held.found, held.left
    if asked.taken < asked.usable:
        out.notes.append(f"Fitted to {asked.taken:,} of {asked.usable:,} workloads that can be, at most {MOST} of a "
                         "format and environment, evenly over the grid; the table holds these.")  # fmt: skip
    if left:
        out.notes.append("Not fitted: " + "; ".join(f"{count:,} ({reason})" for reason, count in left.items()) + ".")
    if not found:
        out.lead = "No workload can be predicted with its model held out; the reasons are below."
        return out
    out.lead = (
        "A roofline of the engine's steps is fitted to these rows and asked about the model that it has not seen. On "
        "the line it was right; vertical bars are 90 % intervals, cut at the frame. Both axes are logarithmic."
    )
    charts = []
    for metric, (name, unit, scale) in METRICS.items():
        mine = [(miss, width) for miss, width, of in found if of == metric]
        if mine:
            shown = mine if len(mine) <= DOTS else [mine[round(i * (len(mine) - 1) / (DOTS - 1))] for i in range(DOTS)]
            note = f"{DOTS} of {len(mine):,} workloads, evenly." if len(shown) < len(mine) else ""
            charts.append(Chart(
                f"roofline-{metric}", f"{name}, model held out",
                lambda width, shown=shown, name=name, unit=unit, scale=scale: _scatter(shown, name, unit, scale, width),  # type: ignore[misc]
                note=note, widths=(NARROW,),
            ))  # fmt: skip
    out.views.append(View("roofline", tuple(charts)))
    columns = [Column("Metric"), Column("Unit"), Column("Model"), Column("Lengths"), Column("Concurrency", "0"),
               Column("measured", "2"), Column("predicted", "2"), Column("low", "2"), Column("high", "2"),
               Column("error, %", "1"), Column("run_id/position", "id")]  # fmt: skip
    rows = []
    for miss, width, metric in found:
        name, unit, scale = METRICS[metric]
        rows.append([name, unit, miss.observation.model, miss.observation.length, miss.observation.concurrency,
                     scale * miss.measured, scale * miss.estimated, scale * miss.estimated * math.exp(-width),
                     scale * miss.estimated * math.exp(min(width, 50)), 100 * (miss.estimated / miss.measured - 1),
                     miss.observation.row_id])  # fmt: skip
    rows.sort(key=lambda row: -abs(row[9]))
    out.tables.append(Table("roofline", "Every speed prediction", columns, rows, "Largest errors first.",
                            "SELECT * FROM workloads WHERE run_id = 'RUN_ID'", sets=context.roots))  # fmt: skip
    return out


def _scatter(pairs: list[Any], name: str, unit: str, scale: float, width: int) -> Spec:
    sizes = [scale * size for miss, _ in pairs for size in (miss.measured, miss.estimated)]
    low, high = min(sizes) / 1.15, max(sizes) * 1.15
    values = []
    for miss, spread in pairs:
        inside = abs(miss.log_error) <= spread
        values.append({
            "m": scale * miss.measured, "p": scale * miss.estimated,
            "low": max(scale * miss.estimated * math.exp(-spread), low),
            "high": min(scale * miss.estimated * math.exp(min(spread, 50)), high),
            "colour": LIGHT["c1" if inside else "c6"], "href": f"#find:{miss.observation.row_id.partition('/')[0]}",
            "about": f"{miss.observation.model}, {miss.observation.length}: measured "
                     f"{scale * miss.measured:,.4g} {unit}, predicted {scale * miss.estimated:,.4g} {unit}",
        })  # fmt: skip
    axis = {"type": "quantitative", "scale": {"type": "log", "domain": [low, high], "nice": False},
            "axis": {"tickCount": 4, "format": ",.3~r", "labelOverlap": "greedy"}}  # fmt: skip
    x, y = {"field": "m", **axis, "title": f"measured, {unit}"}, {"field": "p", **axis, "title": f"predicted, {unit}"}
    colour = {"field": "colour", "type": "nominal", "scale": None}
    return {
        "width": width - 2, "height": 260, "autosize": {"type": "fit", "contains": "padding"},
        "data": {"values": values},
        "layer": [
            {"data": {"values": [{"m": low, "p": low}, {"m": high, "p": high}]},
             "mark": {"type": "line", "color": LIGHT["muted"], "strokeWidth": 1}, "encoding": {"x": x, "y": y}},
            {"mark": {"type": "rule", "opacity": 0.3},
             "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour}},
            {"mark": {"type": "point", "filled": True, "size": 24, "opacity": 0.8},
             "encoding": {"x": x, "y": y, "color": colour, "href": {"field": "href"},
                          "description": {"field": "about"}}},
        ],
    }  # fmt: skip
