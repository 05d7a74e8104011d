"""The sections of a report in their order; one that cannot be made becomes a sentence, and the rest still stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from analysis.report.context import Context, Section
from analysis.report.fragment import Fragment
from analysis.report.workers import Workers


def sections(
    context: Context, say: Callable[[str], None], workers: Workers, calculator: Callable[[], Fragment | None]
) -> Iterator[Section | Fragment]:
    """Every section, made one after the other; `say` is told which one is being made.

    `calculator` gives what `begin_calculator` began.
    """
    from analysis.report import failures, heat, knees, knowledge, loads, memory, predicted, quality, timeline

    speeds = _guarded_start(lambda: _begin_speeds(context, workers))
    made: list[tuple[str, str, Callable[[], Section | Fragment | None]]] = [
        ("quality", "Provenance and data quality", lambda: quality.section(context)),
    ]
    if len(context.sets) > 1:
        made.append(("compare", "Comparison of the sets", lambda: _compared(context)))
    made += [
        ("memory", "Memory by term", lambda: memory.section(context)),
        ("predicted", "Predicted against measured", lambda: predicted.section(context)),
        ("speed", "Throughput against latency", lambda: loads.section(context)),
        ("knees", "Knee: the highest load that holds", lambda: knees.section(context)),
        ("roofline", "Speed, predicted against measured", speeds),
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
        ("calculator", "Calculator", calculator),
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


def _compared(context: Context) -> Section | None:
    from analysis.report import compared

    return compared.section(context)


def _guarded_start(start: Callable[[], Callable[[], Section | None]]) -> Callable[[], Section | None]:
    """Whatever goes wrong at the start of a section is told where the section would stand."""
    try:
        return start()
    except Exception as problem:
        caught = problem

        def again() -> Section | None:
            raise caught

        return again


def _begin_speeds(context: Context, workers: Workers) -> Callable[[], Section | None]:
    """The held-out fits of speed, the longest arithmetic here, begin beside the rest."""
    if not any(point.workloads for point in context.good):
        return lambda: None
    from analysis.report import roofline

    asked = roofline.question(context)
    held = workers.start(roofline.held_out, asked)
    return lambda: roofline.section(context, asked, held.result())


def begin_calculator(workers: Workers) -> Callable[[], Fragment | None]:
    """The calculator's tables take seconds and need no row, so they begin before the sets are read."""
    return workers.start(_calculator).result


def _calculator() -> Fragment:
    from analysis.calculator import fragment

    return fragment()
