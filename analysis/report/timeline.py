"""The telemetry of any run with its phases: one is drawn into the page, the others by the embedded Vega when chosen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from analysis.report.chart import NARROW, Chart, Spec, config
from analysis.report.context import Context, Section, View
from analysis.report.palette import LIGHT
from analysis.report.points import MIB, Point, short
from analysis.report.read import ResultSet, Row

SLICES: Final = 140
"""Points of a line; each is the highest value of its slice of the run, so that no peak is lost."""
RUNS: Final = 200
"""Runs embedded, at most."""
BUDGET_VALUES: Final = 200_000
"""Numbers embedded over all runs: some 1 MB of the page."""

_PHASES: Final = (
    ("gate", "c8"), ("start", "c8"), ("idle", "c8"), ("launch", "c2"), ("ready", "c3"), ("warmup", "c5"),
    ("load", "c1"), ("stop", "c4"),
)  # fmt: skip


def section(context: Context) -> Section:
    out = Section("timeline", "Telemetry timeline")
    by_name = {one.name: one for one in context.sets}
    runs = _order(context.points)
    if not runs:
        out.lead = "There is no start, so there is no timeline."
        return out
    kept: list[dict[str, Any]] = []
    budget = BUDGET_VALUES
    for point, row in runs:
        if len(kept) >= RUNS or budget <= 0:
            break
        samples = by_name[point.set_name].timeline(str(row.get("run_id")))
        if one := decimated(samples, point, row):
            kept.append(one)
            budget -= 4 * len(one["t"])
    if not kept:
        out.lead = "No telemetry of these starts could be read: the set holds no samples for them."
        return out
    kept.sort(key=lambda one: one["name"])
    default = max(kept, key=lambda one: (one["status"] == "ok", len(one["phases"]), max(filter(None, one["a"]),
                                                                                       default=0)))  # fmt: skip
    out.lead = (
        "What one engine start looked like over time: memory above, activity below, phases as bands. "
        f"Each line has at most {SLICES} points, each the peak of its slice of time; dots are single readings, and "
        "nothing is drawn between them. Of several GPUs the first is drawn. Every sample is in the set's samples table."
    )
    if len(kept) < len(runs):
        out.notes.append(f"{len(kept):,} of {len(runs):,} runs are embedded: failed and flagged ones first, the others "
                         "evenly over the grid; runs without samples are left out.")  # fmt: skip
    out.views.append(View("timeline", (Chart(
        "timeline", f"Timeline of {default['name']}, run {default['run']}", lambda width: spec(default, width),
        _legend(default), shapes={default["names"][0]: "line", default["names"][1]: "circle"},
    ),)))  # fmt: skip
    out.data = {"runs": kept, "chosen": kept.index(default)}
    return out


def _order(points: Sequence[Point]) -> list[tuple[Point, Row]]:
    """Failed starts, flagged ones, then the rest evenly over the grid: what a reader would ask for first."""
    rows = [(point, row) for point in points for row in point.rows if row.get("status") != "pruned"]
    if len(rows) <= RUNS:
        return rows
    failed = [pair for pair in rows if pair[1].get("status") == "failed"][: RUNS // 4]
    flagged = [pair for pair in rows if pair[1].get("status") != "failed" and pair[1].get("flags")][: RUNS // 4]
    taken = {id(row) for _, row in [*failed, *flagged]}
    rest = [pair for pair in rows if id(pair[1]) not in taken]
    room = RUNS - len(failed) - len(flagged)
    evenly = [rest[round(i * (len(rest) - 1) / max(room - 1, 1))] for i in range(min(room, len(rest)))]
    seen = {id(row) for _, row in [*failed, *flagged, *evenly]}
    return [*failed, *flagged, *evenly, *(pair for pair in rest if id(pair[1]) not in seen)]


def decimated(samples: Sequence[Row], point: Point, row: Row) -> dict[str, Any] | None:
    """One run for the page: times in 0.01 s, memory in MiB, activity in 0.01 of its unit; None without samples."""
    index = min((one["device_index"] for one in samples if one.get("device_index") is not None), default=None)  # type: ignore[type-var]
    samples = [one for one in samples if one.get("device_index") == index]
    if len(samples) < 2:
        return None
    on_gpu = any(one.get("device_memory_used_bytes") is not None for one in samples)
    first, second = (("device_memory_used_bytes", "process_memory_used_bytes") if on_gpu
                     else ("tree_rss_bytes", "tree_pss_bytes"))  # fmt: skip
    if not on_gpu and all(one.get("tree_rss_bytes") is None for one in samples):
        first = "cgroup_bytes"
    activity = _gpu_busy(samples) if on_gpu else _cores(samples)
    count = min(SLICES, len(samples))
    edges = [round(i * len(samples) / count) for i in range(count + 1)]
    t, a, b, c = [], [], [], []
    for low, high in zip(edges, edges[1:], strict=False):
        part = samples[low:high]
        t.append(round(float(part[0]["t_s"]) * 100))  # type: ignore[arg-type]
        a.append(_peak(one.get(first) for one in part))
        b.append(_peak(one.get(second) for one in part))
        heights = [value for value in activity[low:high] if value is not None]
        c.append(round(100 * max(heights)) if heights else None)
    phases: list[list[Any]] = []
    for one in samples:
        name = str(one.get("phase"))
        if not phases or phases[-1][2] != name:
            if phases:
                phases[-1][1] = round(float(one["t_s"]) * 100)  # type: ignore[arg-type]
            phases.append([round(float(one["t_s"]) * 100), 0, name])  # type: ignore[arg-type]
    phases[-1][1] = round(float(samples[-1]["t_s"]) * 100)  # type: ignore[arg-type]
    names = ("device (NVML)", "this engine (NVML)") if on_gpu else (
        "process tree, RSS" if first == "tree_rss_bytes" else "memory cgroup", "process tree, PSS")  # fmt: skip
    repeat = row.get("repeat")
    return {
        "name": " ".join(f"{short(point.model, 14)} {point.label}".split()) + (f" r{repeat}" if repeat else ""),
        "run": row.get("run_id"), "status": row.get("status"), "n": len(samples), "t": t, "a": a,
        "b": b if any(value is not None for value in b) else [], "c": c, "phases": phases, "names": names,
        "activity": "GPU busy, %" if on_gpu else "CPU cores in use",
    }  # fmt: skip


def _peak(values: Any) -> int | None:
    sizes = [value for value in values if value is not None]
    return round(max(sizes) / MIB) if sizes else None


def _gpu_busy(samples: Sequence[Row]) -> list[float | None]:
    return [None if (busy := one.get("gpu_utilization_pct")) is None else float(busy) for one in samples]  # type: ignore[arg-type]


def _cores(samples: Sequence[Row], over: int = 5) -> list[float | None]:
    """CPU seconds per second of the process tree, over a few samples: one alone is as coarse as the clock tick."""
    found: list[float | None] = []
    for place, one in enumerate(samples):
        before = samples[max(place - over, 0)]
        spent, passed = (one.get(key) for key in ("tree_cpu_s", "t_s"))
        if None in (spent, passed, before.get("tree_cpu_s")) or passed == before["t_s"]:
            found.append(None)
        else:
            found.append(max((spent - before["tree_cpu_s"]) / (passed - before["t_s"]), 0.0))  # type: ignore[operator]
    return found


def _legend(run: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    names = [(run["names"][0], LIGHT["text"])] + ([(run["names"][1], LIGHT["c6"])] if run["b"] else [])
    used = {phase[2].partition(":")[0] for phase in run["phases"]}
    return (*names, *((f"{name}", LIGHT[colour]) for name, colour in _PHASES
                      if name in used and not (name in ("start", "idle") and "gate" in used)))  # fmt: skip


def values_of(run: dict[str, Any]) -> tuple[list[Spec], list[Spec]]:
    """The lines and the phases of a run as Vega's rows; page.js does the same for the other runs."""
    lines = [
        {"t": t / 100, "a": a, "b": run["b"][i] if run["b"] else None, "c": None if c is None else c / 100}
        for i, (t, a, c) in enumerate(zip(run["t"], run["a"], run["c"], strict=True))
    ]
    bands = [
        {"from": low / 100, "to": high / 100, "phase": name, "kind": name.partition(":")[0]}
        for low, high, name in run["phases"]
    ]
    return lines, bands


