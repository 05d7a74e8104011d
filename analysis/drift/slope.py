"""The slope of memory over time, with an interval that does not pretend samples are independent, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from analysis.drift.steps import staircase

MIB = 2**20
LEAST_BYTES_PER_S = MIB / 60
"""Growth below this is called flat: 1 MiB a minute is 1.4 GiB a day."""
LEAST_GROWTH_BYTES = 4 * MIB
"""Growth over the whole time that says anything: an allocator takes memory in steps of about this size, so a short run
cannot tell a slow leak from one step."""

LEAST_BLOCKS, MOST_BLOCKS = 8, 30
SAMPLES_PER_BLOCK = 4
CONFIDENCE = 0.95

LEAST_SECONDS = 120.0
"""A load held for less says nothing about growth: every engine settles for a while, and in a short run settling looks
like a leak. Nineteen in twenty of it will do, because the first and the last sample lie within the load."""

_STEADY, _BEND_ERRORS = 0.7, 2.5
_WALK_ERRORS, _LAGS = 2.5, 3
"""How slowing and wandering are told from a leak. Judgements, checked by simulation (tests/analysis/drift)."""

Verdict = Literal["leak", "levels_off", "flat", "undecided"]


@dataclass(frozen=True, slots=True)
class Slope:
    """Bytes a second with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Drift:
    """What a series does.

    `whole` is the slope over all of it, `late` over its second half. `growth_bytes` is the last block's level minus the
    first's. The verdict:

    leak: the second half still grows, by more than `least_bytes_per_s` at the low end of its interval, or the whole is
        a staircase (`analysis.drift.steps`). The whole's interval lies above zero, and it ends above all of the first
        half: a swing that returns to where it was has not grown. It is not slowing, and not such a rise as chance steps
        make.
    levels_off: it ends higher than it began, by more than that rate over the whole time and more than its noise, and
        the second half does not show growth.
    flat: neither, and the second half's interval ends below a growth worth naming.
    undecided: the interval of the second half is too wide to say, or it grows and may yet stop; a longer run tells.
    """

    seconds: float
    samples: int
    blocks: int
    first_bytes: float
    growth_bytes: float
    whole: Slope
    late: Slope
    least_bytes_per_s: float
    verdict: Verdict


class TooShort(ValueError):
    """Too few samples for a slope, or over too short a time: one sentence with what would do."""


