"""A diagnosis for people."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.diagnose.case import Case
from analysis.diagnose.ladder import Rung, first_working

GIB = 2**30
_WIDTH = 110


def text(case: Case, rungs: Sequence[Rung], refusal: str = "", walked: Sequence[Mapping[str, Any]] = ()) -> str:
    """What failed, what was missing, the rungs in the order of least harm; `walked` are rows of those that `bench` has
    started already."""
    missing = f", {case.shortfall_bytes / GIB:.2f} GiB short" if case.shortfall_bytes is not None else ""
    lines = [
        f"{case.run_id}  {case.label}",
        *_wrapped(f"failed at {case.phase}: {case.cause}{missing}. ", case.sentence),
    ]
    if case.row.get("colocation_id"):
        lines.append("one of several engines on its device: the others' memory is in the shortfall, not in the predictions")
    if refusal:
        return "\n".join([*lines, *_wrapped("no advice: ", refusal)]) + "\n"
    best = first_working(rungs)
    if best is None:
        lines += _wrapped("", "no change of these settings is predicted to work on this device")
    else:
        lines += _wrapped("smallest change predicted to work: ", f"{best.change} ({best.name}; {best.note})")
        words = " ".join(f"{name}={value}" for name, value in best.overrides().items())
        lines.append(f"  python -m bench ... {words}")
    for one in walked:
        why = f": {one['failure_cause']}" if one["failure_cause"] else ""
        lines.append(f"measured: {one['mitigation_change']}: {one['status']}{why} ({one['run_id']})")
    lines += ["", f"  {'change':<44}{'frees, GiB':>11}  {'works':<6} note"]
    for rung in rungs:
        first, *rest = textwrap.wrap(rung.note, _WIDTH - 65) or [""]
        works = "yes" if rung.works else "no"
        name, *more = textwrap.wrap(rung.change, 43)
        lines.append(f"  {name:<44}{rung.gain_bytes / GIB:>11.2f}  {works:<6} {first}")
        for place in range(max(len(rest), len(more))):
            left = more[place] if place < len(more) else ""
            right = rest[place] if place < len(rest) else ""
            lines.append(f"  {left:<44}{'':>11}  {'':<6} {right}".rstrip())
    return "\n".join(lines) + "\n"


def _wrapped(head: str, body: str) -> list[str]:
    return textwrap.wrap(head + body, _WIDTH, subsequent_indent="  ")
