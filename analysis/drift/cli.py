"""`python -m analysis drift`: does the memory of the engines of a set grow while a load holds?"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  python -m bench model=tiny-llama engine=cpu workload=soak set=soak     # hold a load, then ask
  python -m analysis drift soak
  python -m analysis drift soak --least 8MiB/min --json
  python -m analysis drift quick --least-seconds 30      # answer for a shorter load: settling may then look like a leak

leak: it still grows, and does not slow down; or it rises by equal steps at equal intervals. levels_off: it grew and
stopped. flat: no growth worth naming. undecided: a longer run is needed. Growth worth naming is 1 MiB a minute and
4 MiB in all, if --least does not say otherwise. A load held for less than two minutes is not answered. On a CPU engine
every new shape of a matrix multiplication takes memory, so hold equal lengths, or hold them for long.
Exit code: 0, 1 if anything leaks, 2 there is nothing to answer.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("set", metavar="SET", help="a result set: its folder, or its name in results/")
    parser.add_argument("--run", metavar="RUN_ID", help="only this start")
    parser.add_argument(
        "--least", metavar="RATE", help="growth worth naming, KiB, MiB or GiB per s, min or h, as in 1MiB/min"
    )  # fmt: skip
    parser.add_argument(
        "--least-seconds", type=float, metavar="S", help="shortest load to answer for, s (default: 120)"
    )
    parser.add_argument("--json", action="store_true", help="JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Prints the drift of every load; returns the exit code."""
    from analysis.drift.series import METRICS
    from analysis.rows import RowsError, read_table

    named = Path(args.set)
    root = named if named.exists() else Path(__file__).resolve().parent.parent.parent / "results" / args.set
    try:
        least = rate(args.least) if args.least else None
        columns = ["run_id", "t_s", "phase", *(metric.column for metric in METRICS)]
        samples = read_table(root, "samples", columns)
        if args.run:
            samples = [one for one in samples if one["run_id"] == args.run]
            if not samples:
                raise RowsError(f"--run {args.run}: {args.set} holds no samples of such a start")
        found = list(answers(samples, least, args.least_seconds))
    except (RowsError, ValueError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        print(_text(found, args.set))
    if not any("verdict" in one for one in found):
        return 2
    return 1 if any(one.get("verdict") == "leak" for one in found) else 0


def rate(text: str) -> float:
    """`1MiB/min` as bytes per second. Raises ValueError with one sentence."""
    sizes, times = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}, {"s": 1, "min": 60, "h": 3600}
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(KiB|MiB|GiB)/(s|min|h)\s*", text)
    if match is None or float(match[1]) == 0:
        raise ValueError(f"--least is {text!r}; write a rate such as 1MiB/min or 64KiB/s")
    return float(match[1]) * sizes[match[2]] / times[match[3]]


def answers(
    samples: list[dict[str, Any]], least_bytes_per_s: float | None = None, least_seconds: float | None = None
) -> Iterator[dict[str, Any]]:
    """One answer for each start, load and kind of memory, in the order of the samples."""
    from analysis.drift.series import METRICS, series
    from analysis.drift.slope import LEAST_SECONDS, TooShort, drift

    shortest = LEAST_SECONDS if least_seconds is None else least_seconds
    loads: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in samples:
        phase = one.get("phase") or ""
        if phase.startswith("load:"):
            loads.setdefault((one["run_id"], phase.removeprefix("load:")), []).append(one)
    for (run_id, workload), rows in loads.items():
        for metric in METRICS:
            t_s, size_bytes = series(rows, metric)
            if not t_s:
                continue
            answer: dict[str, Any] = {
                "run_id": run_id, "workload": workload, "column": metric.column, "memory": metric.title,
            }  # fmt: skip
            try:
                found = drift(t_s, size_bytes, least_bytes_per_s, shortest)
            except TooShort as short:
                # PSS costs too much to be read often; RSS then answers alone.
                if metric.column != "tree_pss_bytes":
                    yield answer | {"problem": str(short)}
                continue
            yield answer | {
                "verdict": found.verdict, "seconds": found.seconds, "samples": found.samples,
                "first_bytes": round(found.first_bytes), "growth_bytes": round(found.growth_bytes),
                "slope_bytes_per_s": found.whole.value,
                "slope_interval_bytes_per_s": [found.whole.low, found.whole.high],
                "late_slope_bytes_per_s": found.late.value,
                "late_slope_interval_bytes_per_s": [found.late.low, found.late.high],
                "least_bytes_per_s": found.least_bytes_per_s,
            }  # fmt: skip


def _text(found: list[dict[str, Any]], name: str) -> str:
    told = [one for one in found if "verdict" in one]
    if not told:
        why = f": {found[0]['problem']}" if found else ""
        return f"{name}: no load was held long enough to see a drift{why}"
    lines = [
        "slopes in MiB a minute (MiB = 2^20 bytes), with 95 % intervals",
        "",
        f"{'workload':<20}{'memory':<28}{'time':>8}{'at first':>12}{'growth':>12}{'slope':>26}{'second half':>26}  "
        "verdict",
    ]
    for one in told:
        lines.append(
            f"{one['workload']:<20}{one['memory']:<28}{one['seconds']:>6.0f} s"
            f"{one['first_bytes'] / 2**20:>8,.1f} MiB{one['growth_bytes'] / 2**20:>+8,.1f} MiB"
            f"{_slope(one, 'slope'):>26}{_slope(one, 'late_slope'):>26}  {one['verdict'].replace('_', ' ')}"
        )
    short = len(found) - len(told)
    if short:
        lines.append(f"{short} more loads were too short for a slope")
    return "\n".join(lines)


def _slope(one: dict[str, Any], name: str) -> str:
    low, high = one[f"{name}_interval_bytes_per_s"]
    value = one[f"{name}_bytes_per_s"]
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(x * 60 / 2**20 for x in (value, low, high)))
