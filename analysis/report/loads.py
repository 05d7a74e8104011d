"""Throughput against latency: every workload of a point, and the front that no other point beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from analysis.report.chart import NARROW, Chart, Spec
from analysis.report.context import Context, Section, View
from analysis.report.palette import LIGHT
from analysis.report.points import Point, median, short
from analysis.report.table import Column, Table
from analysis.rows import CLIENT_BOUND

LATENCIES: Final = (("ttft_p50_s", "TTFT p50"), ("tpot_p50_s", "TPOT p50"))
VIEWS: Final = 6
DOTS: Final = 100
"""Dots of one picture besides its front."""
HOLLOW: Final = "hollow, any shape: flagged, not to be quoted"


@dataclass(frozen=True)
class Load:
    """A workload of a point, medians over its restarts. Times in seconds, rates in tokens/s."""

    point: Point
    shape: str
    name: str
    load: str
    """What was asked of the engine: clients in a closed loop, or a rate."""
    rate: float
    medians: dict[str, float | None]
    flags: tuple[str, ...]
    runs: int
    trial: bool = False
    """Whether it is one of the loads that a knee search tried."""

    @property
    def doubtful(self) -> bool:
        """Whether its figures may be the client's, or no steady ones: nothing to quote."""
        return bool(UNSOUND & set(self.flags))

    @property
    def label(self) -> str:
        return f"{self.point.label}, {self.name}"


def loads_of(points: Sequence[Point]) -> list[Load]:
    """Of every point and workload that completed, in the order of the points."""
    found = []
    for point in points:
        by_name: dict[str, list[dict[str, object]]] = {}
        for row in point.workloads:
            if row.get("status") == "ok" and row.get("output_tokens_per_s") is not None:
                by_name.setdefault(_name(row), []).append(row)
        for name, rows in by_name.items():
            rate = median(row.get("output_tokens_per_s") for row in rows)
            assert rate is not None
            first = rows[0]
            flags = sorted({str(flag) for row in rows for flag in row.get("flags") or ()}  # type: ignore[attr-defined]
                           | {"client_bound" for row in rows if row.get("client_bound")})
            found.append(Load(
                point, f"{_count(first.get('input_tokens'))} in, {_count(first.get('output_tokens'))} out", name,
                _load(first), rate,
                {key: median(row.get(key) for row in rows)
                 for key in ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "e2e_p50_s", "requests_per_s")},
                tuple(flags), len(rows), first.get("knee_trial") is not None,
            ))  # fmt: skip
    return found


def _name(row: dict[str, object]) -> str:
    """Trials of a knee search have one name and each a load of its own: they are never pooled."""
    name = str(row.get("workload"))
    return name if row.get("knee_trial") is None else f"{name} at {_figure(row.get('knee_value'))}"


def _load(row: dict[str, object]) -> str:
    pattern = str(row.get("pattern") or "closed_loop")
    if pattern == "closed_loop":
        return f"{_count(row.get('concurrency'))} in flight"
    rate, end = row.get("rate_per_s"), row.get("rate_end_per_s")
    if rate is None:
        return pattern
    return f"{pattern}, {_figure(rate)}{'' if end is None else f' to {_figure(end)}'} requests/s"


def _figure(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, int | float) else "?"


