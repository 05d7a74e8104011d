"""The search for the knee: the highest load that still meets an objective, found by bracketing. No engine in here.

    search = KneeSearch(low=1, high=None, tolerance=0.1, max_trials=12)
    while (value := search.next_value()) is not None:
        search.tell(value, met=...)
    knee = search.knee()
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.config.knee import SHARE_OBJECTIVES, KneeConfig
from bench.load.growth import served_share

BRACKETED, AT_LEAST, BELOW, UNFINISHED = "bracketed", "at_least", "below", "unfinished"
"""Outcomes: between two trials; even the highest load held; even the lowest did not; it ended before it knew."""


STEADY_SHARE = 0.5
"""The steady part of a trial is judged, and not the whole, where at least this share of its requests was due in it."""


@dataclass(frozen=True)
class Trial:
    """One load that was tried."""

    value: float
    met: bool


@dataclass(frozen=True)
class Knee:
    """The answer. `highest_met` held in most trials of it and lies below `lowest_broken`; None: there is none."""

    outcome: str
    highest_met: float | None
    lowest_broken: float | None
    trials: int
    notes: tuple[str, ...] = ()

    def sentence(self, axis: str) -> str:
        """The answer for a person."""
        unit = " requests/s" if axis == "rate" else ""
        if self.outcome == BELOW:
            said = f"below {self.lowest_broken:g}{unit}: the lowest {axis} tried did not hold"
        elif self.highest_met is None:
            said = "not found: no trial ended"
        elif self.outcome == BRACKETED:
            said = f"{axis} {self.highest_met:g}{unit} holds, {self.lowest_broken:g} does not"
        elif self.outcome == AT_LEAST:
            said = f"at least {axis} {self.highest_met:g}{unit}: nothing tried broke it"
        else:
            upper = "no upper end" if self.lowest_broken is None else f"{self.lowest_broken:g} does not"
            said = f"{axis} {self.highest_met:g}{unit} holds, {upper}; the search did not finish"
        return f"{said} ({self.trials} trial{'s' if self.trials != 1 else ''})"


@dataclass
class KneeSearch:
    """Geometric bracketing, then bisection at the geometric middle; with `whole`, whole numbers alone.

    `low` comes first. Then `high`, if given, or doubling until a trial breaks. With `confirm` both ends of the bracket
    are tried once more before they stand, so that a chance hiccup no more lowers the answer than a lucky trial raises
    it; where the two trials of a load disagree, a third decides (a tie that stays counts as broken). Of contradicting
    answers (a load that broke below one that held) the lowest broken one decides, and the contradiction is noted.
    """

    low: float
    high: float | None = None
    tolerance: float = 0.1
    max_trials: int = 12
    whole: bool = False
    confirm: bool = True
    trials: list[Trial] = field(default_factory=list)
    stopped: str = ""
    """Why no further load can be tried."""

    @classmethod
    def of(cls, config: KneeConfig) -> KneeSearch:
        """The search that `config` asks for."""
        whole = config.axis == "concurrency"
        return cls(config.low, config.high, config.tolerance, config.max_trials, whole, config.confirm)

    def tell(self, value: float, met: bool) -> None:
        """The answer of a trial."""
        self.trials.append(Trial(value, met))

    def next_value(self) -> float | None:
        """The load to try next; None when the search has ended."""
        if len(self.trials) >= self.max_trials or self.stopped:
            return None
        if self.confirm and (tied := [trial.value for trial in self.trials if self._lead(trial.value) == 0]):
            return tied[0]
        met, broken = self._bracket()
        if met is None:
            # Where the lowest load broke there is nothing below it to search.
            return self.low if broken is None or self._unconfirmed(broken) else None
        if broken is None:
            if met == self.high:
                return met if self._unconfirmed(met) else None
            return self.high if self.high is not None else met * 2
        if not self._close(met, broken):
            return self._between(met, broken)
        return next((value for value in (broken, met) if self._unconfirmed(value)), None)

    def knee(self) -> Knee:
        """The answer so far; final once `next_value` gave None."""
        met, broken = self._bracket()
        ran_out = len(self.trials) >= self.max_trials
        if met is None:
            outcome = UNFINISHED if broken is None else BELOW
        elif broken is not None and self._close(met, broken):
            outcome = BRACKETED
        elif broken is None and (met == self.high or self.stopped or self.high is None and ran_out):
            outcome = AT_LEAST
        else:
            outcome = UNFINISHED
        return Knee(outcome, met, broken, len(self.trials), self._notes(met, broken))

    def _bracket(self) -> tuple[float | None, float | None]:
        """(highest met below every broken one, lowest broken)."""
        tried = {trial.value for trial in self.trials}
        broken = min((value for value in tried if self._lead(value) <= 0), default=None)
        met = max((v for v in tried if self._lead(v) > 0 and (broken is None or v < broken)), default=None)
        return met, broken

    def _lead(self, value: float) -> int:
        """Trials of a load that held, less those that broke."""
        return sum(1 if trial.met else -1 for trial in self.trials if trial.value == value)

    def _close(self, met: float, broken: float) -> bool:
        return broken / met <= 1 + self.tolerance * (1 + 1e-9) or (self.whole and broken - met <= 1)

    def _between(self, met: float, broken: float) -> float:
        middle = math.sqrt(met * broken)
        if not self.whole:
            # Four digits: a rate that a person can type again.
            return float(f"{middle:.4g}") if met < float(f"{middle:.4g}") < broken else middle
        return min(max(round(middle), int(met) + 1), int(broken) - 1)

    def _unconfirmed(self, value: float) -> bool:
        return self.confirm and sum(trial.value == value for trial in self.trials) < 2

    def _notes(self, met: float | None, broken: float | None) -> tuple[str, ...]:
        notes = []
        held_above = sorted({t.value for t in self.trials if t.met and broken is not None and t.value > broken})
        if held_above:
            shown = ", ".join(f"{value:g}" for value in held_above)
            notes.append(f"not monotone: {broken:g} broke although {shown} held; the trials are noisy or too short")
        both = sorted({t.value for t in self.trials if t.met} & {t.value for t in self.trials if not t.met})
        if both:
            shown = ", ".join(f"{value:g}" for value in both)
            notes.append(f"unstable: {shown} both held and broke; the majority of its trials decides")
        notes += [f"{end:g} was tried once only" for end in (met, broken) if end is not None and self._unconfirmed(end)]
        if self.stopped:
            notes.append(self.stopped)
        if len(self.trials) >= self.max_trials and not (met is not None and broken is not None
                                                        and self._close(met, broken)):  # fmt: skip
            notes.append(f"max_trials={self.max_trials} reached before the bracket was within {self.tolerance:.0%}")
        return tuple(notes)


def judge(row: Mapping[str, Any], config: KneeConfig) -> tuple[bool, str]:
    """Whether a trial's `row` (columns of the workloads table) meets `config.slo`, and the first reason if not."""
    wanted, completed = row.get("num_requests") or 0, row.get("completed") or 0
    steady = (row.get("steady_requests") or 0) >= STEADY_SHARE * completed
    prefix, where = ("steady_", ", steady state") if steady else ("", "")
    if completed < config.min_completed_share * wanted or not completed:
        cause = f" ({row['failure_cause']})" if row.get("failure_cause") else ""
        return False, f"{completed} of {wanted} requests completed{cause}"
    for name, limit in config.slo.items():
        value = row.get(prefix + name)
        if value is None:
            return False, f"{name} was not measured"
        if name in SHARE_OBJECTIVES:
            if value < limit:
                return False, f"{name} {value:.3f} < {limit:g}{where}"
        elif value > limit:
            return False, f"{name} {value:.4g} s > {limit:g} s{where}"
    growth = row.get("latency_growth")
    if config.axis == "rate" and growth is not None and served_share(growth) < config.min_rate_share:
        return False, f"served about {served_share(growth):.0%} of the rate: latency grew {growth:.2g} s every second"
    return True, ""
