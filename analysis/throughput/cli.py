"""`python -m analysis roofline`: result sets to throughput calibrations, with held-out errors."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.throughput.calibration import FOLDER

DESCRIPTION = "fit step times of the engine to measured throughput and latency and write calibration files"
EXAMPLES = """\
examples:
  python -m analysis roofline results/SET --dry-run            # coefficients and held-out errors, nothing written
  python -m analysis roofline results/SET --report             # also every model, length and concurrency left out

One calibration per vLLM version, model runner, device and weight format goes to analysis/calibrations/throughput, from
where `predict --concurrency N --input-tokens N --output-tokens N` takes it. Failed and client-bound rows stay out of
the fit and are counted. Exit code: 0 fitted, 2 what cannot be fitted, in one sentence.
"""
LEAST_ROWS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `roofline`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("sets", nargs="*", type=Path, metavar="SET", help="result sets (folders) of our own")
    parser.add_argument("--out", type=Path, help="file to write; else one per version, runner, device and format in "
                        f"analysis/calibrations/{FOLDER.name}/")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    parser.add_argument("--pool", action="store_true", help="fit rows of several environments together, and say so")
    parser.add_argument("--report", action="store_true", help="also the error of every unit that was left out")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 2 with one sentence on what cannot be fitted."""
    missing = [name for name in ("numpy", "scipy", "pyarrow") if importlib.util.find_spec(name) is None]
    if missing:
        return _refuse(f"fitting needs {' and '.join(missing)}; pip install {' '.join(missing)}")
    try:
        return _fit(args)
    except (ValueError, OSError) as problem:
        return _refuse(str(problem))


def _refuse(sentence: str) -> int:
    print(f"roofline: {sentence}", file=sys.stderr)
    return 2


def _fit(args: argparse.Namespace) -> int:
    from analysis import rows
    from analysis.throughput import build, observations, render

    if not args.sets:
        raise ValueError("name at least one result set, such as results/reference-cpu")
    engines = rows.newest(rows.read_engines(args.sets))
    workloads = [row for root in args.sets for row in rows.read_table(Path(root), "workloads")]
    read = observations.read(engines, workloads)
    print(render.left_out(read.left_out, read.given), end="")
    groups = {origin: found for origin, found in read.observations.items() if len(found) >= LEAST_ROWS}
    if not groups:
        most = max((len(found) for found in read.observations.values()), default=0)
        raise ValueError(f"no version, runner, device and weight format has {LEAST_ROWS} usable workloads (the most "
                         f"is {most} of {read.given})")  # fmt: skip
    if args.out and len(groups) > 1:
        told = "; ".join(f"{one.weight_format} on {one.device}, vLLM {one.vllm_version} {one.runner}" for one in groups)
        raise ValueError(f"--out is one file and these rows make {len(groups)}: {told}")
    starts = {row.get("run_id"): row for row in engines}
    for origin, found in sorted(groups.items(), key=lambda pair: str(pair[0])):
        own = [starts[run] for run in sorted({one.row_id.rpartition("/")[0] for one in found})]
        notes = rows.one_environment(own, args.pool)
        made = build.Fit(origin, found)
        name = args.out.stem if args.out else _name(origin)
        source = "own measurements: " + ", ".join(sorted({str(row.get("set_name")) for row in own}))
        content = build.document(name, "own", source, made, read.left_out, read.given, notes)
        print("\n" + render.summary(content), end="")
        if args.report:
            print(render.report(made), end="")
        if not args.dry_run:
            path = args.out or FOLDER / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            build.write(content, path)
            print(f"written: {path}")
    for origin in read.observations.keys() - groups.keys():
        print(f"{origin.weight_format} on {origin.device}: fewer than {LEAST_ROWS} usable workloads, not fitted")
    if args.dry_run:
        print("nothing was written (--dry-run)")
    return 0


def _name(origin: object) -> str:
    from analysis.throughput.observations import Origin

    assert isinstance(origin, Origin)
    version = ".".join(origin.vllm_version.split(".")[:2])
    parts = ["vllm", version, *([] if origin.runner == "any" else [origin.runner]), origin.device, origin.weight_format]
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(parts).lower())


def main(argv: Sequence[str] | None = None) -> int:
    """The command by itself, without the dispatcher."""
    parser = argparse.ArgumentParser(prog="python -m analysis roofline", description=DESCRIPTION)
    add_arguments(parser)
    return run(parser.parse_args(argv))
