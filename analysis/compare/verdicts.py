"""Every cell and metric judged: which test, corrected over how many, and what restarts cannot decide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from analysis.compare import keys, stats
from analysis.compare.cells import Grid
from analysis.compare.metrics import Metric
from analysis.compare.model import VERDICTS, Changes, Geomean, Options

if TYPE_CHECKING:
    import numpy as np

MODERATED_FROM = 5
"""Restarts on each side from which `auto` may fall back to the moderated t test."""

REPEATS = 4
"""Restarts beyond the first of their cells, over both sides, that must all agree before a quantity counts as
deterministic: two steps of an allocator that are equally likely agree so often in one cell of two restarts that one
comparison in eight would be a false change; with four repeats it is one in twenty."""

CHANGED, EXACT, SAME, NO_CHANGE, UNDECIDED = range(len(VERDICTS))

ROOM = 10
"""`auto` takes Mann-Whitney only where its smallest p is this many times below what a lone change must reach: with less
room it finds nothing but samples that do not overlap at all (8 against 8 restarts over 40 comparisons: 90 % of changes
of three standard deviations, the moderated t test nearly all)."""

_NAMES = {
    "mann-whitney": "Mann-Whitney U, two-sided, exact where n x m <= 2500",
    "welch": "Welch's t test, two-sided (assumes normal noise)",
    "moderated-t": "moderated t test of logarithms, two-sided (assumes normal noise, its size per side alike among the "
    "cells of a metric)",
}


@dataclass
class _Batch:
    """Pairs of samples of one size: rows `at` of the changes. exact: where a difference may count without a test."""

    metric: int
    at: np.ndarray
    a: np.ndarray
    b: np.ndarray
    exact: np.ndarray


@dataclass
class Judged:
    metrics: list[Metric]
    changes: Changes
    test: str
    note: str
    interval: str
    tests: int
    notes: list[str] = field(default_factory=list)
    geomeans: list[Geomean] = field(default_factory=list)


def judge(grid: Grid, chosen: Sequence[Metric], options: Options) -> Judged:
    """Compares every cell of the grid, metric by metric, each side with the first."""
    import numpy as np

    metrics: list[Metric] = []
    batches: list[_Batch] = []
    parts: list[tuple[np.ndarray, ...]] = []
    absent: list[str] = []
    at = 0
    layouts = {kind: Layout(grid, kind) for kind in ("engine", "workload")}
    for metric in chosen:
        if metric.kind == "engine" and not grid.frame.engine_metrics:
            continue
        pairs = layouts[metric.kind].pairs(metric)
        if not pairs:
            absent.append(metric.name)
            continue
        exact = layouts[metric.kind].deterministic(metric)
        for cell, side, a, b in pairs:
            parts.append(
                (
                    cell,
                    np.full(len(cell), side),
                    np.full(len(cell), len(metrics)),
                    np.full(len(cell), a.shape[1]),
                    np.full(len(cell), b.shape[1]),
                )
            )
            batches.append(_Batch(len(metrics), np.arange(at, at + len(cell)), a, b, exact[cell, side]))
            at += len(cell)
        metrics.append(metric)
    columns = [np.concatenate(part) for part in zip(*parts, strict=True)] if parts else [np.zeros(0, np.int64)] * 5
    blank = {
        name: np.full(at, np.nan)
        for name in ("median_a", "median_b", "spread_a", "spread_b", "p", "p_adjusted")
    }
    changes = Changes(
        columns[0],
        columns[1],
        columns[2],
        columns[3],
        columns[4],
        **blank,
        shifts={name: np.full(at, np.nan) for name in ("change", "low", "high")},
        verdict=np.full(at, UNDECIDED),
        need_n=np.zeros(at, np.int64),
    )
    judged = Judged(metrics, changes, options.test, "", "", 0)
    if absent and options.metrics:
        judged.notes.append(f"no cell that two sides share has {', '.join(absent)}")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda batch: _describe(batch, metrics[batch.metric], changes), batches))
        _decide(judged, batches, options, pool)
    judged.geomeans = _geomeans(grid, judged)
    return judged


class Layout:
    """Rows of one table sorted by cell and side."""

    def __init__(self, grid: Grid, kind: str) -> None:
        import numpy as np

        frame = grid.frame
        self.table = frame.engines if kind == "engine" else frame.workloads
        cell = self.cell = grid.engine_cell if kind == "engine" else grid.workload_cell
        side = frame.engine_side if kind == "engine" else frame.workload_side
        good = frame.started if kind == "engine" else frame.ok
        self.sides, self.cells = len(frame.sides), len(grid.cells)
        group = cell * self.sides + side
        rows = np.flatnonzero(good)
        self.order = rows[np.argsort(group[rows], kind="stable")]
        self.group = group[self.order]

    def samples(self, metric: Metric) -> Iterator[tuple[int, int, np.ndarray]]:
        """(cell, side, values of its restarts), where there are any."""
        import numpy as np

        values, group = self._measured(metric)
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(group)], strict=False):
            yield int(group[start]) // self.sides, int(group[start]) % self.sides, values[start:end]

    def pairs(self, metric: Metric) -> list[tuple[np.ndarray, int, np.ndarray, np.ndarray]]:
        """(cells, other side, baseline's samples, other's samples), one entry per pair of sample sizes."""
        import numpy as np

        values, group = self._measured(metric)
        counts = np.bincount(group, minlength=self.cells * self.sides).reshape(self.cells, self.sides)
        starts = np.concatenate([[0], np.cumsum(counts.ravel())[:-1]]).reshape(counts.shape)
        out = []
        for side in range(1, self.sides):
            both = np.flatnonzero((counts[:, 0] > 0) & (counts[:, side] > 0))
            sizes = counts[both, 0] * (counts.max() + 1) + counts[both, side]
            for size in np.unique(sizes):
                cells = both[sizes == size]
                n, m = (int(counts[cells[0], at]) for at in (0, side))
                a, b = (_runs(values, starts[cells, at], size) for at, size in ((0, n), (side, m)))
                out.append((cells, side, a, b))
        return out

    def deterministic(self, metric: Metric) -> np.ndarray:
        """(cells, sides): where a difference from the baseline needs no test, because nothing on either side jitters.

        Restarts that happen to agree in one cell prove nothing where those of another cell differ, so what is no
        arithmetic by its nature is asked for agreement everywhere, and for `REPEATS` of it.
        """
        import numpy as np

        out = np.zeros((self.cells, self.sides), bool)
        if metric.exact_from is None:
            return out
        values, group = self._measured(metric)
        counts = np.bincount(group, minlength=out.size).reshape(out.shape)
        repeats, jitters = np.maximum(counts - 1, 0), np.zeros(out.size, bool)
        jitters[group[1:][(group[1:] == group[:-1]) & (values[1:] != values[:-1])]] = True
        jitters = jitters.reshape(out.shape)
        arithmetic = self._arithmetic(metric)
        for cells, needed in ((arithmetic, 0), (~arithmetic, REPEATS)):
            for side in range(1, self.sides):
                both = np.ix_(cells, [0, side])
                out[cells, side] = not jitters[both].any() and repeats[both].sum() >= needed
        return out

    def _arithmetic(self, metric: Metric) -> np.ndarray:
        """Per cell: the metric is computed there from the configuration, not sized by what was free."""
        import numpy as np

        out = np.full(self.cells, metric.by_nature == "always")
        if metric.by_nature == "fixed pool" and "kv_pool_mode" in self.table.column_names:
            codes, values = keys.encode(self.table.column("kv_pool_mode"))
            fixed = np.array([value == "fixed" for value in values], bool)[codes] if values else np.zeros(0, bool)
            out[self.cell] = True
            out[self.cell[~fixed]] = False
        return out

    def _measured(self, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
        """The values there are, and their group, in the order of the groups."""
        import numpy as np

        values = measured(self.table, metric)
        if values is None:
            return np.zeros(0), np.zeros(0, np.int64)
        values, group = values[self.order], self.group
        there = np.isfinite(values)
        return (values, group) if there.all() else (values[there], group[there])


def _runs(values: np.ndarray, starts: np.ndarray, size: int) -> np.ndarray:
    """(len(starts), size): that many values from each start on."""
    import numpy as np

    if len(values) % size == 0 and not (starts % size).any():  # as where every cell has as many restarts
        return values.reshape(-1, size)[starts // size]
    return values[starts[:, None] + np.arange(size)]


def measured(table: object, metric: Metric) -> np.ndarray | None:
    """A metric per row, in its display unit, NaN where it was not measured; None where no column has it."""
    import numpy as np

    names = table.column_names  # type: ignore[attr-defined]
    if metric.formula == "per_token":
        if not set(metric.columns) <= set(names):
            return None
        energy, *rest = (keys.floats(table.column(name)) for name in metric.columns)  # type: ignore[attr-defined]
        with np.errstate(divide="ignore", invalid="ignore"):
            return energy / np.prod(rest, axis=0)
    name = next((name for name in metric.columns if name in names), None)
    return None if name is None else keys.floats(table.column(name)) * metric.scale  # type: ignore[attr-defined]


def _describe(batch: _Batch, metric: Metric, changes: Changes) -> None:
    """Medians, spreads, the U test's p, and what is settled without a test."""
    import numpy as np

    at, (n, m) = batch.at, (batch.a.shape[1], batch.b.shape[1])
    constant = np.ones(len(at), bool)
    for side, sample in (("a", batch.a), ("b", batch.b)):
        ordered = np.sort(sample, axis=1)
        getattr(changes, f"median_{side}")[at] = _between(ordered, (ordered.shape[1] - 1) / 2)
        low, high = ((1 - q) * (ordered.shape[1] - 1) for q in (0.75, 0.25))
        getattr(changes, f"spread_{side}")[at] = _between(ordered, high) - _between(ordered, low)
        constant &= ordered[:, 0] == ordered[:, -1]
    changes.p[at] = stats.mann_whitney(batch.a, batch.b) if n > 1 or m > 1 else 1.0
    equal = batch.a[:, 0] == batch.b[:, 0]
    settled = constant & equal if min(n, m) >= 2 else np.zeros(len(at), bool)
    if metric.exact_from is not None and min(n, m) >= metric.exact_from:
        settled |= constant & batch.exact
    changes.verdict[at[settled]] = np.where(equal[settled], SAME, EXACT)
    changes.p[at[settled]] = np.nan
    shift = (batch.b[:, 0] - batch.a[:, 0])[settled]
    for name in ("change", "low", "high"):
        getattr(changes, name)[at[settled]] = shift


