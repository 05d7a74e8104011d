"""A history for people: text or Markdown, with a line of bars."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from typing import Any

from analysis.compare.page import Page
from analysis.history.series import Change, History

BARS = "▁▂▃▄▅▆▇█"
LISTED = 20


def sparkline(values: Sequence[float | None]) -> str:
    """One bar per value between the least and the largest; a blank where there is none."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return ""
    low, span = min(known), (max(known) - min(known)) or 1.0
    return "".join(
        " " if value is None or not math.isfinite(value) else BARS[min(7, int(8 * (value - low) / span))]
        for value in values
    )


def page(one: History, markdown: bool = False, width: int = 118) -> str:
    """The whole text."""
    out = Page(markdown, max(60, width))
    metric = one.metric
    unit = f", {metric.unit}" if metric.unit else ""
    out.title(f"{metric.name}{unit} over {len(one.points)} sets, by {one.order}")
    for warning in one.warnings:
        out.text(f"WARNING: {warning}")
    first = next((at for at, point in enumerate(one.points) if math.isfinite(point.value)), 0)
    starts = {change.at: change for change in one.changes}
    rows = []
    for at, point in enumerate(one.points):
        day = (
            datetime.datetime.fromtimestamp(point.started_unix_s, datetime.UTC).strftime("%Y-%m-%d")
            if math.isfinite(point.started_unix_s)
            else ""
        )
        mark = f"{starts[at].per_cent:+.2f}%" if at in starts else ""
        rows.append(
            [
                point.label,
                point.version,
                day,
                str(point.cells),
                str(point.restarts),
                _figure(point.value),
                f"{100 * (point.value / one.points[first].value - 1):+.2f}%"
                if math.isfinite(point.value) and at > first
                else "",
                mark,
            ]
        )
    out.table(["set", "vLLM", "first start", "cells", "restarts", f"{metric.name}", "since first", "change"], rows)
    if one.shared_cells:
        bars = sparkline([point.value for point in one.points])
        out.text(
            f"{bars}  geometric mean over the {one.shared_cells} of {one.total_cells} cells that {_every(one)}, of the "
            "medians of their restarts"
        )
    out.title("Change points")
    if one.changes:
        for change in one.changes:
            out.text(_sentence(one, change))
    elif not one.shared_cells:
        out.text(f"nothing was tested over the cells together: none of the {one.total_cells} is one that {_every(one)}")
    elif one.noise_source:
        out.text("none in the shared cells together: no step stands out of the noise")
    if not one.tested_cells:
        out.text("no single cell was tested either" if not one.shared_cells else "no single cell was tested")
    elif not one.cell_changes:
        out.text(f"single cells, corrected over them: none of the {one.tested_cells} that were tested changes")
    if one.cell_changes:
        cells = len({change.series for change in one.cell_changes})
        out.text(f"single cells, corrected over them: {cells} of {one.tested_cells} change, the largest first")
        for change in one.cell_changes[:LISTED]:
            out.text(f"  {sparkline(one.series[change.series])}  {_sentence(one, change)}")
        if len(one.cell_changes) > LISTED:
            out.text(f"  ... and {len(one.cell_changes) - LISTED} more; --format json has them")
    for note in one.notes:
        out.text(f"note: {note}")
    if one.noise_source:
        noise = f" ({one.noise:.2g} % of a set's shared value)" if math.isfinite(one.noise) else ""
        out.text(
            f"Method: PELT on logarithms, squared error; noise {one.noise_source}{noise}; the penalty lets a steady "
            f"history be split with probability {one.alpha:g} at most."
        )
    return "\n".join(out.lines).strip("\n") + "\n"


def _every(one: History) -> str:
    if one.measured_sets == len(one.points):
        return "all sets have"
    return f"all {one.measured_sets} sets with a value have"


def _sentence(one: History, change: Change) -> str:
    before, after = one.points[change.last], one.points[change.at]
    unit = f" {one.metric.unit}" if one.metric.unit else ""
    step = f"{before.version or before.label} -> {after.version or after.label}"
    word = ""
    if one.metric.better:
        word = ", better" if (change.after < change.before) == (one.metric.better == "lower") else ", worse"
    return (
        f"{change.series}: {step} ({after.label}): {_figure(change.before)} -> {_figure(change.after)}{unit}, "
        f"{change.per_cent:+.2f} %{word}"
    )


def _figure(value: float) -> str:
    return (
        f"{value:,.5g}"
        if math.isfinite(value) and abs(value) < 1e5
        else f"{value:,.0f}"
        if math.isfinite(value)
        else ""
    )


def document(one: History) -> dict[str, Any]:
    """Everything, ready for `json.dumps`; NaN is null."""

    def told(change: Change) -> dict[str, Any]:
        return {
            "series": change.series,
            "last": change.last,
            "at": change.at,
            "set": one.points[change.at].label,
            "before": change.before,
            "after": change.after,
            "per_cent": change.per_cent,
        }

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {
        "format_version": 1,
        "metric": one.metric.name,
        "unit": one.metric.unit,
        "order": one.order,
        "alpha": one.alpha,
        "shared_cells": one.shared_cells,
        "total_cells": one.total_cells,
        "measured_sets": one.measured_sets,
        "tested_cells": one.tested_cells,
        "noise_per_cent": plain(one.noise),
        "noise_source": one.noise_source,
        "points": [{name: plain(value) for name, value in vars(point).items()} for point in one.points],
        "changes": [told(change) for change in one.changes],
        "cell_changes": [told(change) for change in one.cell_changes],
        "series": one.series,
        "warnings": one.warnings,
        "notes": one.notes,
    }
