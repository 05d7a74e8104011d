"""`python -m analysis report`: result sets to one HTML page, its pictures and its tables."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `report`."""
    parser.add_argument("sets", nargs="+", metavar="SET", help="result sets: folders, or names in results/")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the page (default reports/SET/index.html); pictures and tables go "
        "into folders beside it",
    )  # fmt: skip
    parser.add_argument("--no-png", action="store_true", help="write the pictures as SVG only")
    parser.add_argument("--no-files", action="store_true", help="write the page alone: no pictures, no tables")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 where the page holds no row at all; 2 where no set is there or nothing can be written."""
    import importlib.util

    needed = ("duckdb", "pyarrow", "vl_convert")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        return _refuse(f"report needs the Python package {missing[0]!r}, which is not installed", 1)
    from analysis.report import page
    from analysis.report.context import Context
    from analysis.report.points import points_of
    from analysis.report.read import read_sets

    began = time.monotonic()
    sets, problems = read_sets(args.sets)
    for problem in problems:
        print(f"note: {problem}", file=sys.stderr)
    if not sets:
        return _refuse("none of these is a result set; name folders, or names in results/", 2)
    for one in sets:
        for problem in one.problems:
            print(f"note: {problem}", file=sys.stderr)
    context = Context(sets, points_of(sets), problems)
    out: Path = args.out or Path("reports") / "-and-".join(one.root.resolve().name for one in sets) / "index.html"
    if out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
        return _refuse(f"--out {out} is not an HTML file; give a name that ends in .html", 2)
    text, charts, tables = page.build(context, time.time(), _say)
    _say("")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(f".{out.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(out)
        beside = "" if args.no_files else _files(out.parent, charts, tables, png=not args.no_png)
    except OSError as problem:
        return _refuse(f"cannot write {out}: {problem.strerror or problem}", 2)
    starts = sum(len(one.engines) for one in sets)
    print(f"{starts:,} starts, {len(context.points):,} points: {out} ({len(text.encode()) / 1e6:.1f} MB, "
          f"{time.monotonic() - began:.0f} s){beside}")  # fmt: skip
    return 0 if starts else 1


def _files(folder: Path, charts: list, tables: list, png: bool) -> str:  # type: ignore[type-arg]
    from analysis.report.chart import write

    pictures, lists = folder / "pictures", folder / "tables"
    for one, suffixes in ((pictures, (".svg", ".png")), (lists, (".csv",))):
        one.mkdir(exist_ok=True)
        for old in one.iterdir():  # of an earlier report of the same name
            if old.suffix in suffixes:
                old.unlink()
    _say(f"{len(charts)} pictures")
    with ThreadPoolExecutor(2) as pool:  # drawing leaves the interpreter free
        list(pool.map(lambda chart: write(chart, pictures, png), charts))
    for table in tables:
        table.write(lists)
    _say("")
    return f"\n{len(charts)} pictures in {pictures}, {len(tables)} tables in {lists}"


def _say(what: str) -> None:
    """What is being done, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)


def _refuse(sentence: str, code: int) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return code
