"""A metric over sets: a series per cell, one over the cells that all measured sets share, and their change points.

A set without any value of the metric, such as one whose starts all failed, takes no part in what is shared: it is named
and left out, so that one bad set does not end the history.

Change points: PELT with a squared-error cost on logarithms (R. Killick, P. Fearnhead, I. Eckley, J. Am. Stat.
Assoc. 107 (2012)), by the library `ruptures`. Its penalty is the noise variance of a set's median times the value
that F(1, df) exceeds with probability alpha / ((sets - 1) x series): a steady series is split about once in 1/alpha
histories. The noise is that between restarts within the sets; without restarts it is taken from the differences of
neighbours, by their median, which one change among five points does not move.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.compare.model import CompareError, Options

if TYPE_CHECKING:
    import numpy as np

    from analysis.compare.cells import Frame
    from analysis.compare.metrics import Metric

ORDERS = ("auto", "version", "time", "given")
LEAST = 3
"""Sets from which a change point has a meaning."""
LEAST_WITHOUT_RESTARTS = 5
LACKING = 8
"""Most sets that are named for lacking cells, those that lack most first."""


@dataclass(frozen=True)
class Point:
    """One set on the x-axis. `value`: geometric mean over the shared cells of the cells' medians, in display units."""

    label: str
    path: str
    version: str
    started_unix_s: float
    cells: int
    restarts: int
    value: float


@dataclass(frozen=True)
class Change:
    """A level that differs from the one before.

    Attributes:
        last, at: index of the last point of the old level and of the first of the new one. Sets between them have no
            value in this series.
    """

    series: str
    last: int
    at: int
    before: float
    after: float

    @property
    def per_cent(self) -> float:
        return 100.0 * (self.after / self.before - 1.0)


