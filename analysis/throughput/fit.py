"""The coefficients of the roofline from measured times: never negative, relative errors, outliers damped.

All metrics of all rows are fitted together, in logarithm, so that 10 % counts alike at 5 ms and at 5 s. Every model
weighs the same. A time to first token that holds waiting for a free slot is left to the held-out errors: it repeats
the throughput and says nothing new about a step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from analysis.throughput.calibration import METRICS, Metric, Reference, units
from analysis.throughput.observations import Observation
from analysis.throughput.roofline import COEFFICIENTS, Vector

_OUTLIER = 0.1
"""Relative errors beyond this count linearly, not squared (scipy's soft_l1)."""
_IDENTIFIED = 0.5
"""A coefficient is identified if its standard error is below this share of it."""
_LEAST_SHARE = 0.01
"""... and if it makes up this share of some measured time: what moves nothing was not measured."""
SHEET_BOUND: Final = ("weights", "kv")
"""Coefficients that no device can have below 1 of its sheet: nothing is read faster than the peak bandwidth."""


@dataclass(frozen=True)
class Fitted:
    """`values` in the units of `reference`; `known` says which of them the rows identify."""

    reference: Reference
    values: Vector
    known: tuple[bool, ...]
    spread: float
    """Median absolute relative error on the rows of the fit itself."""

    def estimate(self, one: Observation) -> dict[Metric, float]:
        """Seconds of `tpot` and `ttft`, tokens/s of `throughput`."""
        return estimate(self.values, self.reference, one)


def estimate(values: Vector, reference: Reference, one: Observation) -> dict[Metric, float]:
    """The metrics of a row at these coefficients."""
    rates = [value * unit for value, unit in zip(values, units(reference, one.sheet), strict=True)]
    found: dict[Metric, float] = {}
    for name, vector in one.vectors.items():
        time = sum(rate * driver for rate, driver in zip(rates, vector, strict=True))
        found[name] = 1.0 / max(time, 1e-12) if name == "throughput" else time
    return found


def reference_of(observations: Sequence[Observation]) -> Reference:
    """`sheet` where every row's device has one."""
    return "sheet" if all(one.sheet is not None for one in observations) else "absolute"


def fit(observations: Sequence[Observation], free: Sequence[str] = COEFFICIENTS) -> Fitted:
    """Fits the `free` coefficients, the others 0 (1 of the sheet for weights, kv and prefill). Needs a row."""
    import numpy as np
    from scipy.optimize import least_squares, nnls

    reference = reference_of(observations)
    drivers, times, weights = _system(observations, reference)
    chosen = np.array([name in free for name in COEFFICIENTS])
    bounds = np.array([
        1.0 if reference == "sheet" and name in SHEET_BOUND else 0.0 for name in COEFFICIENTS
    ])  # fmt: skip
    relative = drivers / times[:, None]
    size = np.maximum(np.max(np.abs(relative), axis=0), 1e-30)  # so that every column is of order one
    scaled = (relative / size)[:, chosen]
    lowest = (bounds * size)[chosen]
    root = np.sqrt(weights)
    start = lowest + nnls(scaled * root[:, None], np.maximum(1.0 - scaled @ lowest, 0.0) * root)[0]

    def residuals(theta: Any) -> Any:
        return np.log(np.maximum(scaled @ theta, 1e-9)) * root

    found = least_squares(
        residuals, np.maximum(start, lowest + 1e-9), bounds=(lowest, np.inf), loss="soft_l1", f_scale=_OUTLIER,
        x_scale=np.maximum(np.abs(start), 1e-3), xtol=1e-12, ftol=1e-12, gtol=1e-12, max_nfev=2000,
    )  # fmt: skip
    theta = np.where(found.x - lowest < 1e-6, lowest, found.x)
    errors = np.log(np.maximum(scaled @ theta, 1e-9))
    known = _identified(scaled, theta, lowest, errors, root)
    values, flags = np.zeros(len(COEFFICIENTS)), np.zeros(len(COEFFICIENTS), dtype=bool)
    values[chosen], flags[chosen] = theta / size[chosen], known
    return Fitted(reference, tuple(values.tolist()), tuple(flags.tolist()), float(np.median(np.abs(errors))))


def _system(observations: Sequence[Observation], reference: Reference) -> tuple[Any, Any, Any]:
    """Drivers [equations, coefficients] in the units of the reference, measured seconds, weights."""
    import numpy as np

    rows, times, models = [], [], []
    for one in observations:
        unit, vectors = units(reference, one.sheet), one.vectors
        queued = one.concurrency > one.batch
        for name, seconds in one.measured_seconds().items():
            if name in vectors and not (name == "ttft" and queued):
                rows.append([driver * by for driver, by in zip(vectors[name], unit, strict=True)])
                times.append(seconds)
                models.append(one.model)
    count = Counter(models)
    return np.array(rows), np.array(times), np.array([1.0 / count[model] for model in models])


def _identified(scaled: Any, theta: Any, lowest: Any, errors: Any, root: Any) -> Any:
    """Standard errors from the curvature; a coefficient at its bound, or that no time depends on, is not identified."""
    import numpy as np

    predicted = np.maximum(scaled @ theta, 1e-9)
    jacobian = scaled / predicted[:, None] * root[:, None]
    freedom = max(len(errors) - len(theta), 1)
    noise = float(np.sum((errors * root) ** 2)) / freedom
    # A ridge far below the data: a direction they do not see becomes a large variance instead of a failure.
    information = jacobian.T @ jacobian
    information += np.eye(len(theta)) * 1e-12 * max(float(np.trace(information)), 1e-12)
    deviation = np.sqrt(np.maximum(np.diag(np.linalg.inv(information)), 0.0) * noise)
    share = np.max(scaled * theta / predicted[:, None], axis=0)
    return (theta > lowest) & (deviation < _IDENTIFIED * theta) & (share >= _LEAST_SHARE)


def uncalibrated(observations: Sequence[Observation]) -> Fitted:
    """The layer below: bandwidth and FLOPs alone, without any cost of a step, a sequence or a token.

    On a device with a sheet both shares are 1 (MBU = MFU = 1). Without one there are no peaks to take, and one
    bandwidth and one FLOP rate are fitted, which favours this layer.
    """
    reference = reference_of(observations)
    values = [0.0] * len(COEFFICIENTS)
    if reference == "sheet":
        for name in ("weights", "kv", "prefill_compute"):
            values[COEFFICIENTS.index(name)] = 1.0
        return Fitted(reference, tuple(values), (False,) * len(values), 0.0)
    return fit(observations, ("weights", "kv", "prefill_compute"))


__all__ = ["METRICS", "Fitted", "estimate", "fit", "reference_of", "uncalibrated"]
