"""Heat maps over max-num-batched-tokens x max-num-seqs: one small map per format, one scale per model and metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Final

from analysis.report.chart import NARROW, Chart, Spec
from analysis.report.context import Context, Section, View
from analysis.report.loads import loads_of
from analysis.report.palette import HEAT, LIGHT, variables
from analysis.report.points import Point, grouped, median, short
from analysis.report.table import Column, Table

MAPS: Final = 24
"""Maps drawn over all choices, about: what a page can hold and a reader look at."""
FORMATS: Final = 8
SIDE: Final = 10
"""Most values of T and of S in one map; of more, that many evenly."""


@dataclass(frozen=True)
class Metric:
    """`value` of a point in the unit shown; `decimals` of its figures."""

    key: str
    title: str
    unit: str
    decimals: int
    value: Callable[[Point], float | None]


def section(context: Context) -> Section:
    out = Section("maps", "Batch tokens × sequences", choose="Metric and model")
    groups = grouped(context.good, context.naming.group)
    ranked = sorted(groups, key=lambda name: (-len(groups[name]), name))
    skipped = 0
    for metric in _metrics(context):
        drawn = 0
        for name in ranked:
            maps = _maps(groups[name], metric)
            if not maps:
                continue
            if drawn and drawn + len(maps) > MAPS // 4:
                skipped += 1
                continue
            drawn += len(maps)
            out.views.append(_view(context, f"{metric.title}: {name}", maps, metric, len(out.views)))
    if not out.views:
        out.lead = "No metric was measured at more than one value of max-num-batched-tokens or max-num-seqs: no map."
        return out
    out.lead = (
        "How a metric moves with the two settings that start-up sizes everything by. Cells are medians over all points "
        "of that format, T and S; every map of a choice shares one scale. An empty cell was not "
        "measured."
    )
    if skipped:
        out.notes.append(f"Maps of further models are left out of the page ({skipped} choices); the table has all.")
    out.tables.append(_table(context))
    return out


def _metrics(context: Context) -> list[Metric]:
    unit = context.unit
    speeds = {id(load.point): load for load in loads_of(context.good)}

    def speed(point: Point, key: str) -> float | None:
        load = speeds.get(id(point))
        if load is None:
            return None
        if key == "rate":
            return load.rate
        value = load.medians[key]
        return None if value is None else 1e3 * value

    return [
        Metric("peak", "Peak memory", unit.name, unit.decimals if unit.name == "GiB" else 0,
               lambda point: unit.of(point.peak or sum(point.terms.values()) or None)),
        Metric("kv", "KV tokens", "tokens", 0, lambda point: point.median("kv_cache_tokens")),
        Metric("rate", "Throughput", "tokens/s", 0, lambda point: speed(point, "rate")),
        Metric("ttft", "TTFT p50", "ms", 0, lambda point: speed(point, "ttft_p50_s")),
    ]  # fmt: skip


Cells = dict[tuple[int, int], tuple[float, list[Point]]]


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
        for name, cells in sorted(found.items())[:FORMATS]
    }  # fmt: skip


def _view(context: Context, name: str, maps: dict[str, Cells], metric: Metric, number: int) -> View:
    every = [value for cells in maps.values() for value, _ in cells.values()]
    low, high = min(every), max(every)
    charts = []
    left = max(len({point.quantization for point in context.good}) - FORMATS, 0)
    for place, (fmt, cells) in enumerate(maps.items()):
        charts.append(Chart(
            f"map-{number + 1}-{place + 1}", f"{short(name, 90)}, {short(fmt, 30)}",
            lambda width, cells=cells: _map(cells, metric, low, high, width),  # type: ignore[misc]
            note=f"{metric.title} in {metric.unit}, {_range(low, high, metric)} over all maps of this model.",
            widths=(NARROW,), heading=short(fmt, 40), quiet=True,
        ))  # fmt: skip
    steps = "".join(
        f'<rect x="{14 * place}" width="14" height="12" fill="{colour}"/>' for place, colour in enumerate(HEAT)
    )
    scale = variables(f'<svg class=scale viewBox="0 0 98 12" aria-hidden="true">{steps}</svg>')
    more = f" {left} formats more are in the table." if left else ""
    words = f"{metric.title}, {metric.unit}: {low:,.{metric.decimals}f} {{}} {high:,.{metric.decimals}f}.{more}"
    before, _, after = words.partition("{}")
    return View(name, tuple(charts), head=f"{escape(before)}{scale}{escape(after)}")


def _range(low: float, high: float, metric: Metric) -> str:
    return f"{low:,.{metric.decimals}f} to {high:,.{metric.decimals}f}"


def _some(values: set[int]) -> list[int]:
    ordered = sorted(values)
    if len(ordered) <= SIDE:
        return ordered
    return [ordered[round(place * (len(ordered) - 1) / (SIDE - 1))] for place in range(SIDE)]


def _map(cells: Cells, metric: Metric, low: float, high: float, width: int) -> Spec:
    tokens, seqs = _some({t for t, _ in cells}), _some({s for _, s in cells})
    values = []
    for (t, s), (value, points) in cells.items():
        if t in tokens and s in seqs:
            share = (value - low) / (high - low) if high > low else 0.5
            step = min(int(share * len(HEAT)), len(HEAT) - 1)
            text = f"{value:,.{metric.decimals}f}"
            values.append({
                "t": f"{t:,}", "s": f"{s:,}", "fill": HEAT[step], "ink": LIGHT["ink1" if step < 4 else "ink2"],
                "text": text, "href": f"#find:{points[0].point_id}",
                "about": f"T {t:,}, S {s:,}: {metric.title} {text} {metric.unit}, {len(points)} points",
            })  # fmt: skip
    step_x = (width - 62) / len(seqs)
    size = min(11.0, step_x / max(max(len(str(one["text"])) for one in values) * 0.6, 1))
    x = {"field": "s", "type": "ordinal", "sort": [f"{s:,}" for s in seqs], "title": "max-num-seqs",
         "axis": {"labelAngle": 0, "orient": "bottom", "domain": False, "ticks": False},
         "scale": {"paddingInner": 0.04}}  # fmt: skip
    y = {"field": "t", "type": "ordinal", "sort": [f"{t:,}" for t in tokens][::-1], "title": "max-num-batched-tokens",
         "axis": {"domain": False, "ticks": False}, "scale": {"paddingInner": 0.06}}  # fmt: skip
    layers: list[Spec] = [
        {"mark": {"type": "rect", "cornerRadius": 2},
         "encoding": {"x": x, "y": y, "color": {"field": "fill", "type": "nominal", "scale": None},
                      "href": {"field": "href"}, "description": {"field": "about"}}},
    ]  # fmt: skip
    if size >= 7:
        layers.append({
            "mark": {"type": "text", "fontSize": round(size, 1)},
            "encoding": {"x": x, "y": y, "text": {"field": "text"},
                         "color": {"field": "ink", "type": "nominal", "scale": None}},
        })  # fmt: skip
    return {"width": width, "height": max(34 * len(tokens) + 46, 130), "data": {"values": values}, "layer": layers,
            "autosize": {"type": "fit", "contains": "padding"}}  # fmt: skip


def _table(context: Context) -> Table:
    metrics = _metrics(context)
    columns = [Column("Model"), Column("Format"), Column("Pool, ranks"), Column("T", "0"), Column("S", "0"),
               *(Column(f"{one.title}, {one.unit}", str(one.decimals)) for one in metrics),
               Column("point_id", "id")]  # fmt: skip
    rows = [[context.naming.group(point), point.quantization, point.other, point.tokens, point.seqs,
             *(one.value(point) for one in metrics), point.point_id] for point in context.good]  # fmt: skip
    return Table("maps", "Values of the maps", columns, rows, "",
                 "SELECT * FROM engines WHERE point_id = 'POINT_ID'", sets=context.roots)  # fmt: skip
