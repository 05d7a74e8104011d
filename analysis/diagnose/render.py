"""A diagnosis for people."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from analysis.diagnose.case import Case
from analysis.diagnose.walked import Answer

GIB = 2**30
_WIDTH = 110


def text(case: Case, answer: Answer, refusal: str = "") -> str:
    """What failed, what was missing, what to do, and the rungs in the order of least harm."""
    where = "pruned before the start" if case.pruned else f"failed at {case.phase}"
    missing = f", {case.shortfall_bytes / GIB:.2f} GiB short" if case.shortfall_bytes is not None else ""
    lines = [
        f"{case.run_id}  {case.label}",
        *_wrapped(f"{where}: {case.cause}{missing}. ", case.sentence),
    ]
    if case.row.get("colocation_id"):
        beside = "the others' memory is in the shortfall, not in the predictions"
        lines.append(f"one of several engines on its device: {beside}")
    tried = [f"measured: {one.change}: {one.said()}" for one in answer.tried]
    measured, best = answer.measured, answer.best
    if measured is not None:
        lines += _wrapped("change measured to work: ", f"{measured.change} ({_why(measured.row)})")
    if refusal:
        return "\n".join([*lines, *tried, *_wrapped("no advice: ", refusal)]) + "\n"
    if best is None and measured is None:
        lines += _wrapped("", "no change of these settings is predicted to work on this device")
    elif measured is None and best is not None:
        lines += _wrapped("smallest change predicted to work: ", f"{best.change} ({best.name}; {best.note})")
    if best is not None:
        words = " ".join(f"{name}={value}" for name, value in best.overrides().items())
        lines.append(f"  python -m bench ... {words}")
    lines += tried
    ended = {one.change: "failed" if one.failed else "yes" for one in answer.tried if one.failed or one.works}
    lines += ["", f"  {'change':<44}{'frees, GiB':>11}  {'works':<6} note"]
    for rung in answer.rungs:
        first, *rest = textwrap.wrap(rung.note, _WIDTH - 65) or [""]
        works = ended.get(rung.change) or ("yes" if rung.works else "no")
        name, *more = textwrap.wrap(rung.change, 43)
        lines.append(f"  {name:<44}{rung.gain_bytes / GIB:>11.2f}  {works:<6} {first}")
        for place in range(max(len(rest), len(more))):
            left = more[place] if place < len(more) else ""
            right = rest[place] if place < len(rest) else ""
            lines.append(f"  {left:<44}{'':>11}  {'':<6} {right}".rstrip())
    return "\n".join(lines) + "\n"


def _why(row: Mapping[str, Any]) -> str:
    return "; ".join(str(row[name]) for name in ("mitigation_name", "mitigation_cost") if row.get(name)) or "tried"


def _wrapped(head: str, body: str) -> list[str]:
    return textwrap.wrap(head + body, _WIDTH, subsequent_indent="  ")
