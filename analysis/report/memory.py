"""Memory of every point as a stacked bar by term, against what the card has."""

from __future__ import annotations

from typing import Final

from analysis.report.chart import Chart, Spec
from analysis.report.context import Context, Section, View
from analysis.report.lettering import fitted
from analysis.report.lettering import width as text_width
from analysis.report.palette import LIGHT
from analysis.report.points import CPU_TERMS, GPU_TERMS, Point, Unit, grouped, short, spread
from analysis.report.table import Column, Table

BARS: Final = 24
"""Bars of one picture: what a screen shows at a readable size."""
VIEWS: Final = 8
LABELS: Final = 0.6
"""Part of a chart's width that the names of its bars may take; longer ones are shortened."""
FORMAT: Final = 6.0
"""What the name of a format keeps at least where room is scarce, em."""
_DWARFED: Final = 3.0
"""A capacity so many times the longest bar is said, not drawn: it would press all bars against the axis."""


def section(context: Context) -> Section:
    out = Section("memory", "Memory by term", choose="Model")
    points = [point for point in context.good if point.terms]
    if not points:
        out.lead = "No start measured any memory term, so there is nothing to draw."
        return out
    groups = grouped(points, context.naming.group)
    ranked = sorted(groups, key=lambda name: (-len(groups[name]), name))[:VIEWS]
    for name in sorted(ranked):
        out.views.append(_view(name, groups[name], context.unit, len(out.views)))
    out.lead = (
        "What each point held, term by term. Bars are medians over restarts; the upright tick is what was seen from "
        "outside: the device's peak on a GPU (NVML), the worker's high-water mark on a CPU."
    )
    if any(point.on_cpu for point in points):
        out.notes.append(
            "CPU rows: terms are the worker's resident memory. They say what this CPU engine holds, "
            "nothing about a GPU."
        )
    if len(groups) > len(ranked):
        out.notes.append(f"Pictures show the {len(ranked)} models with the most points, of {len(groups)}; the table "
                         "has all.")  # fmt: skip
    out.tables.append(_table(context, points))
    return out


def terms_of(point: Point) -> tuple[tuple[str, str, str], ...]:
    return CPU_TERMS if point.on_cpu else GPU_TERMS


def _view(name: str, points: list[Point], unit: Unit, number: int) -> View:
    shown = spread(points, BARS)
    present = [term for term in terms_of(points[0]) if any(term[0] in point.terms for point in shown)]
    capacities = {point.capacity for point in points if point.capacity}
    longest = max(max(sum(point.terms.values()), point.peak or 0.0) for point in points)
    drawn = [size for size in capacities if size <= _DWARFED * longest]
    where = "host memory" if points[0].on_cpu else "the device's memory"
    notes = []
    if len(shown) < len(points):
        notes.append(f"{len(shown)} of {len(points)} points, evenly spread by format, T and S.")
    if capacities and not drawn:
        size = max(capacities)
        notes.append(f"Not drawn: {where}, {unit.text(size)}, {size / longest:.0f} times the longest bar.")
    if any(point.peak for point in shown):
        notes.append("T: max-num-batched-tokens, S: max-num-seqs.")

    def build(width: int) -> Spec:
        return _bars(shown, present, drawn, unit, width)

    legend = [(label, LIGHT[colour]) for _, label, colour in present]
    if any(point.peak for point in shown):
        legend.append(("measured from outside", LIGHT["text"]))
    if drawn:
        legend.append((where, LIGHT["bad"]))
    chart = Chart(f"memory-{number + 1}", f"Memory by term: {short(name, 80)}", build, tuple(legend), " ".join(notes),
                  shapes={"measured from outside": "tick", where: "dashes"})  # fmt: skip
    return View(name, (chart,))


