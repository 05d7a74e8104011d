"""Arithmetic of paired benchmark runs: ratios, their intervals, and what may be concluded from them.

Runs that follow each other on one machine share its drift, so they are compared within a pair and never pool
against pool. Ratios are averaged as logarithms: halving and doubling then cancel.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
MOST_PAIRS = 10_000


def geometric_mean(values: Sequence[float]) -> float:
    """Mean of positive values by their logarithms."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


@dataclass(frozen=True)
class Change:
    """A relative change over `pairs` pairs, as shares of 1 (0.01 is one per cent), with its 95 % interval.

    `sd` is the standard deviation of one pair's log ratio. With a single pair nothing is known of the spread: `low` and
    `high` are then infinite.
    """

    change: float
    low: float
    high: float
    sd: float
    pairs: int

    @classmethod
    def of(cls, treated: Sequence[float], reference: Sequence[float]) -> Change:
        """Change of `treated` against `reference`, both positive, pair by pair: Student's t on the log ratios."""
        if len(treated) != len(reference) or not treated:
            raise ValueError(f"{len(treated)} treated and {len(reference)} reference values make no pairs")
        logs = [math.log(one / other) for one, other in zip(treated, reference, strict=True)]
        mean = statistics.fmean(logs)
        if len(logs) < 2:
            return cls(math.expm1(mean), -math.inf, math.inf, math.nan, 1)
        sd = statistics.stdev(logs)
        half = _t(len(logs)) * sd / math.sqrt(len(logs))
        return cls(math.expm1(mean), math.expm1(mean - half), math.expm1(mean + half), sd, len(logs))

    def verdict(self, limit: float) -> str:
        """Whether the change is within +-`limit`: `shown` or `refuted` by the whole interval, else `undecided`."""
        if -limit < self.low and self.high < limit:
            return "shown"
        return "refuted" if self.low >= limit or self.high <= -limit else "undecided"

    def pairs_needed(self, limit: float) -> int | None:
        """Fewest pairs that would decide, if change and spread stay as seen; None where no number (below 10,000) would.

        This many pairs decide about every second time: the next interval is as likely a little wider as narrower.
        """
        if self.pairs < 2:
            return None
        mean = abs(math.log1p(self.change))
        # The nearer bound is the one that the interval must not reach.
        room = min(abs(mean - math.log1p(limit)), abs(mean + math.log1p(-limit)))
        needed = (n for n in range(2, MOST_PAIRS) if _t(n) * self.sd / math.sqrt(n) < room)
        return next(needed, None)


def _t(pairs: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.5 + CONFIDENCE / 2, pairs - 1))
