"""Does an open load pile up? How much longer requests take, the later they are due.

An engine that serves only the share r of what is offered keeps every request longer than the one before: a request due
one second later ends 1/r seconds later, so its latency grows by 1/r - 1 seconds a second. Unlike a rate of completions,
this does not depend on when the last requests end, on unequal lengths, or on the chance of so many arrivals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.load.records import RequestRecord

BLOCKS = 20  # of consecutive requests; their medians are what a slope is drawn through
LEAST_REQUESTS = 8
SETTLED_REQUESTS = 16  # with so many, the first half is left out: there an empty engine fills up


def latency_growth(records: Sequence[RequestRecord]) -> tuple[float, float] | None:
    """Seconds that the latency of a request of mean output length grows by, per second that it is due later.

    The sum of two slopes over the due time, each Theil and Sen's through the medians of :data:`BLOCKS` blocks: that of
    TTFT, and that of TPOT times the mean number of tokens after the first. Returned with the low end of the 95 %
    interval of TTFT's (Sen 1968), which takes blocks to be independent and is therefore a little too narrow. None for
    fewer than :data:`LEAST_REQUESTS` completed requests.
    """
    ok = sorted((r for r in records if r.outcome == "ok" and r.ttft_s is not None), key=lambda r: r.scheduled_ns)
    if len(ok) >= SETTLED_REQUESTS:
        ok = ok[len(ok) // 2 :]
    if len(ok) < LEAST_REQUESTS or ok[-1].scheduled_ns == ok[0].scheduled_ns:
        return None
    due_s = np.array([r.scheduled_ns for r in ok], dtype=np.float64) / 1e9
    first, low = _slope(due_s, np.array([r.ttft_s for r in ok], dtype=np.float64))
    steps = np.array([(at, r.tpot_s) for at, r in zip(due_s, ok, strict=True) if r.tpot_s is not None])
    if len(steps) < LEAST_REQUESTS:
        return first, low
    later, _ = _slope(steps[:, 0], steps[:, 1])
    more = later * (float(np.mean([r.output_tokens for r in ok])) - 1)
    return first + more, low + more


def served_share(growth: float) -> float:
    """The share of what is offered that an engine serves, from the growth of its latency; 1 where nothing piles up."""
    return 1 / (1 + max(growth, 0.0))


def _slope(at_s: Any, value_s: Any) -> tuple[float, float]:
    """Theil-Sen slope through the blocks' medians, and the low end of its interval."""
    from scipy import stats  # half a second to import: not for those who send closed loops

    blocks = [part for part in np.array_split(np.arange(len(at_s)), BLOCKS) if len(part)]
    x = np.array([np.median(at_s[part]) for part in blocks])
    y = np.array([np.median(value_s[part]) for part in blocks])
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0, 0.0
    found = stats.theilslopes(y, x, alpha=0.95)
    return float(found.slope), float(found.low_slope)