def spec(run: dict[str, Any], width: int) -> Spec:
    lines, bands = values_of(run)
    inner = width - 62
    kinds = [name for name, _ in _PHASES]
    phases = {"field": "kind", "type": "nominal", "legend": None,
              "scale": {"domain": kinds, "range": [LIGHT[colour] for _, colour in _PHASES]}}  # fmt: skip
    x = {"field": "t", "type": "quantitative", "axis": {"tickCount": 6, "grid": False},
         "scale": {"nice": False, "zero": True}}  # fmt: skip

    # PSS is read far more seldom than the rest: a line between two readings would show a rise that nobody saw.
    marks = {True: {"type": "line", "strokeWidth": 1.6, "interpolate": "linear"},
             False: {"type": "point", "filled": True, "size": 16, "opacity": 1}}  # fmt: skip

    def panel(height: int, title: str, fields: list[tuple[str, str, bool]], last: bool) -> Spec:
        across = {**x, "title": "seconds since the sampler started" if last else None}
        return {
            "width": inner, "height": height,
            "layer": [
                {"data": {"name": "bands", "values": bands}, "mark": {"type": "rect", "opacity": 0.16},
                 "encoding": {"x": {**across, "field": "from"}, "x2": {"field": "to"}, "color": phases,
                              "description": {"field": "phase"}}},
                *({"data": {"name": "lines", "values": lines},
                   "transform": [{"filter": f"datum.{name} !== null"}],
                   "mark": {**marks[joined], "color": colour},
                   "encoding": {"x": across, "y": {"field": name, "type": "quantitative", "title": title,
                                                   "axis": {"tickCount": 4}}}}
                  for name, colour, joined in fields),
            ],
        }  # fmt: skip

    memory = [("a", LIGHT["text"], True), *([("b", LIGHT["c6"], False)] if run["b"] else [])]
    below = panel(90, run["activity"], [("c", LIGHT["c1"], True)], True)
    return {"vconcat": [panel(180, "memory, MiB", memory, False), below], "spacing": 14}


@cache
def template() -> Any:
    """The chart compiled to Vega, with marks for what the page's script fills in; colours are the page's variables."""
    import json

    import vl_convert

    empty = {"t": [0], "a": [0], "b": [0], "c": [0], "phases": [[0, 1, "@"]], "activity": "@activity@",
             "names": ("", "")}  # fmt: skip
    compiled = vl_convert.vegalite_to_vega({"config": config(), **spec(empty, NARROW + 62)})
    text = json.dumps(compiled)
    by_hex = {value: name for name, value in LIGHT.items()}
    return json.loads(re.sub(r'"(#[0-9a-f]{6})"', lambda found: f'"var(--{by_hex[found[1]]})"'
                             if found[1] in by_hex else found[0], text))  # fmt: skip


@cache
def bundle() -> str:
    """Vega-Embed as one script that sets `window.vegaEmbed`; Vega itself is not exported by this bundler (null)."""
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def sets_with_samples(sets: Sequence[ResultSet]) -> list[str]:
    """Names of the sets that have a samples table at all."""
    return [one.name for one in sets if any((one.root / "samples").glob("*.parquet"))]
