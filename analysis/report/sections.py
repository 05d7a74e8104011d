"""The sections of a report in their order; one that cannot be made becomes a sentence, and the rest still stands."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

from analysis.report.context import Context, Section
from analysis.report.fragment import Fragment


def sections(context: Context, say: Callable[[str], None]) -> Iterator[Section | Fragment]:
    """Every section, made one after the other; `say` is told which one is being made."""
    from analysis.report import failures, heat, knowledge, loads, memory, predicted, quality, timeline

    made: list[tuple[str, str, Callable[[], Section | Fragment | None]]] = [
        ("quality", "Provenance and data quality", lambda: quality.section(context)),
    ]
    if len(context.sets) > 1:
        made.append(("compare", "Comparison of the sets", lambda: _compared(context)))
    made += [
        ("memory", "Memory by term", lambda: memory.section(context)),
        ("predicted", "Predicted against measured", lambda: predicted.section(context)),
        ("speed", "Throughput against latency", lambda: loads.section(context)),
        ("roofline", "Speed, predicted against measured", lambda: _roofline(context)),
        ("maps", "Batch tokens × sequences", lambda: heat.section(context)),
        ("timeline", "Telemetry timeline", lambda: timeline.section(context)),
        ("failures", "Failures and pruned points", lambda: failures.section(context)),
    ]
    facts: list[Any] = []

    def multipliers() -> Section:
        found, notes = knowledge.evidence(context)
        facts.append(found)
        out = knowledge.multipliers(context, found)
        out.notes += notes
        return out

    made += [
        ("multipliers", "Multiplier tables", multipliers),
        ("claims", "Audited claims", lambda: knowledge.audit(facts[0]) if facts else None),
        ("calculator", "Calculator", _calculator),
    ]
    for anchor, title, make in made:
        say(title)
        found = _guarded(anchor, title, make)
        if found is not None:
            yield found


def _guarded(anchor: str, title: str, make: Callable[[], Section | Fragment | None]) -> Section | Fragment | None:
    """What `make` gives. Rows may hold anything, so whatever goes wrong with one section costs only that section."""
    try:
        return make()
    except Exception as problem:
        cause = (str(problem).strip().splitlines() or [""])[0]
        return Section(anchor, title, lead=f"This section could not be made from these rows: "
                       f"{type(problem).__name__}{': ' if cause else ''}{cause}.")  # fmt: skip


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _compared(context: Context) -> Section | None:
    if not _there("analysis.compare.model"):
        return None
    from analysis.report import compared

    return compared.section(context)


def _roofline(context: Context) -> Section | None:
    if not _there("analysis.throughput.holdout") or not any(point.workloads for point in context.good):
        return None
    from analysis.report import roofline

    return roofline.section(context)


def _calculator() -> Fragment | None:
    if not _there("analysis.calculator"):
        return None
    calculator = importlib.import_module("analysis.calculator")
    make = getattr(calculator, "fragment", None)
    return make() if callable(make) else None
