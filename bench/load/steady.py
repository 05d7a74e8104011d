"""Which part of a run was steady: found by a rule, never by eye, and stated with what it leaves out.

Closed loop, rule ``all_slots_busy``: from when the last slot has its first token until the first slot ends its last
request. Before, the engine fills up; after, it runs empty.

Open loop, rule ``mser5_in_flight``: the number of requests in flight (due and not ended), averaged over equal bins of
the time in which requests were due, must level off. The start of the window is White's marginal standard error rule in
its batched form MSER-5 (K. P. White, "An effective truncation heuristic for bias reduction in simulation output",
Simulation 69, 1997; White, Cobb and Spratt, Winter Simulation Conference 2000): of all truncation points within the
first half, the one whose remainder has the smallest standard error of its mean. An optimum at the end of that half
means that the level was never reached. What remains must not drift: the window is refused when a straight line through
ten batches of it has a slope that is significant (1 %, two-sided) and makes up more than a fifth of the level: an
engine below the offered rate queues more and more. The number in flight is noisy, so latency is asked too: the window
is refused as well when it grows by more than :data:`GROWTH_LIMIT` seconds a second (:mod:`bench.load.growth`), as where
an engine serves less than 95 % of the load. The window ends with the last request due, for the load ends there. With
few requests the rule likes to cut off an early burst, so at least 50 are asked for: on simulated Poisson arrivals at an
idle engine the rate in the window is then 2 % below the true one on average (0.5 % with 100, 0.2 % with 400; with 20 it
would be 9 %).

Neither window goes on past the last request that went well, nor, in a run that was called off, past the first due time
of a request that was cut short: its tokens count nowhere, and the rate after that would be too low.

A ramp has no steady state by intention; its rule is ``none``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.load.growth import latency_growth
from bench.load.records import RequestRecord

BINS, BATCH = 400, 5
MIN_REQUESTS = 50
GROWTH_LIMIT = 0.05
DRIFT_BATCHES, DRIFT_T, DRIFT_SHARE = 10, 3.355, 0.2  # Student's t for 8 degrees of freedom, 1 % two-sided

RULES = {
    "all_slots_busy": "closed loop: from the last slot's first token to the first slot's last request",
    "mser5_in_flight": "open loop: MSER-5 on the requests in flight, without drift, until the last request was due",
    "none": "the load changes by intention (ramp)",
}


@dataclass(frozen=True, slots=True)
class SteadyWindow:
    """``time.perf_counter_ns()`` of both ends, both None where the rule found no steady state. ``drifts``: requests in
    flight never levelled off, as when the engine cannot keep up."""

    rule: str
    begin_ns: int | None = None
    end_ns: int | None = None
    drifts: bool = False


def closed_loop_window(records: Sequence[RequestRecord], slots: int) -> SteadyWindow:
    """The time in which all ``slots`` were busy."""
    rule = "all_slots_busy"
    began: dict[int, int] = {}
    ran_out: dict[int, int] = {}
    for record in records:
        ran_out[record.slot] = max(record.end_ns, ran_out.get(record.slot, 0))
        if record.first_token_ns is not None:
            began[record.slot] = min(record.first_token_ns, began.get(record.slot, record.first_token_ns))
    last_ns = _counted_until_ns(records)
    if not began or len(began) < slots or last_ns is None:
        return SteadyWindow(rule)
    begin_ns, end_ns = max(began.values()), min([last_ns, *ran_out.values()])
    return SteadyWindow(rule, begin_ns, end_ns) if end_ns > begin_ns else SteadyWindow(rule)


def open_loop_window(records: Sequence[RequestRecord]) -> SteadyWindow:
    """The time in which the requests in flight had levelled off."""
    rule = "mser5_in_flight"
    last_ns = _counted_until_ns(records)
    counted = [r.scheduled_ns for r in records if r.outcome != "aborted"]
    due_ns = [due for due in counted if last_ns is not None and due <= last_ns]
    if len(due_ns) < MIN_REQUESTS:
        return SteadyWindow(rule)
    begin_ns, end_ns = min(due_ns), max(due_ns)
    if end_ns <= begin_ns:
        return SteadyWindow(rule)
    level = in_flight(records, begin_ns, end_ns, BINS)
    cut = mser5(level)
    if cut is None or drifts(level[cut:]) or _piles_up(records):
        return SteadyWindow(rule, drifts=True)
    return SteadyWindow(rule, begin_ns + round((end_ns - begin_ns) * cut / BINS), end_ns)


def in_flight(
    records: Sequence[RequestRecord], begin_ns: int, end_ns: int, bins: int
) -> npt.NDArray[np.float64]:
    """Mean number of requests due and not ended, in each of ``bins`` equal parts of the time."""
    starts = np.sort(np.array([r.scheduled_ns for r in records], dtype=np.float64)) - begin_ns
    ends = np.sort(np.array([r.end_ns for r in records], dtype=np.float64)) - begin_ns
    edges = np.linspace(0, end_ns - begin_ns, bins + 1)
    # The integral of the number in flight up to t is sum(max(0, t - start)) - sum(max(0, t - end)).
    integral = _hinges(starts, edges) - _hinges(ends, edges)
    return np.diff(integral) / np.diff(edges)


def mser5(series: npt.NDArray[np.float64]) -> int | None:
    """Where the initial transient of ``series`` ends, by MSER-5; None if not within its first half."""
    batches = series[: len(series) // BATCH * BATCH].reshape(-1, BATCH).mean(axis=1)
    half = len(batches) // 2
    if half < 2:
        return None
    errors = [float(np.var(rest) / len(rest)) for rest in (batches[cut:] for cut in range(half + 1))]
    best = int(np.argmin(errors))
    # A flat series is steady from its start; a minimum at the end of the search is none.
    return None if best == half else best * BATCH


def drifts(series: npt.NDArray[np.float64]) -> bool:
    """Whether a series goes up or down by more than chance and by more than a fifth of its level."""
    batches = np.array([part.mean() for part in np.array_split(series, DRIFT_BATCHES)])
    x = np.arange(len(batches)) - (len(batches) - 1) / 2
    slope = float(x @ batches / (x @ x))
    rest = batches - batches.mean() - slope * x
    error = float(np.sqrt(rest @ rest / (len(x) - 2) / (x @ x)))
    significant = abs(slope) > DRIFT_T * error
    return significant and abs(slope) * len(x) > DRIFT_SHARE * float(batches.mean())


def _piles_up(records: Sequence[RequestRecord]) -> bool:
    found = latency_growth(records)
    return found is not None and found[0] > GROWTH_LIMIT and found[1] > 0


def _counted_until_ns(records: Sequence[RequestRecord]) -> int | None:
    """Until when all that was under way also counted; None where nothing did."""
    last_ns = max((r.end_ns for r in records if r.outcome == "ok"), default=None)
    cut_short_ns = [r.scheduled_ns for r in records if r.outcome == "aborted"]
    return None if last_ns is None else min([last_ns, *cut_short_ns])


def _hinges(points: npt.NDArray[np.float64], at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """sum over points p of max(0, t - p), for each t of ``at``; ``points`` sorted."""
    below = np.searchsorted(points, at, side="right")
    sums = np.concatenate([[0.0], np.cumsum(points)])
    return below * at - sums[below]