def _between(ordered: np.ndarray, place: float) -> np.ndarray:
    below = int(place)
    above = min(below + 1, ordered.shape[1] - 1)
    return ordered[:, below] + (place - below) * (ordered[:, above] - ordered[:, below])


def _decide(judged: Judged, batches: Sequence[_Batch], options: Options, pool: ThreadPoolExecutor) -> None:
    import numpy as np

    changes, alpha = judged.changes, options.alpha
    open_ones = np.isfinite(changes.p)
    n_a, n_b = changes.n_a, changes.n_b
    sizes, which = (
        np.unique(np.stack([n_a, n_b], axis=1), axis=0, return_inverse=True)
        if len(changes)
        else (np.zeros((0, 2), int), np.zeros(0, int))
    )
    least = np.array([stats.smallest_p(int(n), int(m)) for n, m in sizes])[which] if len(changes) else np.zeros(0)
    smallest = np.minimum(n_a, n_b)
    everything = max(1, int(open_ones.sum()))
    alone = alpha if options.correction == "none" else alpha / everything
    test = options.test
    if test == "auto":
        reachable = open_ones & (least * ROOM <= alone)
        fallback = open_ones & (smallest >= MODERATED_FROM)
        prefer_t = fallback.sum() > 0 and reachable.sum() < fallback.sum()
        test = "moderated-t" if prefer_t else "mann-whitney"
        if prefer_t:
            judged.note = (
                "chosen because these restarts leave Mann-Whitney little or no room for a lone change among "
                f"{everything:,} comparisons ({stats.restarts_needed(alone / ROOM)} each would); a change counts "
                "only where Mann-Whitney agrees at the uncorrected level"
            )
    judged.test = _NAMES[test]
    if test == "mann-whitney":
        testable = open_ones & (least <= alpha)
        need = stats.restarts_needed(alone)
        if options.test == "auto":
            need = min(need, MODERATED_FROM)
        judged.interval = f"{100 * (1 - alpha):g} % interval of the Hodges-Lehmann shift"
    else:
        floor = MODERATED_FROM if options.test == "auto" else 2
        testable = open_ones & (smallest >= floor)
        need = floor
        of = "geometric means" if test == "moderated-t" else "means"
        judged.interval = f"{100 * (1 - alpha):g} % t interval of the difference of {of}"
    agreed = np.ones(len(changes), bool) if options.test != "auto" or test == "mann-whitney" else changes.p <= alpha
    by_rank = changes.p.copy()
    if test != "mann-whitney":
        _estimate(judged, batches, options, test, testable, pool)
    flat = testable & ~np.isfinite(changes.p) & (options.test == "auto")
    if flat.any():
        # Restarts that all agree have no variance for a t test, and other cells had too little to lend.
        changes.p[flat] = by_rank[flat]
        changes.shifts["change"][flat] = (changes.median_b - changes.median_a)[flat]
        judged.note += "; where no restart differs from another, Mann-Whitney alone decides"
    testable &= np.isfinite(changes.p)
    judged.tests = int(testable.sum())
    changes.p_adjusted[testable] = stats.adjusted(changes.p[testable], options.correction)
    changes.p[open_ones & ~testable] = np.nan
    found = testable & (changes.p_adjusted <= alpha) & agreed
    changes.verdict[testable] = NO_CHANGE
    changes.verdict[found] = CHANGED
    ranked = testable if test == "mann-whitney" else flat
    if ranked.any() and options.correction != "none":
        # What the smallest p there can be would still miss, with the changes that were found.
        share = (
            (int(found.sum()) + 1) / everything
            if options.correction == "bh"
            else 1 / max(1, everything - int(found.sum()))
        )
        changes.verdict[ranked & ~found & (least > alpha * share)] = UNDECIDED
    undecided = changes.verdict == UNDECIDED
    if test == "mann-whitney":
        unchanged = changes.verdict == NO_CHANGE
        _estimate(judged, batches, options, test, ~unchanged, pool)

        def later() -> None:
            with ThreadPoolExecutor(2) as anew:
                _estimate(judged, batches, options, test, unchanged, anew)

        changes.later = later
    changes.need_n[undecided] = need
    changes.need_n[undecided & flat] = stats.restarts_needed(alone)
    point = undecided & ~np.isfinite(changes.shifts["change"])
    changes.shifts["change"][point] = (changes.median_b - changes.median_a)[point]


