"""The statistics, over many cells at once: arrays of shape (cells, restarts).

Mann-Whitney U: H. B. Mann, D. R. Whitney, Ann. Math. Stat. 18 (1947); exact, ties included, by counting how many of
the C(n+m, n) ways to deal out the ranks give a sum at least as extreme. Interval of the shift: Hodges-Lehmann, the
same test inverted (J. L. Hodges, E. L. Lehmann, Ann. Math. Stat. 34 (1963)). Moderated t: G. K. Smyth, Stat. Appl.
Genet. Mol. Biol. 3 (2004). Corrections: Benjamini-Hochberg (J. R. Stat. Soc. B 57 (1995)) and Holm.

Of SciPy only its special functions are imported: `scipy.stats` takes longer to import than a set takes to compare. The
tests hold what is done here against it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

EXACT_PAIRS = 2500
"""Largest n x m for which p is counted exactly; above, the normal approximation with ties and continuity corrected."""


def smallest_p(n: int, m: int) -> float:
    """Two-sided p of two samples that do not overlap at all: the least the U test can ever say."""
    return min(1.0, 2.0 / math.comb(n + m, n)) if n and m else 1.0


def restarts_needed(level: float) -> int:
    """Smallest n for which n against n restarts can reach `level`, two-sided, in the U test."""
    n = 1
    while smallest_p(n, n) > level:
        n += 1
    return n


@lru_cache(maxsize=4096)
def _rank_sums(n: int, ties: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """P(sum of the doubled mid-ranks of n of the values <= s) and >= s, for s = 0, 1, ...; `ties`: sizes of ties."""
    import numpy as np

    doubled, start = [], 0
    for size in ties:
        doubled += [2 * start + size + 1] * size
        start += size
    ways = np.zeros((n + 1, sum(doubled[-n:]) + 1))
    ways[0, 0] = 1.0
    for rank in doubled:
        for taken in range(n, 0, -1):
            ways[taken, rank:] += ways[taken - 1, : ways.shape[1] - rank]
    share = ways[n] / ways[n].sum()
    return np.cumsum(share), np.cumsum(share[::-1])[::-1]


def mann_whitney(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Two-sided p of every row of a (k, n) against b (k, m)."""
    import numpy as np

    n, m = a.shape[1], b.shape[1]
    both = np.concatenate([a, b], axis=1)
    order = np.argsort(both, axis=1)
    ordered = np.take_along_axis(both, order, axis=1)
    tied = (np.diff(ordered, axis=1) == 0).any(axis=1)
    sums = 2 * np.where(order < n, np.arange(1, n + m + 1), 0).sum(axis=1)
    if tied.any():
        sums[tied] = np.where(order[tied] < n, _doubled_ranks(ordered[tied]), 0).sum(axis=1)
    p = np.ones(len(a))
    if n * m <= EXACT_PAIRS:
        below, above = _rank_sums(n, (1,) * (n + m))
        clean = ~tied
        p[clean] = 2 * np.minimum(below[sums[clean]], above[sums[clean]])
    if n + m <= 40:
        for row in np.flatnonzero(tied):
            sizes = tuple(int(size) for size in np.unique(ordered[row], return_counts=True)[1])
            below, above = _rank_sums(n, sizes)
            p[row] = 2 * min(below[sums[row]], above[sums[row]])
        tied = np.zeros_like(tied)
    rest = tied if n * m <= EXACT_PAIRS else np.ones_like(tied) if n + m > 40 else tied
    if rest.any():
        p[rest] = _normal_p(ordered[rest], sums[rest] / 2.0, n, m)
    return np.minimum(p, 1.0)