def drift(
    t_s: Sequence[float], size_bytes: Sequence[float], least_bytes_per_s: float | None = None,
    least_seconds: float = LEAST_SECONDS,
) -> Drift:  # fmt: skip
    """The drift of a series of sizes at times; order does not matter. Raises TooShort.

    `least_bytes_per_s`: growth worth naming; None for LEAST_BYTES_PER_S, or in a run of less than four minutes for
    LEAST_GROWTH_BYTES over its time. `least_seconds`: the time below which there is no answer.

    Samples follow each other closely and are anything but independent, so the series is cut into blocks of equal
    time, and only the blocks' medians are used. The slope is Theil and Sen's, the median over all pairs of blocks: one
    step of an allocator, or one late spike, does not turn it. Its interval (Sen 1968, by Kendall's tau) is widened by
    sqrt((1+r)/(1-r)) for the lag-1 autocorrelation r that is left between the blocks' residuals, the factor by which
    an AR(1) series has fewer effective samples; r is corrected for its bias of -(1+3r)/n (Kendall 1954); each further
    coefficient of a fit adds one and one r to it.
    """
    import numpy as np

    order = np.argsort(np.asarray(t_s, dtype=float), kind="stable")
    t = np.asarray(t_s, dtype=float)[order]
    y = np.asarray(size_bytes, dtype=float)[order]
    kept = np.isfinite(t) & np.isfinite(y)
    t, y = t[kept], y[kept]
    count = min(MOST_BLOCKS, t.size // SAMPLES_PER_BLOCK)
    if count < LEAST_BLOCKS or t[-1] <= t[0]:
        needed = LEAST_BLOCKS * SAMPLES_PER_BLOCK
        raise TooShort(f"{t.size} samples of memory are too few for a slope; at least {needed} are needed")
    seconds = float(t[-1] - t[0])
    if seconds < 0.95 * least_seconds:
        needed = f"hold it for {least_seconds:g} s or more"
        raise TooShort(f"{seconds:.0f} s of load cannot tell a leak from settling; {needed}")
    edges = np.linspace(t[0], t[-1], count + 1)
    place = np.clip(np.searchsorted(edges, t, side="right") - 1, 0, count - 1)
    filled = [k for k in range(count) if (place == k).any()]
    at = np.array([np.median(t[place == k]) for k in filled])
    level = np.array([np.median(y[place == k]) for k in filled])
    if len(filled) < LEAST_BLOCKS:
        empty = count - len(filled)
        raise TooShort(f"the samples leave {empty} of {count} parts of the time empty; sample more evenly")
    if least_bytes_per_s is None:
        least_bytes_per_s = max(LEAST_BYTES_PER_S, LEAST_GROWTH_BYTES / seconds)
    half = len(filled) // 2
    whole, late = _theil_sen(at, level), _theil_sen(at[half:], level[half:])
    return Drift(
        seconds=seconds, samples=int(t.size), blocks=len(filled), first_bytes=float(level[0]),
        growth_bytes=float(level[-1] - level[0]), whole=whole, late=late, least_bytes_per_s=least_bytes_per_s,
        verdict=_verdict(at, level, whole, late, least_bytes_per_s, seconds),
    )  # fmt: skip


def _theil_sen(t: Any, y: Any) -> Slope:
    import numpy as np
    from scipy import stats

    if np.ptp(y) == 0:
        return Slope(0.0, 0.0, 0.0)
    value, intercept, low, high = (float(one) for one in stats.theilslopes(y, t, alpha=CONFIDENCE))
    wider = _widening(y - (intercept + value * t))
    return Slope(value, value - (value - low) * wider, value + (high - value) * wider)


def _widening(residuals: Any, fitted: int = 2) -> float:
    """How much wider an interval is for residuals of which each follows the one before, after a fit of so many
    coefficients."""
    import numpy as np

    spread = float(np.dot(residuals, residuals))
    r = float(np.dot(residuals[1:], residuals[:-1])) / spread if spread > 0 else 0.0
    r += (fitted - 1 + (fitted + 1) * r) / len(residuals)
    return math.sqrt((1 + r) / (1 - r)) if (r := min(r, 0.9)) > 0 else 1.0


def _slowing(t: Any, y: Any) -> bool:
    """Whether the growth still slows: a parabola bends down by more than chance, and grows at its end at less than
    `_STEADY` of the rate at its beginning. Settling may take any time; the first fifth is left out, so that a warm-up
    does not hide the leak behind it."""
    import numpy as np

    t, y = t[len(t) // 5 :], y[len(y) // 5 :]
    x = (t - t.mean()) / (t[-1] - t[0])
    design = np.vander(x, 3, increasing=True)
    fitted = np.linalg.lstsq(design, y, rcond=None)[0]
    _, rate, bend = (float(one) for one in fitted)
    begin, end = rate + 2 * bend * float(x[0]), rate + 2 * bend * float(x[-1])
    if bend >= 0 or begin <= 0 or end >= _STEADY * begin:
        return False
    residuals = y - design @ fitted
    spread = float(np.dot(residuals, residuals))
    variance = spread / (len(y) - 3) * float(np.linalg.inv(design.T @ design)[2, 2])
    return bend < -_BEND_ERRORS * math.sqrt(variance) * _widening(residuals, 3)


def _wanders(y: Any) -> bool:
    """Whether the rise is one that chance steps, each on top of the last, would often make: its mean increment is
    within `_WALK_ERRORS` of its error, by the increments' long-run variance (Bartlett weights, Newey and West 1987).
    What swings about a line takes its increments back, so that a leak under noise does not look like this."""
    import numpy as np

    steps = np.diff(y)
    mean = float(steps.mean())
    rest = steps - mean
    variance = float(np.dot(rest, rest))
    for lag in range(1, _LAGS + 1):
        variance += 2 * (1 - lag / (_LAGS + 1)) * float(np.dot(rest[lag:], rest[:-lag]))
    return mean <= _WALK_ERRORS * math.sqrt(max(variance, 0.0)) / len(steps)


def _verdict(t: Any, level: Any, whole: Slope, late: Slope, least: float, seconds: float) -> Verdict:
    import numpy as np

    half = len(level) // 2
    # Whatever its end does, a series whose whole does not clearly rise is not accused.
    rises = whole.low > 0 and level[-1] > level[:half].max()
    if rises and staircase(t, level, least):
        return "leak"
    if late.low > least:
        steady = not _slowing(t, level) and not _wanders(level[len(level) // 4 :])
        return "leak" if rises and steady else "undecided"
    # Levels and not the whole slope: growth that ends early leaves most pairs of blocks flat.
    settled = level[half:]
    noise = float(np.median(np.abs(settled - np.median(settled))))
    growth = float(np.median(settled) - level[0])
    if growth > max(least * seconds, 3 * noise):
        # Where the second half might still grow as fast as the whole did, nothing has been shown.
        return "levels_off" if late.high < max(growth / seconds, 2 * least) else "undecided"
    # An interval that reaches far beyond what is worth naming has not shown that there is nothing.
    return "flat" if late.high <= 5 * least else "undecided"
