"""Which factors a grid can identify: before a sweep from its points, after it from its rows.

A coefficient is identifiable if its driver varies over the rows where its branch of the formula is the largest, and
varies in ways the other drivers do not; the measure is that of the fit, on exactly the formulas of
`analysis.fit.terms`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analysis.estimate import Features
from analysis.fit.drivers import DRIVERS
from analysis.fit.solve import IDENTIFIED, NOISE_GIB
from analysis.fit.starts import GIB, setting_of
from analysis.fit.terms import CPU_FORMULAS, GPU_FORMULAS, Coefficient, Formula

FEW_MODELS = 4
"""Below this many models nothing can be said of models left out."""
_INTERCEPTS = ("one", "captured", "layers", "odd_vocabulary")
"""Drivers that no engine setting varies: constants, and what only the model decides."""


@dataclass(frozen=True)
class Point:
    """One engine start of the grid. `pool` is auto or fixed; `measured` the terms it measured, None before a sweep."""

    model: str
    features: Features
    pool: str
    kind: str = "dense"
    measured: frozenset[str] | None = None
    on_cpu: bool = False


@dataclass(frozen=True)
class Finding:
    """One sentence about the grid. `missing` is the point to add, empty where nothing is wrong."""

    term: str
    subject: str
    identified: bool
    sentence: str
    missing: str = ""


def check(points: Sequence[Point]) -> list[Finding]:
    """All findings, the grid's as a whole first. Raises ValueError for an empty grid or one mixing CPU and CUDA."""
    if not points:
        raise ValueError("the grid has no points")
    if len({point.on_cpu for point in points}) > 1:
        raise ValueError("the grid mixes CPU and CUDA points, which are never fitted together; name one kind")
    found = _models(points)
    on_cpu = points[0].on_cpu
    if not on_cpu:
        found += _contrasts(points)
    for formula in CPU_FORMULAS if on_cpu else GPU_FORMULAS:
        found += _formula(formula, points)
    return found


def _models(points: Sequence[Point]) -> list[Finding]:
    models = sorted({point.model for point in points})
    few = len(models) < FEW_MODELS
    settings = {setting_of(point.features) for point in points}
    return [
        Finding("grid", "models", not few, f"{len(models)} models: {', '.join(models)}",
                f"at least {FEW_MODELS - len(models)} more models, of other vocabularies and widths" if few else ""),
        Finding("grid", "settings", len(settings) > 1, f"{len(settings)} settings",
                "a second value of max_num_seqs and of max_num_batched_tokens" if len(settings) < 2 else ""),
    ]  # fmt: skip


def _contrasts(points: Sequence[Point]) -> list[Finding]:
    """Pairs of points that differ in one thing only."""
    eager = {(p.model, _but_graphs(p)) for p in points if p.features.enforce_eager}
    graphs = {(p.model, _but_graphs(p)) for p in points if not p.features.enforce_eager}
    auto = {(p.model, setting_of(p.features)) for p in points if p.pool == "auto"}
    fixed = {(p.model, setting_of(p.features)) for p in points if p.pool == "fixed"}
    return [
        Finding("cuda_graph", "eager against graphs", bool(eager & graphs),
                f"{len(eager & graphs)} pairs that differ in CUDA graphs only",
                "" if eager & graphs else "one point with enforce_eager=true and its twin with enforce_eager=false"),
        Finding("runtime", "auto against fixed pool", bool(auto & fixed),
                f"{len(auto & fixed)} pairs that differ in the pool's mode only: an auto pool has the profiled terms, "
                "a fixed one the true peak under load",
                "" if auto & fixed else "the same point once with kv_cache_memory_bytes and once without"),
    ]  # fmt: skip


def _but_graphs(point: Point) -> str:
    return setting_of(point.features).replace(" eager", "")


def _formula(formula: Formula, points: Sequence[Point]) -> list[Finding]:
    rows = [
        point for point in points
        if (point.measured is None or formula.term in point.measured) and _serves(formula, point)
        and point.features.pipeline_parallel_size == 1
    ]  # fmt: skip
    if not rows:
        return [Finding(formula.term, "rows", False, "no point measures it", _measures(formula.term))]
    found = []
    sizes = sorted({p.features.tensor_parallel_size for p in rows}) if formula.by_tensor_parallel else [0]
    for size in sizes:
        here = [p for p in rows if size in (0, p.features.tensor_parallel_size)]
        label = f" (tp {size})" if size and len(sizes) > 1 else ""
        for b in range(len(formula.branches)):
            found += _branch(formula, b, here, label)
    return found


def _serves(formula: Formula, point: Point) -> bool:
    return point.on_cpu or point.kind == "dense"