def _count(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else "?"


def front(loads: Sequence[Load], latency: str) -> list[Load]:
    """Loads that no other beats in both: more tokens/s and less latency, by rising throughput.

    Doubtful ones are left aside: a line through figures that nobody should quote would be quoted.
    """
    best: list[Load] = []
    sound = [load for load in loads if not load.doubtful]
    for load in sorted(sound, key=lambda one: (-one.rate, one.medians[latency] or 0.0)):
        value = load.medians[latency]
        if value is not None and (not best or value < (best[-1].medians[latency] or 0.0)):
            best.append(load)
    return best[::-1]


def section(context: Context) -> Section:
    out = Section("speed", "Throughput against latency", choose="Model and lengths")
    loads = loads_of(context.good)
    if not loads:
        out.lead = "No workload completed, so there is neither throughput nor latency to show."
        return out
    groups: dict[str, list[Load]] = {}
    for load in loads:
        groups.setdefault(f"{context.naming.group(load.point)}: {load.shape}", []).append(load)
    ranked = sorted(groups, key=lambda name: (-len(groups[name]), name))[:VIEWS]
    for name in sorted(ranked):
        out.views.append(_view(context, name, groups[name], len(out.views)))
    out.lead = (
        "Up and to the left is better: more tokens per second at less waiting. The line is the Pareto front, the "
        "points that no other sound point of the picture beats in both; flagged points, the hollow marks, take no part "
        "in it. Only workloads of equal lengths share a picture."
    )
    bound = [load for load in loads if load.doubtful]
    if bound:
        out.notes.append(f"{len(bound)} of {len(loads)} figures are flagged as held back by the client or by too few "
                         "requests for their percentiles: hollow marks. Do not quote them.")  # fmt: skip
    if len(groups) > len(ranked):
        out.notes.append(f"Pictures show {len(ranked)} of {len(groups)} pairs of model and lengths; the table has all.")
    out.tables.append(_table(context, loads))
    return out


UNSOUND: Final = CLIENT_BOUND | {
    "no_steady_state", "not_steady", "few_requests_per_slot", "fewer_requests_than_slots", "failed_requests", "aborted",
}
"""Flags after which a throughput or a latency may be the client's, or no steady one."""


def _view(context: Context, name: str, loads: list[Load], number: int) -> View:
    charts = []
    formats = sorted({load.point.quantization for load in loads})
    names = {one: short(one, 28) for one in formats}
    entries = [(names[one], context.quantization_colours[one]) for one in formats]
    shapes = {names[one]: context.quantization_shapes[one] for one in formats}
    for latency, label in LATENCIES:
        have = [load for load in loads if load.medians[latency] is not None]
        if not have:
            continue
        best = front(have, latency)
        rest = [load for load in have if load not in best] if len(have) < 2000 else have
        if left := max(len(rest) - DOTS, 0):
            rest = [rest[round(place * (len(rest) - 1) / (DOTS - 1))] for place in range(DOTS)]
        doubtful = sum(load.doubtful for load in have)
        note = f"{len(have):,} {'workload' if len(have) == 1 else 'workloads'}, {len(best)} on the front."
        if doubtful == len(have):
            note = f"No front: each of the {doubtful:,} workloads is flagged."
        elif doubtful:
            note = f"{len(have):,} workloads; {len(best)} on the front of the {len(have) - doubtful:,} not flagged."
        legend = [*entries, *([("Pareto front", LIGHT["muted"])] if len(best) > 1 else []),
                  *([(HOLLOW, LIGHT["muted"])] if doubtful else [])]  # fmt: skip
        if left:
            note += f" {left:,} dots are left out of the picture, evenly; the front is of all."

        def build(width: int, best=best, rest=rest, latency=latency, label=label) -> Spec:  # type: ignore[no-untyped-def]
            return _scatter(context, rest, best, formats, latency, label, width)

        charts.append(Chart(f"speed-{number + 1}-{latency[:4]}", f"{label}: {short(name, 70)}", build, tuple(legend),
                            note, widths=(NARROW, 480), heading=label,
                            shapes={**shapes, "Pareto front": "dashes", HOLLOW: "hollow"}))  # fmt: skip
    return View(name, tuple(charts))


def _scatter(
    context: Context, rest: Sequence[Load], best: Sequence[Load], formats: list[str], latency: str, label: str,
    width: int,
) -> Spec:  # fmt: skip
    def mark(load: Load) -> Spec:
        value = (load.medians[latency] or 0.0) * 1e3
        return {
            "x": round(value, 3), "y": round(load.rate, 2), "format": load.point.quantization,
            "colour": context.quantization_colours[load.point.quantization],
            "fill": "none" if load.doubtful else context.quantization_colours[load.point.quantization],
            "href": f"#find:{load.point.point_id}",
            "about": f"{load.label}: {load.rate:,.0f} tokens/s, {label} {value:,.1f} ms"
                     f"{', flagged' if load.doubtful else ''}",
        }  # fmt: skip

    x = {"field": "x", "type": "quantitative", "title": f"{label}, ms", "scale": {"zero": False, "nice": True},
         "axis": {"tickCount": 5}}  # fmt: skip
    y = {"field": "y", "type": "quantitative", "title": "generated tokens/s", "scale": {"zero": True},
         "axis": {"tickCount": 5}}  # fmt: skip
    shapes = [context.quantization_shapes[one] for one in formats]
    common = {
        "x": x, "y": y, "stroke": {"field": "colour", "type": "nominal", "scale": None},
        "fill": {"field": "fill", "type": "nominal", "scale": None},
        "shape": {"field": "format", "type": "nominal", "scale": {"domain": formats, "range": shapes}, "legend": None},
        "href": {"field": "href"}, "description": {"field": "about"},
    }  # fmt: skip
    return {
        "width": width, "height": 300, "autosize": {"type": "fit", "contains": "padding"},
        "layer": [
            {"data": {"values": [mark(load) for load in best]},
             "mark": {"type": "line", "color": LIGHT["muted"], "strokeWidth": 1.5, "strokeDash": [4, 3]},
             "encoding": {"x": x, "y": y}},
            {"data": {"values": [mark(load) for load in rest]},
             "mark": {"type": "point", "size": 38, "fillOpacity": 0.55, "strokeWidth": 1.2}, "encoding": common},
            {"data": {"values": [mark(load) for load in best]},
             "mark": {"type": "point", "size": 70, "fillOpacity": 1, "strokeWidth": 1.5}, "encoding": common},
        ],
    }  # fmt: skip


def _table(context: Context, loads: Sequence[Load]) -> Table:
    def ms(load: Load, key: str) -> float | None:
        value = load.medians[key]
        return None if value is None else 1e3 * value

    columns = [Column("Model"), Column("Format"), Column("T", "0"), Column("S", "0"), Column("Workload"),
               Column("Load"), Column("tokens/s", "1"), Column("TTFT p50, ms", "1"),
               Column("TTFT p99, ms", "1"), Column("TPOT p50, ms", "2"), Column("TPOT p99, ms", "2"),
               Column("E2E p50, ms", "0"), Column("Starts", "0"), Column("Flags"),
               Column("point_id", "id")]  # fmt: skip
    rows = [
        [context.naming.group(load.point), load.point.quantization, load.point.tokens, load.point.seqs, load.name,
         load.load, load.rate, ms(load, "ttft_p50_s"), ms(load, "ttft_p99_s"), ms(load, "tpot_p50_s"),
         ms(load, "tpot_p99_s"), ms(load, "e2e_p50_s"), load.runs, ", ".join(load.flags), load.point.point_id]
        for load in loads
    ]  # fmt: skip
    return Table("workloads", "Every workload", columns, rows, "Medians over the restarts of a point.",
                 "SELECT * FROM workloads WHERE point_id = 'POINT_ID'", sets=context.roots)  # fmt: skip
