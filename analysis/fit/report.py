"""The public table: what each way of predicting says of weights and KV pool, row by row, whole models held out.

Four ways, the same rows and the same device capacity:
  guide       weights = parameters x nominal bytes, in GB; the KV pool is what "model size x multiplier" leaves for it:
              weights x (3.5 - 1) up to 14 B parameters, x (2.75 - 1) above (the guide's 3-4x and 2.5-3x)
  parameters  weights = parameters x nominal bytes; the pool is the budget less that
  arithmetic  exact weights; the pool is the budget less that
  fitted      exact weights, activation and non-torch from a fit that has not seen the row's model
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from analysis.fit.build import fit_term
from analysis.fit.drivers import DRIVERS
from analysis.fit.starts import GIB, Start
from analysis.fit.terms import GPU_FORMULAS, Formula

WAYS = ("guide", "parameters", "arithmetic", "fitted")
_SMALL_MODEL = 14e9
_POOL_TERMS = ("activation", "non_torch")


@dataclass(frozen=True)
class Line:
    """One row of the table. Predicted pools by way, bytes; `half_width` is that of the fitted one's 90 % interval."""

    start: Start
    pools: dict[str, float]
    half_width: float | None

    def error(self, way: str) -> float:
        """Predicted over measured pool, minus one."""
        assert self.start.kv_pool
        return self.pools[way] / self.start.kv_pool - 1.0

    @property
    def covered(self) -> bool:
        assert self.start.kv_pool and self.half_width is not None
        return abs(self.pools["fitted"] - self.start.kv_pool) <= self.half_width


def lines(starts: Sequence[Start]) -> list[Line]:
    """The dense rows whose weights can be computed. Each is predicted by fits that have not seen its model; so are the
    errors that its interval is made of.
    """
    dense = [one for one in starts if one.kind == "dense" and one.expected_weights and one.kv_pool and one.requested]
    models = sorted({start.model for start in dense})
    made: dict[str, Line] = {}
    for model in models:
        unseen = [start for start in dense if start.model == model]
        seen = [start for start in starts if start.model != model]
        for start, estimate, width in _estimated(unseen, seen):
            made[start.row_id] = _line(start, estimate, width)
    return [made[start.row_id] for start in dense]


def _estimated(unseen: Sequence[Start], seen: Sequence[Start]) -> Iterable[tuple[Start, float, float]]:
    """Activation and non-torch together, bytes, and the half-width of their interval, from `seen` alone."""
    formulas = {formula.term: formula for formula in GPU_FORMULAS}
    fits = {term: fit_term(formulas[term], seen) for term in _POOL_TERMS}
    for start in unseen:
        tp = start.features.tensor_parallel_size
        total = squared = 0.0
        for groups in fits.values():
            group = next((one for one in groups if one.tensor_parallel_size in (0, tp)), groups[-1])
            total += _first_rank(start, group.formula, group.fitted.values)
            squared += group.half_width**2  # the terms err independently
        yield start, total, math.sqrt(squared)


def _first_rank(start: Start, formula: Formula, values: Sequence[Sequence[float]]) -> float:
    """The estimate for the rank whose figures the log prints: without a sampler where that sits on a later rank."""
    branches = [
        sum(value * DRIVERS[one.driver](start.features) for value, one in zip(row, branch, strict=True))
        for row, branch in zip(values, formula.branches, strict=True)
    ]
    later = start.features.pipeline_parallel_size > 1 and len(branches) > 1
    return max(branches[1:] if later else branches)


def _line(start: Start, estimate: float, width: float) -> Line:
    assert start.requested and start.expected_weights
    nominal = (start.parameters or 0) * start.weight_bits / 8
    ranks = start.features.tensor_parallel_size * start.features.pipeline_parallel_size
    multiplier = 3.5 if (start.parameters or 0) <= _SMALL_MODEL else 2.75
    pools = {
        "guide": nominal * (multiplier - 1) / ranks,
        "parameters": start.requested - nominal / ranks,
        "arithmetic": start.requested - start.expected_weights,
        "fitted": start.requested - start.expected_weights - estimate,
    }
    return Line(start, pools, width)


