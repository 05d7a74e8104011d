"""`python -m analysis diagnose`: the failed starts of a result set, and the smallest change that answers each."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  python -m analysis diagnose gpu                 # every start of results/gpu that failed for memory
  python -m analysis diagnose gpu --run RUN_ID    # one of them
  python -m analysis diagnose gpu --json

What `python -m bench on_oom=mitigate` has started already is folded in: a change that failed is not advised again.
A change counts as working when its predicted gain covers the shortfall with a margin and nothing else is predicted to
stop the start. Gains on a GPU are differences of predictions (`python -m analysis predict`), on a CPU engine
arithmetic.
Exit code: 0 answered, 2 there is nothing to answer.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("set", metavar="SET", help="a result set: its folder, or its name in results/")
    parser.add_argument("--run", metavar="RUN_ID", help="only this start")
    parser.add_argument("--json", action="store_true", help="JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Prints the answers; returns the exit code."""
    from analysis.rows import RowsError, newest, read_table

    named = Path(args.set)
    root = named if named.exists() else Path(__file__).resolve().parent.parent.parent / "results" / args.set
    try:
        rows = read_table(root)
    except RowsError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    if args.run and not any(row.get("run_id") == args.run for row in rows):
        print(f"error: --run {args.run}: {args.set} holds no such start", file=sys.stderr)
        return 2
    walked = _walked(rows)
    if args.run:
        rows = [row for row in rows if row.get("run_id") == args.run]
    answers = [_answer(row, walked.get(row.get("run_id"), [])) for row in (rows if args.run else newest(rows))]
    found = [one for one in answers if one["asked"] or args.run]
    if args.json:
        print(json.dumps([{k: v for k, v in one.items() if k not in ("text", "asked")} for one in found], indent=2))
        return 0
    print("\n".join(one["text"] for one in found), end="")
    others = sum(row.get("status") == "failed" for row in rows) - sum(one["asked"] for one in answers)
    if not found:
        tail = f"{len(answers)} starts, {max(others, 0)} failed for other reasons"
        print(f"{args.set}: no start failed for memory ({tail})")
    elif others > 0 and not args.run:
        print(f"{others} more failed for reasons that no setting of memory cures")
    return 0


def _walked(rows: list[dict[str, Any]]) -> dict[Any, list[dict[str, Any]]]:
    """The recorded rungs of walks (`python -m bench on_oom=mitigate`) by the start that they answer."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda one: one.get("started_unix_s") or 0.0):
        if row.get("mitigates_run_id"):
            found.setdefault(row["mitigates_run_id"], []).append(row)
    return found


def _answer(row: dict[str, Any], walked: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer for one row. `asked` is false where it did not fail, or not for memory."""
    from analysis.diagnose.case import Case, NotForMemory
    from analysis.diagnose.render import text
    from analysis.diagnose.terms import Unpredictable
    from analysis.diagnose.walked import Answer, Tried, answer

    try:
        case = Case.of_row(row)
    except NotForMemory as why:
        return {"asked": False, "run_id": row.get("run_id"), "text": f"{why}\n", "reason": str(why)}
    refusal = ""
    try:
        found = answer(case, walked)
    except Unpredictable as why:
        refusal = str(why)
        found = Answer([], [Tried(one, None) for one in walked])
    measured = found.measured
    return {
        "asked": True,
        "text": text(case, found, refusal),
        "run_id": case.run_id,
        "phase": case.phase,
        "cause": case.cause,
        "sentence": case.sentence,
        "shortfall_bytes": case.shortfall_bytes,
        "smallest_change": found.best.overrides() if found.best else None,
        "measured_to_work": measured.change if measured else None,
        "no_advice": refusal or None,
        "rungs": [
            {"name": rung.name, "settings": dict(rung.settings), "gain_bytes": round(rung.gain_bytes),
             "works": rung.works, "note": rung.note}
            for rung in found.rungs
        ],
        "walked": [
            {"run_id": one["run_id"], "rung": one["mitigation_rung"], "change": one["mitigation_change"],
             "status": one["status"], "cause": one["failure_cause"], "shortfall_bytes": one["shortfall_bytes"]}
            for one in walked
        ],
    }  # fmt: skip