def _branch(formula: Formula, b: int, points: Sequence[Point], label: str) -> list[Finding]:
    """Each free coefficient of one branch, on the points where this branch is the largest."""
    branch = formula.branches[b]
    deciding = [p for p in points if _largest(formula, p.features) == b]
    name = f"branch {b + 1} of {len(formula.branches)}{label}" if len(formula.branches) > 1 else f"formula{label}"
    free = [one for one in branch if one.sd is not None]
    if not deciding:
        drivers = ", ".join(one.driver for one in branch)
        why = f"no point lies on this side of the kink ({drivers})"
        return [Finding(formula.term, name, False, why, _other_side(b))]
    columns = {one.driver: [DRIVERS[one.driver](p.features) for p in deciding] for one in free}
    remaining = remaining_uncertainty(free, deciding)
    inflation = variance_inflation(columns)
    found = []
    for one in free:
        values = columns[one.driver]
        ok, add = remaining[one.driver] < IDENTIFIED, _vary(one.driver)
        if max(values) <= 0 and one.start == 0.0:
            ok, why, add = True, "no model of the grid needs it", ""
        elif max(values) <= 0:
            why = "it is 0 in every point"
        elif not ok:
            others = " and ".join(other.driver for other in free if other is not one) or "nothing else"
            why = f"it moves with {others} (variance inflation {_vif(inflation[one.driver])})"
        else:
            why = (f"{len(deciding)} points, {min(values):.3g} to {max(values):.3g}, leave "
                   f"{100 * remaining[one.driver]:.0f}% of what was uncertain")  # fmt: skip
            add = ""
            if one.driver not in _INTERCEPTS and not _varies_within_a_model(deciding, values):
                why += "; only models vary it, no setting does"
                add = _vary(one.driver)
        found.append(Finding(formula.term, f"{name}: {one.driver}", ok, why, add))
    return found


def remaining_uncertainty(free: Sequence[Coefficient], points: Sequence[Point]) -> dict[str, float]:
    """Of each coefficient, the standard deviation that the points would leave, as a share of the one before them.

    The same linear algebra that the fit does: every model weighs the same, errors of `NOISE_GIB`.
    """
    import numpy as np

    rows = Counter(point.model for point in points)
    weight = np.array([rows[point.model] ** -0.5 for point in points]) / NOISE_GIB
    columns = np.array([[DRIVERS[one.driver](p.features) * (one.sd or 0.0) / GIB for one in free] for p in points])
    design = columns * weight[:, None]
    spread = np.sqrt(np.diag(np.linalg.inv(design.T @ design + np.eye(len(free)))))
    return {one.driver: float(left) for one, left in zip(free, spread, strict=True)}


def _varies_within_a_model(points: Sequence[Point], values: Sequence[float]) -> bool:
    by_model: dict[str, set[float]] = {}
    for point, value in zip(points, values, strict=True):
        by_model.setdefault(point.model, set()).add(value)
    return any(len(found) > 1 for found in by_model.values())


def _largest(formula: Formula, features: Features) -> int:
    values = [sum(one.start * DRIVERS[one.driver](features) for one in branch) for branch in formula.branches]
    return values.index(max(values))


def variance_inflation(columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Of each column, 1 / (1 - R^2) of its regression on the others (through the origin, as the formulas are).

    Infinite where the others determine it.
    """
    import numpy as np

    found = {}
    scaled = {name: np.asarray(values, float) / (max(map(abs, values)) or 1.0) for name, values in columns.items()}
    for name, column in scaled.items():
        others = [values for other, values in scaled.items() if other != name and np.any(values)]
        total = float(column @ column)
        if not others or total == 0:
            found[name] = 1.0
            continue
        matrix = np.column_stack(others)
        rest = column - matrix @ np.linalg.lstsq(matrix, column, rcond=None)[0]
        left = float(rest @ rest) / total
        found[name] = float("inf") if left < 1e-12 else 1.0 / left
    return found


def _vif(value: float) -> str:
    return "infinite" if value == float("inf") else f"{value:.0f}"


_TO_VARY = {
    "logits": "another max_num_seqs (8 and 1024, say) at one max_num_batched_tokens, or a model of another vocabulary",
    "hidden_bytes": "another max_num_batched_tokens (512 and 16384, say) at one max_num_seqs",
    "mlp_bytes": "a model of another MLP width relative to its hidden size",
    "graph_layers": "models of other depths, or another cudagraph_capture_sizes",
    "captured": "points with two lengths of cudagraph_capture_sizes, and one with enforce_eager=true",
    "layers": "models of other depths at this tensor-parallel size",
    "odd_vocabulary": "a model with an odd vocabulary, such as Granite 3.1",
}


def _vary(driver: str) -> str:
    return _TO_VARY.get(driver, f"points that vary {driver}")


def _other_side(b: int) -> str:
    if b == 0:
        return "points where the sampler decides: many max_num_seqs, few max_num_batched_tokens (1024 and 2048, say)"
    return "points where the MLP decides: few max_num_seqs, many max_num_batched_tokens (8 and 16384, say)"


def _measures(term: str) -> str:
    if term == "runtime":
        return "points with a workload, so that there is a peak under load"
    if term.startswith("cuda_graph"):
        return "points with enforce_eager=false"
    return "points with an auto-sized pool: a fixed one skips the profiling run"
