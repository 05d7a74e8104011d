"""The phases of an engine's start and how long each took, from the probe's clock and the harness's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.engine.logs import LogFacts, parse_log
from bench.engine.readings import phase_named, read_probe_reports, startup_phases

WORKER_PHASES = {
    "worker_init": "init_device",
    "init_device": "init_device",
    "load_model": "load",
    "determine_available_memory": "profile",
    "initialize_from_config": "kv_allocation",
    "compile_or_warm_up_model": "graph_capture",
}
"""Phases of the worker, in order, and the phase of a start they belong to."""


@dataclass(frozen=True)
class Phase:
    """`begin_unix_s`, `end_unix_s`: wall clock; None where it is not known or did not happen. `duration_s`:
    seconds.
    """

    name: str
    begin_unix_s: float | None
    end_unix_s: float | None
    duration_s: float | None
    source: str


def phase_of(recorded: Mapping[str, Any]) -> str:
    """The phase of a start that a recorded phase of the probe belongs to (for a nested one: the
    outermost).
    """
    line = [*(recorded.get("inside") or ()), recorded["name"]]
    return next((WORKER_PHASES[name] for name in line if name in WORKER_PHASES), "unknown")


def startup_phases_of(
    reports: Sequence[Mapping[str, Any]],
    facts: LogFacts,
    launched_unix_s: float | None,
    ready_unix_s: float | None,
) -> list[Phase]:
    """The phases in order: import, init_device, load, profile, kv_allocation, graph_capture, api.

    Of several workers a phase lasts from the first one's begin to the last one's end. Without the probe the
    durations are those that the log prints. A phase that never ended has no duration. The CPU backend
    compiles inside `profile`, CUDA inside `graph_capture`.
    """
    spans = {name: _span(reports, name) for name in dict.fromkeys(WORKER_PHASES.values())}
    recorded = [phase for report in reports for phase in startup_phases(report)]
    began = [begin for phase in recorded if (begin := phase.get("begin_unix_s"))]
    phases = [_phase("import", launched_unix_s, min(began, default=None))]
    phases += [_phase(name, *span) for name, span in spans.items()]
    phases.append(_phase("api", spans["graph_capture"][1], ready_unix_s))
    printed = {
        "load": facts.load_s, "profile": facts.profile_s, "graph_capture": facts.graph_capture_s,
    }  # fmt: skip
    return [
        phase
        if phase.duration_s is not None or printed.get(phase.name) is None
        else Phase(phase.name, None, None, printed[phase.name], "log")
        for phase in phases
    ]


def startup_columns(
    probe_dir: str | Path,
    log_text: str | bytes,
    launched_unix_s: float | None,
    ready_unix_s: float | None,
) -> dict[str, float | None]:
    """The phases as columns `<phase>_s` of table `engines`, in seconds."""
    reports, facts = read_probe_reports(probe_dir), parse_log(log_text)
    phases = startup_phases_of(reports, facts, launched_unix_s, ready_unix_s)
    return {f"{phase.name}_s": phase.duration_s for phase in phases}


def _span(reports: Sequence[Mapping[str, Any]], name: str) -> tuple[float | None, float | None]:
    begins, ends = [], []
    for report in reports:
        recorded = [found for inner, outer in WORKER_PHASES.items() if outer == name
                    if (found := phase_named(report, inner))]  # fmt: skip
        if not recorded:
            continue
        begins.append(recorded[0]["begin_unix_s"])
        ends.append(recorded[-1].get("end_unix_s"))
    if not begins:
        return None, None
    known = [end for end in ends if end is not None]
    return min(begins), max(known) if len(known) == len(ends) else None


def _phase(name: str, begin: float | None, end: float | None) -> Phase:
    # Two clocks of one host, but a stepped clock must not make a negative time.
    duration = end - begin if begin is not None and end is not None and end >= begin else None
    return Phase(name, begin, end, duration, "probe")