def _doubled_ranks(ordered: np.ndarray) -> np.ndarray:
    """Twice the rank of every value of sorted rows, from 1; values that are tied share the middle of their ranks."""
    import numpy as np

    place = np.arange(ordered.shape[1])
    new = np.diff(ordered, axis=1) != 0
    edge = np.ones((len(ordered), 1), bool)
    first = np.maximum.accumulate(np.where(np.hstack([edge, new]), place, 0), axis=1)
    last = np.where(np.hstack([new, edge]), place, len(place) - 1)
    last = np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1]
    return first + last + 2


def _normal_p(ordered: np.ndarray, sums: np.ndarray, n: int, m: int) -> np.ndarray:
    import numpy as np
    from scipy.special import ndtr

    size = n + m
    starts = np.concatenate([np.ones((len(ordered), 1), bool), np.diff(ordered, axis=1) != 0], axis=1)
    groups = np.cumsum(starts, axis=1) - 1 + size * np.arange(len(ordered))[:, None]
    counts = np.bincount(groups.ravel(), minlength=size * len(ordered)).reshape(len(ordered), size).astype(float)
    tied = (counts**3 - counts).sum(axis=1)
    u = sums - n * (n + 1) / 2.0
    variance = n * m / 12.0 * ((size + 1) - tied / (size * (size - 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (np.abs(u - n * m / 2.0) - 0.5) / np.sqrt(variance)
    return np.where(variance > 0, 2 * ndtr(-np.maximum(z, 0.0)), 1.0)


def hodges_lehmann(a: np.ndarray, b: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shift of b (k, m) against a (k, n): median of all differences, and its 1-alpha interval; NaN where there is none.

    The interval has no ends where n and m are too small for any: 3 against 3 at 95 %.
    """
    import numpy as np

    n, m = a.shape[1], b.shape[1]
    pairs, rank = n * m, _critical(n, m, alpha)
    shift, low, high = (np.full(len(a), np.nan) for _ in range(3))
    at = [(pairs - 1) // 2, pairs // 2]
    chunk = max(1, 400_000 // pairs)
    for first in range(0, len(a), chunk):
        rows = slice(first, first + chunk)
        # Differences from the baseline's mean keep their precision in single precision, which sorts faster.
        centre = a[rows].mean(axis=1, keepdims=True)
        kind = np.float32 if pairs > 400 else np.float64
        x, y = (a[rows] - centre).astype(kind), (b[rows] - centre).astype(kind)
        sorted_pairs = (y[:, :, None] - x[:, None, :]).reshape(len(x), pairs)
        sorted_pairs.sort(axis=1)
        shift[rows] = (sorted_pairs[:, at[0]].astype(float) + sorted_pairs[:, at[1]]) / 2
        if rank > 0:
            low[rows], high[rows] = sorted_pairs[:, rank - 1], sorted_pairs[:, pairs - rank]
    return shift, low, high


@lru_cache(maxsize=4096)
def _critical(n: int, m: int, alpha: float) -> int:
    """How many of the sorted differences lie outside the interval at each end, plus one; 0 where it is unbounded."""
    if n * m <= EXACT_PAIRS:
        import numpy as np

        below, _ = _rank_sums(n, (1,) * (n + m))
        u_below = below[n * (n + 1) :: 2]  # P(U <= 0), P(U <= 1), ...
        return int(np.searchsorted(u_below, alpha / 2 * (1 + 1e-12), side="right"))
    from scipy.special import ndtri

    return max(0, math.floor(n * m / 2 + ndtri(alpha / 2) * math.sqrt(n * m * (n + m + 1) / 12)))


@dataclass(frozen=True)
class Prior:
    """What the variances of one side's cells are drawn from: `df` 0 for nothing known, and at most `total` to gain."""

    df: float
    variance: float
    total: float = math.inf


def t_test(
    a: np.ndarray, b: np.ndarray, alpha: float, priors: tuple[Prior, Prior] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """p, difference of means and its 1-alpha interval: Welch's test, or with `priors` the moderated one.

    The moderated test is Welch's with each side's variance drawn to what that side's cells have in common, or with both
    sides' variance pooled where that is the larger error. Pooled alone, noise of the side with fewer restarts would
    count as a change if it is the noisier one; apart alone, few restarts that agree by luck would.

    Args:
        priors: of the first and the second side, in the units of the values squared.
    """
    import numpy as np
    from scipy.special import stdtr, stdtrit

    change = b.mean(axis=1) - a.mean(axis=1)
    square, shares, within = np.zeros(len(a)), np.zeros(len(a)), np.zeros(len(a))
    n, m = a.shape[1], b.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        for side, sample in enumerate((a, b)):
            spread, df = variance(sample), float(sample.shape[1] - 1)
            if priors is not None:
                spread, df = _moderated(spread, df, priors[side])
            part = spread / sample.shape[1]
            square, shares = square + part, shares + part**2 / df
            within += spread * (sample.shape[1] - 1)
        df_of = np.where(shares > 0, np.minimum(square**2 / shares, 1e6), np.where(square > 0, 1e6, np.nan))
        pooled = within / (n + m - 2) * (1 / n + 1 / m)
        error = np.sqrt(square if priors is None else np.fmax(square, pooled))
        t = change / error
        p = np.where(np.isfinite(t), 2 * stdtr(df_of, -np.abs(t)), np.where(change == 0, 1.0, np.nan))
        reach = -stdtrit(df_of, alpha / 2) * error
    return p, change, change - reach, change + reach


def _moderated(variance: np.ndarray, df: float, prior: Prior) -> tuple[np.ndarray, float]:
    import numpy as np

    if not df:
        return np.full(len(variance), prior.variance), max(min(prior.df, prior.total), 1e-9)
    if math.isinf(prior.df):
        return np.full(len(variance), prior.variance), min(prior.total, 1e6)
    return (prior.df * prior.variance + df * variance) / (prior.df + df), min(prior.df + df, max(prior.total, df))


def variance(x: np.ndarray) -> np.ndarray:
    """Of each row; NaN where it is one value."""
    import numpy as np

    # From the first value on, so that equal values have no variance at all instead of a rounding error's.
    return (x - x[:, :1]).var(axis=1, ddof=1) if x.shape[1] > 1 else np.full(len(x), np.nan)


def variance_prior(variances: np.ndarray, df: np.ndarray) -> Prior:
    """Degrees of freedom and scale of what the cells' variances are drawn from (Smyth 2004, section 6.2)."""
    import numpy as np
    from scipy.special import digamma, polygamma

    usable = (variances > 0) & (df > 0)
    z, half = np.log(variances[usable]), df[usable] / 2.0
    if len(z) < 2:
        return Prior(0.0, 1.0)
    e = z - digamma(half) + np.log(half)
    excess, total = e.var(ddof=1) - polygamma(1, half).mean(), float(df[usable].sum())
    if excess <= 0:
        return Prior(math.inf, float(np.exp(e.mean())), total)
    d0 = 2 * _trigamma_inverse(float(excess))
    return Prior(d0, float(np.exp(e.mean() + digamma(d0 / 2) - np.log(d0 / 2))), total)


def _trigamma_inverse(x: float) -> float:
    from scipy.special import polygamma

    y = 0.5 + 1.0 / x
    for _ in range(50):
        tri = float(polygamma(1, y))
        step = tri * (1 - tri / x) / float(polygamma(2, y))
        y += step
        if -step / y < 1e-8:
            break
    return y


def adjusted(p: np.ndarray, correction: str) -> np.ndarray:
    """p-values corrected over all of them: `bh`, `holm` or `none`."""
    import numpy as np

    if correction == "none" or not len(p):
        return p.copy()
    order = np.argsort(p)
    if correction == "bh":
        steps = p[order] * len(p) / np.arange(1, len(p) + 1)
        steps = np.minimum.accumulate(steps[::-1])[::-1]
    else:
        steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty_like(p)
    out[order] = np.minimum(steps, 1.0)
    return out
