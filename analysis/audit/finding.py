"""What a check of one claim says, and how figures become a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.audit.installed import Source
from analysis.tables.evidence import Evidence

Verdict = Literal["right", "wrong", "misleading", "not measured yet"]
VERDICTS: tuple[Verdict, ...] = ("right", "wrong", "misleading", "not measured yet")

TOLERANCE = 0.03
"""How far a figure may lie outside the guide's range and still count as its rounding."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One claim, judged.

    `guide` and `ours` are for people; `low` and `high` are our figure as numbers in `unit` (None: it is no number),
    `guide_low` and `guide_high` the guide's in the same unit. `how` is arithmetic, calibration, rows, vLLM's source,
    or several of them; `run_ids` are the engine starts behind it.
    """

    id: str
    section: str
    claim: str
    verdict: Verdict
    guide: str
    ours: str
    unit: str
    how: str
    why: str
    low: float | None = None
    high: float | None = None
    guide_low: float | None = None
    guide_high: float | None = None
    run_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """What the checks draw on: `evidence` for figures, `card` for claims about the 96 GB card of the guide."""

    evidence: Evidence
    card: Evidence
    source: Source | None
    why_no_source: str = ""


def within(values: Sequence[float], low: float, high: float, tolerance: float = TOLERANCE) -> Verdict:
    """`right` if every value lies in the range, `wrong` if none does, `misleading` if it depends on the model."""
    inside = [low * (1 - tolerance) <= value <= high * (1 + tolerance) for value in values]
    return "right" if all(inside) else "misleading" if any(inside) else "wrong"


def how(bases: Sequence[str]) -> str:
    """From the bases of figures to how they were obtained."""
    found = set()
    for basis in bases:
        found |= {"arithmetic"} if basis == "exact" else set()
        found |= {"rows"} if "measured" in basis else set()
        found |= {"calibration"} if "predicted" in basis else set()
    return ", ".join(sorted(found))


def span(values: Sequence[float], unit: str, decimals: int = 1) -> str:
    """`3.9-5.2 GB` of any number of values."""
    first, last = f"{min(values):.{decimals}f}", f"{max(values):.{decimals}f}"
    return f"{first} {unit}" if first == last else f"{first} to {last} {unit}"
