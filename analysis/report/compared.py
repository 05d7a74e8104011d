"""Two or more sets side by side, as `python -m analysis compare` judges them."""

from __future__ import annotations

from html import escape
from typing import Any, Final

from analysis.report.context import Context, Section
from analysis.report.table import Column, Table, box

CORRECTIONS: Final = {"bh": "Benjamini-Hochberg", "holm": "Holm", "none": "none"}
_ORDER: Final = {name: place for place, name in enumerate(("changed", "exact", "undecided", "no_change", "same"))}


def section(context: Context) -> Section:
    from analysis.compare import Options, compare_sets

    out = Section("compare", "Comparison of the sets")
    found = compare_sets([one.root for one in context.sets], Options())
    base = found.baseline
    out.notes += [*found.warnings, *found.notes]
    records = sorted(found.records(), key=lambda one: (_ORDER[one["verdict"]], -abs(one["change_pct"] or 0.0)))
    out.lead = _lead(found, len(records))
    out.html = _differences(found) + (_overall(found) if found.geomeans else "")
    columns = [Column("Verdict"), Column("Cell", "prose"), Column("Metric"), Column("Set"), Column(base, "3"),
               Column("that set", "3"), Column("change", "3"), Column("low", "3"), Column("high", "3"), Column("Unit"),
               Column("change, %", "2"), Column("p, corrected", "4"), Column(f"n, {base}", "0"),
               Column("n, that set", "0"), Column("needs n", "0")]  # fmt: skip
    names = ("cell", "metric", "other", "median_a", "median_b", "change", "low", "high", "unit", "change_pct",
             "p_adjusted", "n_a", "n_b", "need_n")  # fmt: skip
    out.tables.append(Table(
        "compared", "Every comparison", columns,
        [[one["verdict"].replace("_", " "), *(one[name] for name in names)] for one in records],
        "What changed most comes first. Values are medians over restarts; needs n: the restarts on each side without "
        "which no test can decide.", open=True,
    ))  # fmt: skip
    if found.outcomes:
        out.tables.append(Table(
            "outcomes", "Starts that ended differently",
            [Column("Cell", "prose"), Column("Set"), Column(f"in {base}"), Column("in that set"), Column("Kind")],
            [[one.cell, one.column, _counts(one.before), _counts(one.after), one.kind] for one in found.outcomes],
            open=True,
        ))  # fmt: skip
    if found.only:
        out.tables.append(Table(
            "only", "Cells that not every set has", [Column("Cell", "prose"), Column("in"), Column("not in")],
            [[one.cell, ", ".join(one.present), ", ".join(one.absent)] for one in found.only],
        ))  # fmt: skip
    return out


def _lead(found: Any, count: int) -> str:
    if not count:
        return "The sets have no cell and metric in common, so nothing can be compared."
    changed, exact, undecided = (found.count(name) for name in ("changed", "exact", "undecided"))
    words = [f"{changed:,} changed"]
    words += [f"{exact:,} differ without any spread between restarts"] if exact else []
    words += [f"{undecided:,} cannot be decided with so few restarts"] if undecided else []
    return (
        f"Against {found.baseline}, of {count:,} pairs of cell and metric: {', '.join(words)}. Test: {found.test}; "
        f"correction over {found.tests:,} tests: {CORRECTIONS.get(found.correction, found.correction)}; alpha "
        f"{found.alpha:g}; interval: {found.interval}." + (f" {found.test_note}" if found.test_note else "")
    )


def _differences(found: Any) -> str:
    if not found.differences:
        return ""
    roles = {"question": "what is compared", "warning": "differs besides", "minor": "minor"}
    lines = "".join(
        f"<li><strong>{escape(str(one.column))}</strong> ({escape(roles.get(one.role, str(one.role)))}): "
        f"{escape(' → '.join(' | '.join(map(str, values)) or 'none' for values in one.values))}</li>"
        for one in found.differences
    )
    return f"<p>Metadata that differs:</p><ul>{lines}</ul>"


def _overall(found: Any) -> str:
    """Geometric means over the cells, to be read at a glance."""
    lines = "".join(
        f"<tr><td>{escape(one.metric)}</td><td>{escape(one.column)}</td><td class=n>{100 * (one.ratio - 1):+.2f} %</td>"
        f"<td class=n>{one.cells:,}</td></tr>"
        for one in found.geomeans
    )
    return (f"{box('Geometric means')}<table class=plain><caption>Geometric mean of the ratios of medians, over all "
            "cells</caption><thead><tr><th scope=col>Metric</th><th scope=col>Set</th><th scope=col class=n>Change</th>"
            f"<th scope=col class=n>Cells</th></tr></thead><tbody>{lines}</tbody></table></div>")  # fmt: skip


def _counts(outcome: dict[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in outcome.items()) if outcome else "–"
