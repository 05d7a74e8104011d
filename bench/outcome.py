"""The rows of one engine start, while they are being filled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stretch:
    """When a workload was measured, for what the telemetry knows of that time once everything has stopped.

    `phase` is the label in the timeline; the windows are (start in Unix time, length), seconds.
    """

    row: dict[str, Any]
    phase: str
    whole: tuple[float, float] | None = None
    steady: tuple[float, float] | None = None


@dataclass
class Outcome:
    """The rows of one engine start."""

    run_id: str
    engine: dict[str, Any]
    workloads: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    stretches: list[Stretch] = field(default_factory=list)


def fail(row: dict[str, Any], phase: str, cause: str, sentence: str, detail: str = "", status: str = "failed") -> None:
    """Record a failure. The first one stands: what breaks later is usually its consequence."""
    if row.get("failure_cause") is None:
        row |= {"status": status, "failure_phase": phase, "failure_cause": cause, "failure_sentence": sentence}
        row["failure_detail"] = detail or None
