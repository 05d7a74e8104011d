"""Two or more sets side by side, as `python -m analysis compare` judges them."""

from __future__ import annotations

from html import escape
from typing import Any, Final

from analysis.report.context import Context, Section
from analysis.report.table import Column, Table

FOUND: Final = ("changed", "exact")


def section(context: Context) -> Section:
    from analysis.compare import Options, compare_sets
    from analysis.compare.model import VERDICTS

    out = Section("compare", "Comparison of the sets")
    found = compare_sets([one.root for one in context.sets], Options())
    changes = found.changes
    names = [column.label for column in found.columns]
    out.notes += [*found.warnings, *found.notes]
    verdicts = [VERDICTS[int(code)] for code in changes.verdict]
    rows: list[list[Any]] = []
    for place, verdict in enumerate(verdicts):
        metric = found.metrics[int(changes.metric[place])]
        value = {name: _number(getattr(changes, name)[place]) for name in
                 ("median_a", "median_b", "change", "low", "high", "change_pct", "p_adjusted")}  # fmt: skip
        rows.append([
            verdict.replace("_", " "), found.cells[int(changes.cell[place])].name, metric.name,
            names[int(changes.column[place])], value["median_a"], value["median_b"], value["change"], value["low"],
            value["high"], metric.unit, value["change_pct"], value["p_adjusted"], int(changes.n_a[place]),
            int(changes.n_b[place]),
        ])  # fmt: skip
    order = {name: place for place, name in enumerate(("changed", "exact", "undecided", "no_change", "same"))}
    ranked = sorted(range(len(rows)), key=lambda i: (order.get(verdicts[i], 9), -abs(rows[i][10] or 0.0)))
    rows = [rows[place] for place in ranked]
    different = sum(verdict in FOUND for verdict in verdicts)
    undecided = verdicts.count("undecided")
    out.lead = (
        f"Against {names[0]}: {different:,} of {len(rows):,} cells and metrics changed"
        + (f", {undecided:,} cannot be decided with so few restarts" if undecided else "")
        + f". Test: {found.test}; correction over {found.comparisons:,} comparisons: {found.correction}; "
        f"alpha {found.alpha:g}; interval: {found.interval}."
    )
    if found.differences:
        lines = "".join(
            f"<li><strong>{escape(str(one.column))}</strong> ({escape(str(one.role))}): "
            f"{escape(' → '.join(' | '.join(map(str, values)) for values in one.values))}</li>"
            for one in found.differences
        )
        out.html = f"<p>What differs in the checked metadata:</p><ul>{lines}</ul>"
    columns = [Column("Verdict"), Column("Cell"), Column("Metric"), Column("Set"), Column(f"{names[0]}", "3"),
               Column("this set", "3"), Column("change", "3"), Column("low", "3"), Column("high", "3"), Column("Unit"),
               Column("change, %", "2"), Column("p, corrected", "4"), Column("n", "0"),
               Column("n this", "0")]  # fmt: skip
    out.tables.append(Table("compared", "Every comparison", columns, rows, "What changed most comes first.", open=True))
    if found.outcomes:
        out.tables.append(Table(
            "outcomes", "Starts that ended differently",
            [Column("Cell"), Column("Set"), Column("before"), Column("after"), Column("Kind")],
            [[one.cell, one.column, _counts(one.before), _counts(one.after), one.kind] for one in found.outcomes],
            open=True,
        ))  # fmt: skip
    if found.only:
        out.tables.append(Table(
            "only", "Cells that not every set has", [Column("Cell"), Column("in"), Column("not in")],
            [[one.cell, ", ".join(one.present), ", ".join(one.absent)] for one in found.only],
        ))  # fmt: skip
    return out


def _number(value: Any) -> float | None:
    number = float(value)
    return number if number == number and abs(number) != float("inf") else None


def _counts(outcome: Any) -> str:
    return ", ".join(f"{count} {name}" for name, count in outcome.items()) if outcome else "–"
