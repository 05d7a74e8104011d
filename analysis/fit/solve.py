"""One robust fit of one formula: largest of a few branches, coefficients never negative, outliers damped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.fit.drivers import DRIVERS
from analysis.fit.starts import GIB, Start
from analysis.fit.terms import Coefficient, Formula

NOISE_GIB = 0.01
"""Scale of an ordinary error: two rounding steps of vLLM's log."""
_OUTLIER = 2.0
"""Errors beyond this many scales count linearly, not squared (scipy's soft_l1)."""
IDENTIFIED = 0.5
"""The data identify a coefficient if they halve what was uncertain about it beforehand."""
_DUST_BYTES = 1024


@dataclass(frozen=True)
class Fitted:
    """Coefficients in the order of the formula's branches, and which of them the data determine."""

    formula: Formula
    values: tuple[tuple[float, ...], ...]
    identified: tuple[tuple[bool | None, ...], ...]
    """None for a coefficient that the structure fixes."""

    def estimate(self, start: Start) -> float:
        """Bytes."""
        return max(
            sum(value * DRIVERS[one.driver](start.features) for value, one in zip(values, branch, strict=True))
            for values, branch in zip(self.values, self.formula.branches, strict=True)
        )


def fit(formula: Formula, starts: Sequence[Start]) -> Fitted:
    """Fits the free coefficients to `starts`, all of which have measured the term.

    Every model weighs the same, however many rows it has: otherwise the model measured most often would decide.
    """
    import numpy as np
    from scipy.optimize import least_squares

    free = [(b, i) for b, branch in enumerate(formula.branches) for i, one in enumerate(branch) if one.sd is not None]
    if not free:
        return _result(formula, {}, {})
    columns = [
        np.array([[DRIVERS[one.driver](start.features) / GIB for one in branch] for start in starts])
        for branch in formula.branches
    ]
    measured = np.array([start.measured[formula.term] / GIB for start in starts])
    rows = Counter(start.model for start in starts)
    weight = np.array([rows[start.model] ** -0.5 for start in starts]) / NOISE_GIB
    spread = np.array([_coefficient(formula, place).sd for place in free], dtype=float)
    centre = np.array([_coefficient(formula, place).start for place in free]) / spread
    fixed = [np.array([one.start for one in branch]) for branch in formula.branches]

    def residuals(theta: Any) -> Any:
        values = [branch.copy() for branch in fixed]
        for (b, i), value in zip(free, theta * spread, strict=True):
            values[b][i] = value
        estimate = np.max([column @ value for column, value in zip(columns, values, strict=True)], axis=0)
        return np.concatenate([(estimate - measured) * weight, theta - centre])

    found = least_squares(residuals, centre, bounds=(0.0, np.inf), loss="soft_l1", f_scale=_OUTLIER, x_scale=1.0)
    information = found.jac.T @ found.jac  # the last rows of the Jacobian are the prior's
    deviation = np.sqrt(np.diag(np.linalg.pinv(information)))
    values = dict(zip(free, (found.x * spread).tolist(), strict=True))
    for (b, i), value in values.items():  # what moves no row by a KiB is the solver's dust at the bound
        if value * float(np.max(columns[b][:, i])) * GIB < _DUST_BYTES and _coefficient(formula, (b, i)).start == 0.0:
            values[(b, i)] = 0.0
    known = {place: bool(sd < IDENTIFIED) for place, sd in zip(free, deviation.tolist(), strict=True)}
    return _result(formula, values, known)


def _coefficient(formula: Formula, place: tuple[int, int]) -> Coefficient:
    return formula.branches[place[0]][place[1]]


def _result(formula: Formula, values: dict[tuple[int, int], float], known: dict[tuple[int, int], bool]) -> Fitted:
    return Fitted(
        formula,
        tuple(
            tuple(values.get((b, i), one.start) for i, one in enumerate(branch))
            for b, branch in enumerate(formula.branches)
        ),
        tuple(
            tuple(known.get((b, i)) for i, _ in enumerate(branch)) for b, branch in enumerate(formula.branches)
        ),
    )  # fmt: skip
