"""What a gate cannot judge: metrics that no side has, and cells that a metric had on the baseline and that fail now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.compare.cells import Grid
from analysis.compare.metrics import Metric
from analysis.compare.model import Broken, Outcome
from analysis.compare.verdicts import measured

if TYPE_CHECKING:
    import numpy as np


def broken(grid: Grid, chosen: Sequence[Metric], outcomes: Sequence[Outcome]) -> list[Broken]:
    """Per metric and other side: cells that would have been compared if they did not fail on that side."""
    import numpy as np

    sides = grid.frame.sides
    fails = np.zeros((len(grid.cells), len(sides)), bool)
    for one in outcomes:
        if one.kind == "breaks":
            fails[one.cell_index, sides.index(one.column)] = True
    if not fails.any():
        return []
    # A start that fails leaves no workload row, so its workloads fail with it.
    by_start = fails[grid.start_of]
    out = []
    for metric in chosen:
        if metric.kind == "engine" and not grid.frame.engine_metrics:
            continue
        have = _having(grid, metric)
        for side in range(1, len(sides)):
            lost = have[:, 0] & ~have[:, side]
            for starts, cells in (
                (True, lost & by_start[:, side]),
                (False, lost & ~by_start[:, side] & fails[:, side]),
            ):
                if cells.any():
                    out.append(Broken(metric, sides[side], tuple(map(int, np.flatnonzero(cells))), starts))
    return out


def unmeasured(grid: Grid, chosen: Sequence[Metric], compared: Sequence[Metric]) -> list[Metric]:
    """Metrics of which no side has any value. `compared`: those that were, which need no look."""
    return [metric for metric in chosen if metric not in compared and not _having(grid, metric).any()]


def _having(grid: Grid, metric: Metric) -> np.ndarray:
    """(cells, sides): where any successful row has a value."""
    import numpy as np

    frame = grid.frame
    engine = metric.kind == "engine"
    out = np.zeros((len(grid.cells), len(frame.sides)), bool)
    values = measured(frame.engines if engine else frame.workloads, metric)
    if values is not None:
        rows = np.flatnonzero((frame.started if engine else frame.ok) & np.isfinite(values))
        cell, side = (grid.engine_cell, frame.engine_side) if engine else (grid.workload_cell, frame.workload_side)
        out[cell[rows], side[rows]] = True
    return out