@dataclass
class History:
    """The whole result. `changes` are of the shared series, `cell_changes` of single cells.

    Attributes:
        shared_cells, total_cells: cells that every measured set has a value in, and that any set has.
        measured_sets: how many sets have a value at all.
        noise: of a set's shared value, in per cent. tested_cells: single cells that were looked at for changes.
    """

    metric: Metric
    points: list[Point]
    shared_cells: int
    total_cells: int
    measured_sets: int
    noise: float
    noise_source: str
    alpha: float
    order: str
    tested_cells: int = 0
    changes: list[Change] = field(default_factory=list)
    cell_changes: list[Change] = field(default_factory=list)
    series: dict[str, list[float | None]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def history(paths: Sequence[Path], metric: str, options: Options | None = None, order: str = "auto") -> History:
    """One metric over result sets.

    Args:
        metric: a name or column as in `compare`. options: its `row`, `ignore`, `filter`, `strict` and `alpha` count.
        order: `version` of vLLM, start `time`, as `given`; auto is version where each set has one of its own.

    Raises:
        CompareError: no set can be used, no such metric, or it was measured nowhere.
    """
    import numpy as np

    from analysis.compare import cells, context, load, metrics
    from analysis.compare.filters import Filter

    options = options or Options()
    if not paths:
        raise CompareError("name the result sets, as in `history --metric throughput results/*`")
    asked = {*options.row, *options.ignore, *metrics.columns_of((metric,))}
    data = load.load(paths, load.named_columns(asked, options.filter), 1)
    (chosen,) = metrics.choose((metric,), data.numeric["engines"], data.numeric["workloads"])
    frame = cells.Frame(data, "set")
    if options.filter:
        frame.keep(Filter(options.filter, set().union(*data.present["engines"], *data.present["workloads"], {"set"})))
    context.quality(frame, options.strict)
    _, split, told = context.environment(frame, "vllm_version")
    grid = cells.Grid(frame, options, split)
    log_medians, counts, variances = _medians(grid, chosen)
    if not counts.any():
        raise CompareError(f"--metric {metric}: no successful row of these sets has it")
    versions, times = _versions(frame), _times(frame)
    place, order = _ordered(order, versions, times)
    log_medians, counts, variances = log_medians[:, place], counts[:, place], variances[:, place]
    there = (counts > 0).any(axis=0)
    total = int((counts > 0).any(axis=1).sum())
    shared = (counts[:, there] > 0).all(axis=1)
    level = np.full(len(place), np.nan)
    if shared.any():
        level[there] = np.exp(log_medians[np.ix_(shared, there)].mean(axis=0))
    points = [
        Point(
            frame.sides[at],
            str(data.paths[at]),
            versions[at],
            times[at],
            int((counts[:, i] > 0).sum()),
            int(counts[:, i].max()),
            float(level[i]),
        )
        for i, at in enumerate(place)
    ]
    out = History(chosen, points, int(shared.sum()), total, int(there.sum()), math.nan, "", options.alpha, order)
    out.warnings = [
        *data.warnings,
        *(one for one in told if "vllm_version" not in one.split(" differs")[0]),
        *grid.warnings,
        *_left_out(frame, out, place),
        *_lacking(out),
    ]
    out.warnings = [one for one in out.warnings if not one.startswith("--axis")]
    out.notes = [*data.notes, *grid.notes]
    names = [cell.name for cell in grid.cells]
    for at in np.flatnonzero((counts > 0).any(axis=1)):
        out.series[names[at]] = [float(np.exp(v)) if np.isfinite(v) else None for v in log_medians[at]]
    _find(out, log_medians, counts, variances, shared, names)
    return out


def _left_out(frame: Frame, out: History, place: Sequence[int]) -> list[str]:
    """Sentences on the sets that have no value of the metric."""
    told = []
    for at, point in zip(place, out.points, strict=True):
        if point.cells:
            continue
        here = frame.engine_side == at
        why = (
            "no row is left of it"
            if not here.any()
            else f"none of its {int(here.sum())} engine starts succeeded"
            if not (here & frame.started).any()
            else "no successful row has one above 0"
        )
        told.append(f"{point.label} has no value of {out.metric.name} ({why}): it is left out of the shared cells")
    return told


def _lacking(out: History) -> list[str]:
    """A sentence on measured sets that lack cells, which makes the shared ones fewer."""
    if out.shared_cells == out.total_cells:
        return []
    lacks = [(point.label, out.total_cells - point.cells) for point in out.points if 0 < point.cells < out.total_cells]
    told = ", ".join(f"{label} lacks {cells}" for label, cells in sorted(lacks, key=lambda one: -one[1])[:LACKING])
    more = f" and {len(lacks) - LACKING} more sets lack some" if len(lacks) > LACKING else ""
    return [
        f"{out.shared_cells} of {out.total_cells} cells are shared by the {out.measured_sets} sets that have a value: "
        f"{told}{more}" + ("; only single cells have a history" if not out.shared_cells else "")
    ]


def _medians(grid: object, metric: Metric) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cells, sets): log of the median, restarts, variance of the log between restarts."""
    import numpy as np

    from analysis.compare.verdicts import Layout

    layout = Layout(grid, metric.kind)  # type: ignore[arg-type]
    shape = (layout.cells, layout.sides)
    medians, variances = np.full(shape, np.nan), np.full(shape, np.nan)
    counts = np.zeros(shape, np.int64)
    for cell, side, sample in layout.samples(metric):
        if not (sample > 0).all():
            # A logarithm needs more than nothing: such a cell has no history.
            continue
        medians[cell, side], counts[cell, side] = math.log(float(np.median(sample))), len(sample)
        if len(sample) > 1:
            variances[cell, side] = np.log(sample).var(ddof=1)
    return medians, counts, variances


def _versions(frame: Frame) -> list[str]:
    from analysis.compare.context import values_of

    return [" | ".join(values) for values in values_of(frame, "vllm_version")]


def _times(frame: Frame) -> list[float]:
    import numpy as np

    from analysis.compare import keys

    started = keys.floats(frame.engines.column("started_unix_s"))
    side = frame.engine_side
    return [
        float(np.nanmin(here)) if np.isfinite(here := started[side == at]).any() else math.nan
        for at in range(len(frame.sides))
    ]


def _ordered(order: str, versions: Sequence[str], times: Sequence[float]) -> tuple[list[int], str]:
    from analysis.compare.cells import natural

    if order == "auto":
        order = "version" if len(set(versions)) == len(versions) and all(versions) else "time"
    places = list(range(len(versions)))
    if order == "version":
        places.sort(key=lambda at: (natural(versions[at]), times[at]))
    elif order == "time":
        places.sort(key=lambda at: times[at] if math.isfinite(times[at]) else math.inf)
    return places, order


def _find(
    out: History,
    medians: np.ndarray,
    counts: np.ndarray,
    variances: np.ndarray,
    shared: np.ndarray,
    names: Sequence[str],
) -> None:
    """Change points of the shared series, and of single cells."""
    import numpy as np

    there = np.flatnonzero((counts > 0).any(axis=0))
    sets = len(there)
    if sets < LEAST:
        word = "set with a value is" if sets == 1 else "sets with values are"
        out.notes.append(f"{sets} {word} too few for change points, which need {LEAST}; `compare` tests two")
        return
    together = medians[np.ix_(shared, there)]
    df = int(np.nansum(np.where(np.isfinite(variances), counts - 1, 0)))
    if df > 0:
        weights = np.where(np.isfinite(variances), counts - 1, 0)
        pooled = float(np.nansum(weights * np.nan_to_num(variances)) / weights.sum())
        # Variance of the median of n normal values: pi/2 of that of their mean.
        per_point = np.where(counts > 1, math.pi / 2, 1.0) * pooled / np.maximum(counts, 1)
        out.noise_source = f"between restarts, {df} degrees of freedom"
    else:
        per_point, df = _from_neighbours(together), max(1, int(shared.sum()) * (sets - 1) // 2)
        if per_point is None or sets < LEAST_WITHOUT_RESTARTS:
            out.notes.append(
                f"without restarts the noise can only be told from cells that {LEAST_WITHOUT_RESTARTS} sets and more "
                "share: no change points; measure each set with repeats=3 or more"
            )
            return
        out.noise_source = "from differences of neighbouring sets, since no cell has restarts"
        per_point = np.full(medians.shape, per_point)
    if shared.any():
        noise = float(per_point[np.ix_(shared, there)].mean() / shared.sum())
        out.noise = 100 * math.sqrt(noise)
        out.changes = _split("all shared cells", together.mean(axis=0), there, noise, df, out.alpha, 1)
    complete = np.flatnonzero((counts > 0).sum(axis=1) >= LEAST)
    out.tested_cells = len(complete)
    for at in complete:
        own = np.flatnonzero(counts[at] > 0)
        noise = float(per_point[at, own].mean())
        out.cell_changes += _split(names[at], medians[at, own], own, noise, df, out.alpha, len(complete))
    out.cell_changes.sort(key=lambda one: -abs(math.log(one.after / one.before)))


def _from_neighbours(medians: np.ndarray) -> float | None:
    """Variance of a point from the median absolute difference of neighbours, over all shared cells."""
    import numpy as np

    if not len(medians):
        return None
    steps = np.abs(np.diff(medians, axis=1)).ravel()
    return float((1.4826 * np.median(steps)) ** 2 / 2)


def _split(
    name: str, values: np.ndarray, places: np.ndarray, noise: float, df: int, alpha: float, series: int
) -> list[Change]:
    """Change points of one series of logarithms. `places`: index of the set of each value."""
    import numpy as np
    import ruptures
    from scipy.stats import f

    if noise <= 0:
        # No noise at all: every step is a change, as of weights.
        ends = [*(np.flatnonzero(np.abs(np.diff(values)) > 1e-12) + 1), len(values)]
    else:
        penalty = noise * float(f.isf(alpha / ((len(values) - 1) * series), 1, df))
        ends = ruptures.Pelt(model="l2", min_size=1, jump=1).fit(values.reshape(-1, 1)).predict(pen=penalty)
    starts = [0, *map(int, ends[:-1])]
    levels = [float(np.exp(values[start:end].mean())) for start, end in zip(starts, ends, strict=True)]
    return [
        Change(name, int(places[starts[i] - 1]), int(places[starts[i]]), levels[i - 1], levels[i])
        for i in range(1, len(starts))
    ]