def _bars(
    points: list[Point], terms: list[tuple[str, str, str]], capacities: list[float], unit: Unit, width: int
) -> Spec:
    values, ticks = [], []
    for place, point in enumerate(points):
        whole = f"{point.label} {point.other}".rstrip()
        base = {"place": place, "href": f"#find:{point.point_id}"}
        at = 0.0
        for key, name, colour in terms:
            if size := point.terms.get(key):
                values.append({
                    **base, "from": unit.of(at), "to": unit.of(at + size), "colour": LIGHT[colour],
                    "about": f"{whole}: {name} {unit.text(size)}",
                })  # fmt: skip
                at += size
        if point.peak:
            ticks.append({**base, "at": unit.of(point.peak),
                          "about": f"{whole}: measured from outside {unit.text(point.peak)}"})  # fmt: skip
    size = 10 if width < 500 else 11
    several = len({point.other for point in points}) > 1
    labels = [_bar_label(point, several, size, LABELS * width) for point in points]
    room = max(text_width(label, size) for label in labels) + 4
    y = {
        "field": "place", "type": "ordinal", "title": None, "scale": {"paddingInner": 0.28, "paddingOuter": 0.2},
        "axis": {"labelExpr": f"{array(labels)}[datum.value]", "ticks": False, "domain": False, "labelLimit": 0,
                 "labelFontSize": size, "labelOverlap": False, "minExtent": room, "maxExtent": room},
    }  # fmt: skip
    x = {"type": "quantitative", "title": f"memory, {unit.name}", "axis": {"tickCount": 4 if width < 500 else 8}}
    common = {"href": {"field": "href"}, "description": {"field": "about"}}
    layers: list[Spec] = [
        {"data": {"values": values}, "mark": {"type": "bar"},
         "encoding": {"y": y, "x": {"field": "from", **x}, "x2": {"field": "to"},
                      "color": {"field": "colour", "type": "nominal", "scale": None}, **common}},
    ]  # fmt: skip
    if ticks:
        layers.append({
            "data": {"values": ticks}, "mark": {"type": "tick", "thickness": 2, "color": LIGHT["text"]},
            "encoding": {"y": y, "x": {"field": "at", **x}, **common},
        })  # fmt: skip
    if capacities:
        layers.append({
            "data": {"values": [{"at": unit.of(size)} for size in capacities]},
            "mark": {"type": "rule", "color": LIGHT["bad"], "strokeWidth": 1.5, "strokeDash": [5, 3]},
            "encoding": {"x": {"field": "at", **x}},
        })  # fmt: skip
    return {"width": width, "height": {"step": 19}, "autosize": {"type": "fit-x", "contains": "padding"},
            "layer": layers}  # fmt: skip


def _bar_label(point: Point, several: bool, size: float, room: float) -> str:
    """Format, T and S, and what else sets the bars apart where that is `several` things; never more than `room` px.

    Figures stay whole: what a phone has no room for is the word "pool", then the middle of the longer word.
    """
    figures = f" T {point.tokens:,} S {point.seqs:,}"
    least = min(text_width(point.quantization, size), FORMAT * size)
    other = f" {point.other}" if several and point.other else ""
    free = room - text_width(figures, size) - least
    if text_width(other, size) > free:
        other = fitted(other.replace(" pool", ""), size, free)
    return fitted(point.quantization, size, room - text_width(figures + other, size)) + figures + other


def array(words: list[str]) -> str:
    """The words as a Vega expression."""
    import json

    return json.dumps(words)


def _table(context: Context, points: list[Point]) -> Table:
    unit = context.unit
    terms = list(dict.fromkeys(term for point in points for term in terms_of(point) if term[0] in point.terms))
    keys = list(dict.fromkeys(key for key, _, _ in terms))
    names = {key: name for key, name, _ in reversed(terms)}
    digit = str(unit.decimals)
    columns = [Column("Model"), Column("Format"), Column("Pool, ranks"), Column("T", "0"), Column("S", "0"),
               *(Column(f"{names[key].partition(' (')[0]}, {unit.name}", digit) for key in keys),
               Column(f"sum, {unit.name}", digit), Column(f"measured peak, {unit.name}", digit),
               Column(f"capacity, {unit.name}", digit), Column("Starts", "0"), Column("point_id", "id")]  # fmt: skip
    rows = [
        [context.naming.group(point), point.quantization, point.other, point.tokens, point.seqs,
         *(unit.of(point.terms.get(key)) for key in keys), unit.of(sum(point.terms.values())), unit.of(point.peak),
         unit.of(point.capacity), len(point.good), point.point_id]
        for point in points
    ]  # fmt: skip
    return Table("memory", "Memory of every point", columns, rows,
                 "Medians over the restarts of a point. A term that no row gives is a dash, never zero.",
                 "SELECT * FROM engines WHERE point_id = 'POINT_ID'", sets=context.roots)  # fmt: skip