@dataclass(frozen=True)
class Summary:
    """Mean and worst absolute error, as shares; and in GiB."""

    rows: int
    mean: float
    worst: float
    mean_gib: float
    worst_gib: float


def summary(found: Sequence[Line], way: str) -> Summary:
    shares = [abs(line.error(way)) for line in found]
    gib = [abs(line.pools[way] - (line.start.kv_pool or 0.0)) / GIB for line in found]
    return Summary(len(found), sum(shares) / len(shares), max(shares), sum(gib) / len(gib), max(gib))


def coverage(found: Sequence[Line]) -> tuple[float, float]:
    """Share of held-out pools inside their 90 % interval: of rows, and of models (every model weighing the same)."""
    by_model: dict[str, list[bool]] = {}
    for line in found:
        by_model.setdefault(line.start.model, []).append(line.covered)
    every = [one for inside in by_model.values() for one in inside]
    return sum(every) / len(every), sum(sum(one) / len(one) for one in by_model.values()) / len(by_model)


def weight_errors(starts: Sequence[Start]) -> list[tuple[Start, float]]:
    """Computed over measured weights, minus one, of every row whose weights can be computed."""
    return [
        (start, start.expected_weights / start.weights - 1.0) for start in starts
        if start.expected_weights and start.weights
    ]  # fmt: skip


def text(starts: Sequence[Start]) -> str:
    """The whole report, for people."""
    found = lines(starts)
    out = [
        "KV pool per rank, GiB; error of each prediction in per cent of the measured pool.",
        "fitted: exact weights, and a fit that has not seen the row's model; guide: weights x (multiplier - 1);",
        "parameters: the budget less parameters x bytes; arithmetic: the budget less exact weights",
        "",
        f"{'model':44} {'tp':>2} {'pp':>2} {'weights':>8} {'error':>7} {'pool':>6}"
        + "".join(f" {way:>11}" for way in WAYS) + "  90 %",
    ]  # fmt: skip
    for line in found:
        start = line.start
        assert start.weights and start.expected_weights and start.kv_pool
        out.append(
            f"{_name(start):44} {start.features.tensor_parallel_size:2} {start.features.pipeline_parallel_size:2} "
            f"{start.weights / GIB:8.2f} {100 * (start.expected_weights / start.weights - 1):+6.2f}% "
            f"{start.kv_pool / GIB:6.2f}"
            + "".join(f" {100 * line.error(way):+10.2f}%" for way in WAYS)
            + f"  {'in' if line.covered else 'OUT'}"
        )
    title = f"KV pool, {len(found)} dense rows"
    out += ["", f"{title:32} {'mean':>8} {'worst':>8} {'mean GiB':>9} {'worst GiB':>9}"]
    for way in WAYS:
        one = summary(found, way)
        out.append(f"{way:32} {100 * one.mean:7.2f}% {100 * one.worst:7.2f}% {one.mean_gib:9.2f} {one.worst_gib:9.2f}")
    rows, models = coverage(found)
    count = len({line.start.model for line in found})
    out += ["", f"90 % intervals cover {100 * rows:.1f}% of {len(found)} held-out rows"
            f" ({100 * models:.1f}% with each of the {count} models weighing the same)"]  # fmt: skip
    out += ["", "Weights, computed over measured:"]
    for kind in ("dense", "experts", "mla", "multimodal"):
        errors = [abs(error) for start, error in weight_errors(starts) if start.kind == kind]
        if errors:
            out.append(f"{kind:12} {len(errors):3} rows  mean {100 * sum(errors) / len(errors):.3f}%"
                       f"  worst {100 * max(errors):.3f}%")  # fmt: skip
    refused = sorted({f"{start.row_id}: {start.refusal}" for start in starts if start.refusal})
    if refused:
        out += ["", f"Not computable ({len(refused)} rows):", *refused]
    return "\n".join(out) + "\n"


def _name(start: Start) -> str:
    bits = "" if start.weight_bits == 8 * start.features.dtype_bytes else f" w{start.weight_bits}"
    wide = " fp32" if start.features.dtype_bytes == 4 else ""
    return f"{start.model}{bits}{wide}"[-44:]
