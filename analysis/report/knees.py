"""Knee searches: the trials on a live engine, what broke the objective, and the highest load that held."""

from __future__ import annotations

import json
from typing import Final

from analysis.report.chart import NARROW, Chart, Spec
from analysis.report.context import Context, Section, View
from analysis.report.palette import LIGHT
from analysis.report.points import Point, short
from analysis.report.read import Row
from analysis.report.table import Column, Table
from analysis.rows import held_back

CHARTS: Final = 9
UNITS: Final = {"rate": "requests/s", "concurrency": "requests in flight"}

Search = tuple[Point, list[Row]]
"""All trials of one search on one engine start."""


def searches(context: Context) -> list[Search]:
    """Every search of the sets, in the order of their points."""
    found = []
    for point in context.points:
        by_run: dict[tuple[str, str], list[Row]] = {}
        for row in point.workloads:
            if row.get("knee_trial") is not None and row.get("knee_value") is not None:
                by_run.setdefault((str(row.get("run_id")), str(row.get("workload"))), []).append(row)
        found += [(point, sorted(rows, key=lambda row: row["knee_trial"])) for rows in by_run.values()]  # type: ignore[arg-type,return-value]
    return found


def section(context: Context) -> Section | None:
    every = searches(context)
    if not every:
        return None
    out = Section("knees", "Knee: the highest load that holds")
    out.lead = (
        "Each mark is one trial on the live engine, at a load that the search chose from the trials before: blue where "
        "the objective held, orange where it broke. The upright line is the answer, the highest load that held."
    )
    shown = every[:CHARTS]
    if len(shown) < len(every):
        out.notes.append(f"Pictures show {len(shown)} of {len(every):,} searches; the table has all.")
    bound = [row for _, rows in every for row in rows if held_back(row)]
    if bound:
        count = sum(len(rows) for _, rows in every)
        out.notes.append(f"{len(bound):,} of {count:,} trials were held back by the client, not the "
                         "engine: the engine's knee may lie higher.")  # fmt: skip
    charts = tuple(_chart(context, *one, number) for number, one in enumerate(shown, 1))
    out.views.append(View("knees", charts))
    out.tables += [_answers(context, every), _trials(context, every)]
    return out


def objective(row: Row) -> str:
    """The objective in words, such as `ttft_p99_s ≤ 0.5`."""
    try:
        limits = json.loads(str(row.get("knee_slo_json") or "{}"))
        return ", ".join(f"{name} {'≥' if 'goodput' in name else '≤'} {limit:g}" for name, limit in limits.items())
    except (ValueError, AttributeError, TypeError):
        return str(row.get("knee_slo_json"))


def answer(row: Row) -> str:
    """What a search found, in words; the row is any of its trials."""
    unit = UNITS.get(str(row.get("knee_axis")), "")
    met, broken = row.get("knee_highest_met"), row.get("knee_lowest_broken")
    match row.get("knee_outcome"):
        case "bracketed":
            return f"holds at {_number(met)}, breaks at {_number(broken)} {unit}"
        case "at_least":
            return f"holds at {_number(met)} {unit}, the highest load tried"
        case "below":
            return f"breaks at {_number(broken)} {unit}, the lowest load tried"
        case _:
            return f"unfinished: held at {_number(met)}, broke at {_number(broken)} {unit}"


def _number(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, int | float) else "none"


def _chart(context: Context, point: Point, rows: list[Row], number: int) -> Chart:
    first = rows[0]
    workload = short(str(first.get("workload")), 30)
    return Chart(
        f"knee-{number}", f"{short(context.naming.group(point), 40)} {point.label}: {workload}",
        lambda width: _curve(rows, width), note=f"{answer(first)[:1].upper()}{answer(first)[1:]}. {objective(first)}.",
        widths=(NARROW,), heading=f"{short(context.naming.group(point), 24)}: {workload}",
    )  # fmt: skip