def _estimate(
    judged: Judged,
    batches: Sequence[_Batch],
    options: Options,
    test: str,
    wanted: np.ndarray,
    pool: ThreadPoolExecutor,
) -> None:
    """Fills change, low and high of the comparisons wanted, and p for the t tests."""
    import numpy as np

    changes = judged.changes
    settled = (changes.verdict == SAME) | (changes.verdict == EXACT)
    scales = _scales(batches, judged, changes, ~settled) if test == "moderated-t" else None

    def one(batch: _Batch) -> None:
        # One restart against one has a difference and nothing else.
        chosen = ~settled[batch.at] & wanted[batch.at]
        at, a, b = batch.at[chosen], batch.a[chosen], batch.b[chosen]
        if not len(at):
            return
        if test == "mann-whitney":
            shift, low, high = stats.hodges_lehmann(a, b, options.alpha)
        elif scales is None:
            changes.p[at], shift, low, high = stats.t_test(a, b, options.alpha)
        else:
            scale = scales[batch.metric, int(changes.column[at[0]])]
            x, y, back = scale.there(a, b)
            changes.p[at], *estimate = stats.t_test(x, y, options.alpha, scale.priors)
            shift, low, high = (back(value) for value in estimate)
        for name, values in (("change", shift), ("low", low), ("high", high)):
            changes.shifts[name][at] = values

    with np.errstate(invalid="ignore"):
        list(pool.map(one, batches))


