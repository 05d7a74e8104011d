"""`python -m analysis fit`: result sets, or the public CSV, to a calibration file."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.calibration import FOLDER

DESCRIPTION = "fit the memory terms of engine starts to measurements and write a calibration file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fit`."""
    parser.add_argument("sets", nargs="*", type=Path, metavar="SET", help="result sets (folders) of our own")
    parser.add_argument("--out", type=Path, help=f"file to write; else one per origin of rows in {FOLDER.name}/")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    parser.add_argument("--pool", action="store_true", help="fit rows of several environments together, and say so")
    parser.add_argument("--public-csv", type=Path, metavar="CSV", help="fit the public vLLM 0.19 H100 set instead")
    parser.add_argument("--configs", type=Path, metavar="DIR", help="ORG--NAME/config.json files beside the catalogue")
    parser.add_argument(
        "--report", action="store_true", help="with --public-csv: print every prediction of KV pools, models held out"
    )


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 2 with one sentence on what cannot be fitted."""
    if problem := _missing_library():
        return _refuse(problem)
    try:
        return _public(args) if args.public_csv else _own(args)
    except (ValueError, OSError) as problem:
        return _refuse(str(problem))


def _refuse(sentence: str) -> int:
    print(f"fit: {sentence}", file=sys.stderr)
    return 2


def _missing_library() -> str | None:
    import importlib.util

    missing = [name for name in ("numpy", "scipy", "pyarrow") if importlib.util.find_spec(name) is None]
    return f"fitting needs {' and '.join(missing)}; pip install {' '.join(missing)}" if missing else None


def _public(args: argparse.Namespace) -> int:
    from analysis.fit import build, public, report

    if args.sets:
        raise ValueError("--public-csv is fitted by itself: leave the result sets out")
    starts = public.read(args.public_csv, args.configs)
    if args.report:
        print(report.text(starts), end="")
        return 0
    known = [start for start in starts if start.kind != "unknown"]
    fits = build.fit_all(known, on_cpu=False)
    name = "vllm-0.19-v1-h100-80gb-public"
    content = build.document(name, "public", public.SOURCE, public.ORIGIN, fits, known, public.NOTES)
    _finish(content, fits, args.out or FOLDER / f"{name}.json", args.dry_run)
    return 0


def _own(args: argparse.Namespace) -> int:
    from analysis import rows
    from analysis.fit import build
    from analysis.fit.starts import from_rows, origin_of

    if not args.sets:
        raise ValueError("name at least one result set, or --public-csv")
    found = rows.started(rows.newest(rows.read_engines(args.sets)))
    started = rows.alone(found)
    if not started:
        raise ValueError("none of the rows is of an engine that started")
    by_origin: dict[Any, list[rows.Row]] = {}
    for row in started:
        by_origin.setdefault(origin_of(row), []).append(row)
    if args.out and len(by_origin) > 1:
        origins = "; ".join(f"vLLM {one.vllm_version} {one.runner} on {one.gpu}" for one in by_origin)
        raise ValueError(f"--out is one file and these rows make {len(by_origin)}: {origins}")
    for origin, of_origin in by_origin.items():
        notes = rows.one_environment(of_origin, args.pool)
        starts = from_rows(of_origin).get(origin, [])
        fits = build.fit_all(starts, origin.on_cpu)
        if not fits:
            raise ValueError(f"vLLM {origin.vllm_version} on {origin.gpu}: no row measured a term that could be fitted")
        if len(found) > len(started):
            notes.append(f"{len(found) - len(started)} rows of engines that shared the device were left out")
        if skipped := len(of_origin) - len(starts):
            notes.append(f"{skipped} started rows lack their settings and were left out")
        version = ".".join(origin.vllm_version.split(".")[:2])
        parts = ["vllm", version, *([] if origin.runner == "any" else [origin.runner]), origin.gpu]
        name = args.out.stem if args.out else re.sub(r"[^a-z0-9.]+", "-", "-".join(parts).lower())
        source = "own measurements: " + ", ".join(sorted({str(row.get("set_name")) for row in of_origin}))
        content = build.document(name, "own", source, origin, fits, starts, notes)
        _finish(content, fits, args.out or FOLDER / f"{name}.json", args.dry_run)
    return 0


def _finish(content: dict[str, Any], fits: Any, path: Path, dry_run: bool) -> None:
    from analysis.fit import build

    print(summary(content), end="")
    if dry_run:
        print("nothing was written (--dry-run)")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    build.write(content, path)
    print(f"written: {path}")


def summary(content: dict[str, Any]) -> str:
    """What was fitted, with the held-out errors beside every coefficient."""
    rows = content["rows"]
    out = [
        f"{content['name']} ({content['kind']}): vLLM {content['vllm_version']}, runner {content['runner']}, "
        f"{content['gpu']}, TP {', '.join(map(str, content['tensor_parallel_sizes']))}; "
        f"{rows['used']} of {rows['given']} rows, {len(rows['models'])} models"
    ]
    for term, content_of_term in content["terms"].items():
        for size, group in content_of_term["groups"].items():
            out.append(f"\n{term}, tp {size}: {group['rows']} rows, {group['models']} models, "
                       f"90 % within +-{group['interval']['high_bytes'] / 2**30:.3f} GiB")  # fmt: skip
            for branch in group["branches"]:
                out.append("  " + " + ".join(_coefficient(name, one) for name, one in branch["coefficients"].items()))
            for kind, label in (("leave_one_model_out", "model"), ("leave_one_setting_out", "setting")):
                out.append(f"  unseen {label}: {_held_out(group['held_out'][kind])}")
    for note in content["notes"]:
        out.append(f"\nnote: {note}")
    return "\n".join(out) + "\n"


def _coefficient(name: str, one: dict[str, Any]) -> str:
    if one.get("fixed"):
        return f"{one['value']:g} {name} (structure)"
    interval = one.get("interval_90")
    spread = f"[{interval[0]:g}, {interval[1]:g}]" if interval else "[fewer than 3 models]"
    return f"{one['value']:g} {spread} {name}" + ("" if one["identified"] else " (NOT identified by these rows)")


def _held_out(found: dict[str, Any] | None) -> str:
    if found is None:
        return "nothing could be left out"
    share = "" if found["mean_per_cent"] is None else (
        f", {found['mean_per_cent']:.2f}% (worst {found['worst_per_cent']:.2f}%)"
    )  # fmt: skip
    covered = "" if found.get("coverage") is None else f", intervals cover {100 * found['coverage']:.0f}%"
    return (f"mean {found['mean_gib']:.3f} GiB (worst {found['worst_gib']:.3f}){share}, "
            f"{found['left_out']} left out in turn{covered}")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The command by itself, without the dispatcher."""
    parser = argparse.ArgumentParser(prog="python -m analysis fit", description=DESCRIPTION)
    add_arguments(parser)
    return run(parser.parse_args(argv))
