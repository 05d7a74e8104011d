"""What a throughput fit is worth on models, lengths and concurrencies that it has not seen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from analysis.fit.holdout import COVERAGE
from analysis.throughput.calibration import METRICS, Metric
from analysis.throughput.fit import Fitted, fit, uncalibrated
from analysis.throughput.observations import Observation

LEAST_HALF_WIDTH: Final = 0.01
"""In logarithm: no interval claims to be narrower than 1 %."""

KINDS: Final[dict[str, Callable[[Observation], str]]] = {
    "model": lambda one: one.model,
    "length": lambda one: one.length,
    "concurrency": lambda one: str(one.concurrency),
}
"""What is left out, one value at a time."""


@dataclass(frozen=True)
class Miss:
    """One estimate of a row that the fit had not seen; seconds, or tokens/s of `throughput`."""

    observation: Observation
    unit: str
    metric: Metric
    measured: float
    estimated: float
    below: float
    """What the layer below estimated, without the row as well."""

    @property
    def log_error(self) -> float:
        return math.log(self.estimated / self.measured)


@dataclass(frozen=True)
class HeldOut:
    """Leave-one-out fits by one of KINDS; `fits` by what was left out."""

    kind: str
    misses: tuple[Miss, ...]
    fits: dict[str, Fitted]

    def of(self, metric: Metric, unit: str | None = None) -> list[Miss]:
        return [miss for miss in self.misses if miss.metric == metric and unit in (None, miss.unit)]


@dataclass(frozen=True)
class Errors:
    """Absolute errors. Shares are of what was measured; `mean` and `worst` in the metric's own unit."""

    rows: int
    units: int
    mean_share: float
    worst_share: float
    mean: float
    worst: float
    below_mean_share: float
    below_worst_share: float


def leave_out(kind: str, observations: Sequence[Observation]) -> HeldOut:
    """Fits once per model, length or concurrency without it; empty where there is only one."""
    unit = KINDS[kind]
    names = sorted({unit(one) for one in observations}, key=lambda name: (len(name), name))
    misses: list[Miss] = []
    fits: dict[str, Fitted] = {}
    for name in names if len(names) > 1 else ():
        rest = [one for one in observations if unit(one) != name]
        fits[name] = fit(rest)
        below = uncalibrated(rest)
        for one in observations:
            if unit(one) == name:
                misses += _misses(one, name, fits[name], below)
    return HeldOut(kind, tuple(misses), fits)


def in_sample(observations: Sequence[Observation], fitted: Fitted) -> HeldOut:
    """Errors on the rows of the fit itself."""
    below = uncalibrated(observations)
    return HeldOut("none", tuple(miss for one in observations for miss in _misses(one, "all", fitted, below)), {})


def _misses(one: Observation, unit: str, fitted: Fitted, below: Fitted) -> list[Miss]:
    estimates, lower = fitted.estimate(one), below.estimate(one)
    return [
        Miss(one, unit, metric, one.measured[metric], estimates[metric], lower[metric])
        for metric in METRICS if metric in one.measured and metric in estimates
    ]  # fmt: skip


def errors(misses: Sequence[Miss]) -> Errors | None:
    """Summary; None without any."""
    if not misses:
        return None
    off = [abs(one.estimated - one.measured) for one in misses]
    shares = [error / one.measured for error, one in zip(off, misses, strict=True)]
    below = [abs(one.below - one.measured) / one.measured for one in misses]
    return Errors(
        len(misses), len({one.unit for one in misses}), _mean(shares), max(shares), _mean(off), max(off), _mean(below),
        max(below),
    )  # fmt: skip


def half_width(misses: Sequence[Miss]) -> float:
    """Half of the 90 % interval in logarithm: the quantile of the absolute held-out errors, units weighing the same.

    A finite-sample quantile: the unit to come counts as one more, which no error seen so far is sure to reach.
    """
    count = Counter(one.unit for one in misses)
    weighted = sorted((abs(one.log_error), 1.0 / count[one.unit]) for one in misses)
    wanted, reached = COVERAGE * (len(count) + 1.0), 0.0
    for error, weight in weighted:
        reached += weight
        if reached >= wanted - 1e-9:
            return max(error, LEAST_HALF_WIDTH)
    return max(weighted[-1][0] if weighted else 0.0, LEAST_HALF_WIDTH)


def coverage(misses: Sequence[Miss]) -> float | None:
    """Share of left-out rows inside intervals made from the errors of the other units; None below three units."""
    units = sorted({one.unit for one in misses})
    if len(units) < 3:
        return None
    inside = []
    for unit in units:
        width = half_width([one for one in misses if one.unit != unit])
        own = [abs(one.log_error) <= width + 1e-9 for one in misses if one.unit == unit]
        inside.append(sum(own) / len(own))
    return _mean(inside)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
