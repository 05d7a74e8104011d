"""What `bench` has measured of a ladder already (`on_oom=mitigate`), folded into what is predicted of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.diagnose.case import MEMORY_CAUSES, Case
from analysis.diagnose.ladder import Rung, first_working, ladder

GIB = 2**30
_PASSING = ("device_not_clean", "port_in_use", "interrupted", "harness_error")
"""Causes that say nothing of the rung: it is started again by the next sweep."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A rung that was started. `rung` is its prediction; None where today's ladder does not come to it."""

    row: Mapping[str, Any]
    rung: Rung | None

    @property
    def works(self) -> bool:
        """It started and its workloads went through."""
        return self.row.get("status") == "ok"

    @property
    def failed(self) -> bool:
        """It was shown not to work."""
        return not self.works and self.row.get("failure_cause") not in _PASSING

    @property
    def change(self) -> str:
        return str(self.row.get("mitigation_change"))

    def said(self) -> str:
        """How it ended, with its run."""
        parts = [str(self.row.get("status"))]
        parts += [str(self.row["failure_cause"])] if self.row.get("failure_cause") else []
        short = self.row.get("shortfall_bytes")
        parts += [f"still {short / GIB:.2f} GiB short"] if short is not None else []
        return f"{', '.join(parts)} ({self.row.get('run_id')})"


@dataclass(frozen=True, slots=True)
class Answer:
    """Rungs as predicted after all that was measured, those shown to fail among them; and what was tried, in order."""

    rungs: list[Rung]
    tried: list[Tried]

    @property
    def measured(self) -> Tried | None:
        """The rung measured to work, the last where several were."""
        return next((one for one in reversed(self.tried) if one.works), None)

    @property
    def best(self) -> Rung | None:
        """What to do: the rung measured to work where its prediction is known, else the gentlest predicted to work."""
        if self.measured is not None:
            return self.measured.rung
        return first_working(self.rungs)


def answer(case: Case, rows: Sequence[Mapping[str, Any]]) -> Answer:
    """`rows` are the recorded rungs of the walk for `case`, oldest first. Raises Unpredictable.

    A rung that failed for memory again says how much was really short, what it was to free and what it still lacked;
    so the rest of the ladder is made for that, as the walk itself does.
    """
    rungs = ladder(case)
    latest: dict[str, Tried] = {}
    for row in rows:
        found = Tried(row, next((one for one in rungs if one.change == row.get("mitigation_change")), None))
        latest.pop(found.change, None)
        latest[found.change] = found
        if found.failed and row.get("failure_cause") in MEMORY_CAUSES and row.get("mitigation_gain_bytes") is not None:
            truth = int(row["mitigation_gain_bytes"]) + int(row.get("shortfall_bytes") or 0)
            case = dataclasses.replace(case, shortfall_bytes=max(case.shortfall_bytes or 0, truth))
            rungs = ladder(case)
    tried = list(latest.values())
    return Answer(_folded(rungs, tried), tried)


def _folded(rungs: Sequence[Rung], tried: Sequence[Tried]) -> list[Rung]:
    """The ladder with what was tried and failed before it where it no longer names that, and marked where it does."""
    ended = {one.change: one for one in tried if one.failed}
    told = {rung.change for rung in rungs}
    before = [_failed(one.rung, one) for change, one in ended.items() if change not in told and one.rung is not None]
    return before + [_failed(rung, ended[rung.change]) if rung.change in ended else rung for rung in rungs]


def _failed(rung: Rung, tried: Tried) -> Rung:
    return dataclasses.replace(rung, works=False, note=f"measured: {tried.said()}")
