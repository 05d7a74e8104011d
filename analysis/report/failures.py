"""What did not start, what was pruned before a start, and why, in sentences."""

from __future__ import annotations

from collections import Counter
from typing import Final

from analysis.report.chart import Chart, Spec
from analysis.report.context import Context, Section, View
from analysis.report.lettering import fitted
from analysis.report.lettering import width as text_width
from analysis.report.memory import LABELS, array
from analysis.report.palette import LIGHT
from analysis.report.table import Column, Table

MOST: Final = 14
"""Bars, at most; the table has every failure."""


def section(context: Context) -> Section:
    out = Section("failures", "Failures and pruned points")
    rows = [(point, row) for point in context.points for row in point.rows
            if row.get("status") in ("failed", "pruned", "memory_only")]  # fmt: skip
    loads = [(point, load) for point in context.points for load in point.workloads if load.get("status") != "ok"]
    if not rows and not loads:
        starts = sum(len(point.rows) for point in context.points)
        out.lead = f"None: each of the {starts:,} starts is ok." if starts else "There are no rows at all."
        return out
    counts = Counter(
        (str(row.get("status")), str(row.get("failure_phase") or ""), str(row.get("failure_cause") or "no cause given"))
        for _, row in rows
    )
    out.lead = (
        "A failed start is a result: its phase, its cause, and what was missing. Pruned points were never started, "
        "because arithmetic says that they cannot fit."
    )
    if len(counts) > MOST:
        out.notes.append(f"The picture shows the {MOST} most frequent of {len(counts)} causes; the table has all.")
    if counts:
        out.views.append(View("failures", (Chart(
            "failures", "Starts that gave no full measurement, by phase and cause",
            lambda width: _bars(counts, width),
        ),)))  # fmt: skip
    columns = [Column("Status"), Column("Phase"), Column("Cause"), Column("Model"), Column("Format"), Column("T", "0"),
               Column("S", "0"), Column("Why", "prose"),
               Column(f"Missing, {context.unit.name}", str(context.unit.decimals)), Column("run_id", "id")]  # fmt: skip
    out.tables.append(Table(
        "failures", "Every failure and pruned point", columns,
        [[row.get("status"), _words(row.get("failure_phase")), _words(row.get("failure_cause")),
          context.naming.group(point), point.quantization, point.tokens or None, point.seqs or None, _why(row),
          context.unit.of(row.get("shortfall_bytes")), row.get("run_id")] for point, row in rows],  # type: ignore[arg-type]
        "", "SELECT failure_phase, failure_sentence, failure_detail, log_file FROM engines WHERE run_id = 'RUN_ID'",
        open=True, sets=context.roots,
    ))  # fmt: skip
    if loads:
        out.tables.append(Table(
            "failed-workloads", "Workloads that did not complete",
            [Column("Model"), Column("Format"), Column("Workload"), Column("Cause"), Column("Why", "prose"),
             Column("run_id", "id")],
            [[context.naming.group(point), point.quantization, load.get("workload"), _words(load.get("failure_cause")),
              load.get("failure_sentence"), load.get("run_id")] for point, load in loads],
            sets=context.roots, query="SELECT * FROM workloads WHERE run_id = 'RUN_ID'",
        ))  # fmt: skip
    return out


def _words(name: object) -> str:
    return str(name or "").replace("_", " ")


def _why(row: dict[str, object]) -> str:
    words = [str(row[name]) for name in ("failure_sentence",) if row.get(name)]
    if row.get("missing_kernel"):
        words.append(f"missing kernel: {row['missing_kernel']}")
    return "; ".join(words) or "the row gives no sentence"


def _bars(counts: Counter[tuple[str, str, str]], width: int) -> Spec:
    size = 10 if width < 500 else 11
    values, labels = [], []
    for place, ((status, phase, cause), count) in enumerate(counts.most_common(MOST)):
        name = ", ".join(word for word in (_words(status), _words(phase), _words(cause)) if word)
        labels.append(fitted(name, size, LABELS * width))
        values.append({"place": place, "count": count, "text": f"{count:,}",
                       "about": f"{name}: {count:,} {'start' if count == 1 else 'starts'}"})  # fmt: skip
    room = max(text_width(label, size) for label in labels) + 4
    # The figure stands behind its bar, so the longest bar ends where its figure still has room.
    most = max(counts.values())
    behind = max(text_width(f"{most:,}", 11) + 8, 0.05 * width)
    plot = width - room - 12
    y = {"field": "place", "type": "ordinal", "title": None,
         "axis": {"labelExpr": f"{array(labels)}[datum.value]", "ticks": False, "domain": False, "labelLimit": 0,
                  "labelFontSize": size, "labelOverlap": False, "minExtent": room, "maxExtent": room}}  # fmt: skip
    x = {"field": "count", "type": "quantitative", "title": "starts", "axis": {"tickMinStep": 1, "tickCount": 4},
         "scale": {"domain": [0, most * plot / (plot - behind)], "nice": False}}  # fmt: skip
    return {
        "width": width, "height": {"step": 26}, "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": values},
        "layer": [
            {"mark": {"type": "bar", "color": LIGHT["c6"], "height": {"band": 0.6}},
             "encoding": {"x": x, "y": y, "description": {"field": "about"}}},
            {"mark": {"type": "text", "align": "left", "dx": 4, "color": LIGHT["text"]},
             "encoding": {"x": x, "y": y, "text": {"field": "text"}}},
        ],
    }  # fmt: skip