@dataclass
class _Scale:
    """Where the moderated t test compares a metric: on logarithms where all values are above 0, since what disturbs a
    restart slows it by a share; else on parts of the baseline's mean."""

    logarithms: bool
    priors: tuple[stats.Prior, stats.Prior]

    def there(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """Both samples on that scale, and the way back for their difference."""
        import numpy as np

        unit = np.abs(a.mean(axis=1))
        if not self.logarithms:
            return a / unit[:, None], b / unit[:, None], lambda value: value * unit
        x, y = np.log(a), np.log(b)
        middle = np.exp(x.mean(axis=1))
        return x, y, lambda value: middle * np.expm1(value)


def _scales(
    batches: Sequence[_Batch], judged: Judged, changes: Changes, use: np.ndarray
) -> dict[tuple[int, int], _Scale]:
    """Per metric and other side: the scale, and what the variances of each side's cells have in common there."""
    import numpy as np

    groups: dict[tuple[int, int], list[_Batch]] = {}
    for batch in batches:
        groups.setdefault((batch.metric, int(changes.column[batch.at[0]])), []).append(batch)
    above = [
        all((one.a > 0).all() and (one.b > 0).all() for one in batches if one.metric == metric)
        for metric in range(len(judged.metrics))
    ]
    out = {}
    for (metric, side), members in groups.items():
        scale = _Scale(above[metric], (stats.Prior(0.0, 1.0), stats.Prior(0.0, 1.0)))
        found: list[list[tuple[np.ndarray, int]]] = [[], []]
        for batch in members:
            chosen = use[batch.at]
            with np.errstate(divide="ignore", invalid="ignore"):
                *samples, _ = scale.there(batch.a[chosen], batch.b[chosen])
                for at, sample in enumerate(samples):
                    if sample.shape[1] > 1:
                        found[at].append((stats.variance(sample), sample.shape[1] - 1))
        first, second = (_prior(one) for one in found)
        out[metric, side] = _Scale(above[metric], (first, second))
    return out


def _prior(found: Sequence[tuple[np.ndarray, int]]) -> stats.Prior:
    import numpy as np

    variances = np.concatenate([np.zeros(0), *(values for values, _ in found)])
    df = np.concatenate([np.zeros(0), *(np.full(len(values), float(own)) for values, own in found)])
    known = np.isfinite(variances)
    return stats.variance_prior(variances[known], df[known])


def _geomeans(grid: Grid, judged: Judged) -> list[Geomean]:
    import numpy as np

    changes, out = judged.changes, []
    for at, metric in enumerate(judged.metrics):
        for side in range(1, len(grid.frame.sides)):
            here = (changes.metric == at) & (changes.column == side)
            here &= (changes.median_a > 0) & (changes.median_b > 0)
            if here.any():
                ratio = float(np.exp(np.log(changes.median_b[here] / changes.median_a[here]).mean()))
                out.append(Geomean(metric.name, grid.frame.sides[side], ratio, int(here.sum())))
    return out