def _curve(rows: list[Row], width: int) -> Spec:
    values = [
        {"x": row["knee_value"], "rate": row.get("output_tokens_per_s"),
         "ttft": None if row.get("ttft_p99_s") is None else 1e3 * row["ttft_p99_s"],  # type: ignore[operator]
         "colour": LIGHT["c1" if row.get("knee_met") else "c6"], "href": f"#find:{row.get('run_id')}",
         "about": f"trial {row['knee_trial']}: {_number(row['knee_value'])} "
                  f"{UNITS.get(str(row.get('knee_axis')), '')}, {row.get('knee_reason') or 'the objective held'}"}
        for row in rows
    ]  # fmt: skip
    met = rows[0].get("knee_highest_met")
    x = {"field": "x", "type": "quantitative", "scale": {"type": "log", "nice": False, "padding": 14},
         "axis": {"tickCount": 5, "format": ",.3~r", "labelOverlap": "greedy"}}  # fmt: skip

    def panel(field: str, title: str, last: bool) -> Spec:
        across = {**x, "title": f"load, {UNITS.get(str(rows[0].get('knee_axis')), '')}" if last else None}
        y = {"field": field, "type": "quantitative", "title": title, "axis": {"tickCount": 4}}
        line: list[Spec] = []
        if isinstance(met, int | float) and met > 0:
            line = [{"data": {"values": [{"x": met}]}, "encoding": {"x": across},
                     "mark": {"type": "rule", "color": LIGHT["good"], "strokeWidth": 1.5}}]  # fmt: skip
        known = [one for one in values if one[field] is not None]
        return {"width": width - 76, "height": 120, "data": {"values": known},
                "layer": [*line,
                          {"mark": {"type": "point", "filled": True, "size": 40, "opacity": 0.85},
                           "encoding": {"x": across, "y": y, "href": {"field": "href"},
                                        "description": {"field": "about"},
                                        "color": {"field": "colour", "type": "nominal", "scale": None}}}]}  # fmt: skip

    return {"vconcat": [panel("rate", "generated tokens/s", False), panel("ttft", "TTFT p99, ms", True)], "spacing": 10}


def _answers(context: Context, every: list[Search]) -> Table:
    columns = [Column("Model"), Column("Format"), Column("T", "0"), Column("S", "0"), Column("Workload"),
               Column("Answer", "prose"), Column("Objective", "prose"), Column("Trials", "0"), Column("Notes", "prose"),
               Column("run_id", "id")]  # fmt: skip
    rows = [[context.naming.group(point), point.quantization, point.tokens, point.seqs, trials[0].get("workload"),
             answer(trials[0]), objective(trials[0]), len(trials), trials[0].get("knee_notes"), trials[0].get("run_id")]
            for point, trials in every]  # fmt: skip
    return Table("knees", "Every search", columns, rows, open=True)


def _trials(context: Context, every: list[Search]) -> Table:
    columns = [Column("Model"), Column("Workload"), Column("Trial", "0"), Column("Load", "3"), Column("Unit"),
               Column("Held"), Column("Why not", "prose"), Column("tokens/s", "1"), Column("TTFT p99, ms", "1"),
               Column("TPOT p99, ms", "2"), Column("Client-bound"), Column("run_id", "id")]  # fmt: skip
    rows = [
        [context.naming.group(point), row.get("workload"), row["knee_trial"], row["knee_value"],
         UNITS.get(str(row.get("knee_axis")), ""), row.get("knee_met"), row.get("knee_reason"),
         row.get("output_tokens_per_s"), *(None if row.get(name) is None else 1e3 * row[name]  # type: ignore[operator]
                                           for name in ("ttft_p99_s", "tpot_p99_s")),
         held_back(row), row.get("run_id")]
        for point, trials in every for row in trials
    ]  # fmt: skip
    return Table("knee-trials", "Every trial", columns, rows, "In the order in which they ran.",
                 "SELECT * FROM workloads WHERE run_id = 'RUN_ID' AND knee_trial IS NOT NULL ORDER BY knee_trial",
                 sets=context.roots)  # fmt: skip
