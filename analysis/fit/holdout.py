"""What a fit is worth on models and settings that it has not seen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analysis.fit.solve import Fitted, fit
from analysis.fit.starts import GIB, ROUNDING_BYTES, Start
from analysis.fit.terms import Formula

COVERAGE = 0.9


@dataclass(frozen=True)
class Errors:
    """Estimated minus measured on left-out rows."""

    rows: int
    groups: int
    """Models or settings that were left out, one at a time."""
    mean_gib: float
    worst_gib: float
    mean_share: float | None
    """Mean absolute error as a share of what was measured; None where that is zero."""
    worst_share: float | None
    coverage: float | None = None
    """Share of the left-out rows inside an interval made without their model."""


@dataclass(frozen=True)
class HeldOut:
    """Leave-one-out fits. `estimates[i]` is for `starts[i]`; None where nothing was left to fit."""

    starts: Sequence[Start]
    estimates: Sequence[float | None]
    fits: dict[str, Fitted]


def leave_out(formula: Formula, starts: Sequence[Start], group: Callable[[Start], str]) -> HeldOut:
    """Fits once per group of rows, without that group, and estimates the rows that were left out."""
    fits = {}
    for name in sorted({group(start) for start in starts}):
        kept = [start for start in starts if group(start) != name]
        if kept:
            fits[name] = fit(formula, kept)
    estimates = [fits[group(start)].estimate(start) if group(start) in fits else None for start in starts]
    return HeldOut(starts, estimates, fits)


def half_width(residuals: Sequence[float], models: Sequence[str]) -> float:
    """Half of the 90 % interval, bytes: the quantile of absolute held-out errors, every model weighing the same.

    Never below the rounding of the log that the figures come from.
    """
    count = Counter(models)
    weighted = sorted((abs(error), 1.0 / count[model]) for error, model in zip(residuals, models, strict=True))
    total = sum(weight for _, weight in weighted)
    # A finite-sample quantile: the new model counts as one more, which no error seen so far is sure to reach.
    wanted, reached = COVERAGE * (total + 1.0), 0.0
    for error, weight in weighted:
        reached += weight
        if reached >= wanted - 1e-9:
            return max(error, ROUNDING_BYTES)
    return max(weighted[-1][0] if weighted else 0.0, ROUNDING_BYTES)


def errors(held: HeldOut, term: str, group: Callable[[Start], str], check_coverage: bool = False) -> Errors | None:
    """Summary of a leave-one-out run; None if no row could be estimated."""
    pairs = [
        (estimate - start.measured[term], start) for start, estimate in zip(held.starts, held.estimates, strict=True)
        if estimate is not None
    ]  # fmt: skip
    if not pairs:
        return None
    gib = [abs(error) / GIB for error, _ in pairs]
    shares = [abs(error) / start.measured[term] for error, start in pairs if start.measured[term] > 0]
    return Errors(
        len(pairs), len({group(start) for _, start in pairs}), _mean(gib), max(gib),
        _mean(shares) if shares else None, max(shares) if shares else None,
        _coverage(pairs) if check_coverage else None,
    )  # fmt: skip


def _coverage(pairs: Sequence[tuple[float, Start]]) -> float | None:
    """Coverage of intervals made from the errors of the other models, every model weighing the same."""
    models = sorted({start.model for _, start in pairs})
    if len(models) < 3:
        return None
    inside = []
    for model in models:
        others = [(error, start.model) for error, start in pairs if start.model != model]
        width = half_width([error for error, _ in others], [name for _, name in others])
        own = [abs(error) <= width + 1e-6 for error, start in pairs if start.model == model]
        inside.append(sum(own) / len(own))
    return _mean(inside)


def jackknife(values: Sequence[float], whole: float) -> tuple[float, float] | None:
    """90 % interval of a coefficient from the fits that each left one model out; None below three models."""
    count = len(values)
    if count < 3:
        return None
    from scipy.stats import t

    mean = sum(values) / count
    deviation = math.sqrt((count - 1) / count * sum((value - mean) ** 2 for value in values))
    reach = float(t.ppf(0.95, count - 1)) * deviation
    return whole - reach, whole + reach


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
