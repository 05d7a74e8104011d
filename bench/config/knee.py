"""What a knee search asks: how far can the load go while a service-level objective still holds?"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bench.config.checks import one_of, positive, require
from bench.load.percentiles import METRICS, STATISTICS, column

AXES = ("rate", "concurrency")
RATE_PATTERNS = ("constant", "poisson", "gamma")

LATENCY_OBJECTIVES = tuple(column(metric, statistic) for metric in METRICS for statistic in STATISTICS)
"""Upper limits, seconds."""

SHARE_OBJECTIVES = ("goodput_share",)
"""Lower limits, 0 to 1. `goodput_share` is the share of requests that met the workload's own `slo`."""


@dataclass
class KneeConfig:
    """A search on one live engine for the highest load that still meets `slo`.

    Each trial is a workload of its own with fresh prompts; every trial is a row. The load of a trial is what the
    workload point says, with the axis set to the value on trial.
    """

    axis: str = "concurrency"
    """`concurrency` (closed loop, requests in flight) or `rate` (open loop, requests/s)."""
    low: float = 1.0
    """Where the search starts; it should meet the objective."""
    high: float | None = None
    """A load expected to break it; null: double from `low` until it breaks."""
    tolerance: float = 0.1
    """Stop when the lowest load that broke is within this share of the highest that held."""
    max_trials: int = 12
    """Trials at most, the confirming ones included."""
    confirm: bool = True
    """Try both ends of the answer once more with other prompts; where two trials of one disagree, a third decides."""
    slo: dict[str, float] = field(default_factory=dict)
    """Objective by column of the workloads table, such as {ttft_p99_s: 0.5, tpot_p99_s: 0.05}; seconds are upper
    limits, `goodput_share` is a lower one. All must hold: in the steady part of a trial where most of its requests were
    due in one, for all requests begin at once and the burst belongs to no lasting load; else in the whole of it."""
    min_completed_share: float = 1.0
    """Share of a trial's requests that must complete."""
    min_rate_share: float = 0.9
    """Rate axis: share of the offered load that must be served, by how latency grows during the trial
    (`latency_growth`). A short trial just past saturation ends before its queue is long enough to break a latency
    objective: this tells it from a load the engine keeps up with."""
    trial_s: float = 10.0
    """Rate axis: seconds of offered load a trial, at least."""
    requests_per_slot: float = 4.0
    """Concurrency axis: requests a trial for each one in flight, at least."""

    def check(self, prefix: str, pattern: str, stated_slo: bool) -> None:
        """Refuse values out of range; `prefix` names the workload point's knee, `pattern` is the point's, and
        `stated_slo` says whether the point has an `slo_*_s` for the goodput."""
        one_of(f"{prefix}.axis", self.axis, AXES)
        patterns = RATE_PATTERNS if self.axis == "rate" else ("closed_loop",)
        fits = pattern in patterns
        require(fits, f"{prefix}.axis", self.axis, f"needs pattern {' or '.join(patterns)}, not {pattern}")
        positive(f"{prefix}.low", self.low)
        require(self.low < math.inf, f"{prefix}.low", self.low, "must be finite")
        whole = self.axis == "rate" or all(v is None or v == int(v) for v in (self.low, self.high))
        require(whole, f"{prefix}.low, high", f"{self.low}, {self.high}", "a concurrency is a whole number")
        require(
            self.high is None or self.low < self.high < math.inf,
            f"{prefix}.high", self.high, f"must be greater than low={self.low:g}, or null to double from there",
        )  # fmt: skip
        require(0 < self.tolerance <= 1, f"{prefix}.tolerance", self.tolerance, "use more than 0 and at most 1")
        require(self.max_trials >= 2, f"{prefix}.max_trials", self.max_trials, "a bracket takes at least 2 trials")
        for name in ("min_completed_share", "min_rate_share"):
            value = getattr(self, name)
            require(0 < value <= 1, f"{prefix}.{name}", value, "use more than 0 and at most 1")
        positive(f"{prefix}.trial_s", self.trial_s)
        positive(f"{prefix}.requests_per_slot", self.requests_per_slot)
        require(bool(self.slo), f"{prefix}.slo", "{}", "name at least one objective, as in {ttft_p99_s: 0.5}")
        for name, limit in self.slo.items():
            known = name in LATENCY_OBJECTIVES or name in SHARE_OBJECTIVES
            wanted = "use {ttft,tpot,itl,e2e}_{mean,p50,...,max}_s in seconds, or goodput_share"
            require(known, f"{prefix}.slo", name, wanted)
            share = name in SHARE_OBJECTIVES
            good = "say what counts as good: slo_ttft_s, slo_tpot_s, slo_itl_s, slo_e2e_s"
            require(not share or stated_slo, f"{prefix}.slo", name, good)
            possible = 0 < limit <= (1 if share else 1e9)
            require(possible, f"{prefix}.slo.{name}", limit, "use a share up to 1" if share else "use seconds above 0")
