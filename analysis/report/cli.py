"""`python -m analysis report`: result sets to one HTML page, its pictures and its tables."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.report.chart import Chart
    from analysis.report.table import Table
    from analysis.report.workers import Job, Workers


MANY_FILES = 2000
"""Files of a set from which a report says how to join them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `report`."""
    parser.add_argument("sets", nargs="+", metavar="SET", help="result sets: folders, or names in results/")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the page (default reports/SET/index.html); pictures and tables go "
        "into folders beside it",
    )  # fmt: skip
    parser.add_argument("--no-png", action="store_true", help="write all pictures as SVG only, as heat maps always are")
    parser.add_argument("--no-files", action="store_true", help="write the page alone: no pictures, no tables")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 where the page holds no row at all; 2 where no set is there or nothing can be written."""
    import importlib.util

    needed = ("duckdb", "pyarrow", "vl_convert")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        return _refuse(f"report needs the Python package {missing[0]!r}, which is not installed", 1)
    out: Path | None = args.out
    if out is not None and (out.is_dir() or out.suffix.lower() not in (".html", ".htm")):
        return _refuse(f"--out {out} is not an HTML file; give a name that ends in .html", 2)
    from analysis.report.workers import Workers

    with Workers() as workers:
        return _make(args, workers)


def _make(args: argparse.Namespace, workers: Workers) -> int:
    from analysis.report import page
    from analysis.report.chart import picture, write
    from analysis.report.context import Context
    from analysis.report.points import points_of
    from analysis.report.read import read_sets
    from analysis.report.sections import begin_calculator

    began = time.monotonic()
    _advise(args.sets)
    calculator = begin_calculator(workers)
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
    pictures: list[Job] = []

    def draw(chart: Chart) -> None:
        if not args.no_files:
            path = out.parent / "pictures" / f"{chart.name}.svg"
            pictures.append(workers.start(write, picture(chart), path, not args.no_png))

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if not args.no_files:
            _empty(out.parent / "pictures", (".svg", ".png"))
            _empty(out.parent / "tables", (".csv",))
        text, tables = page.build(context, time.time(), workers, calculator, _say, draw)
        partial = out.with_name(f".{out.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(out)
        beside = "" if args.no_files else _files(out.parent, pictures, tables)
        _say("")
    except OSError as problem:
        return _refuse(f"cannot write {out}: {problem.strerror or problem}", 2)
    starts = sum(len(one.engines) for one in sets)
    print(f"{starts:,} starts, {len(context.points):,} points: {out} ({len(text.encode()) / 1e6:.1f} MB, "
          f"{time.monotonic() - began:.0f} s){beside}")  # fmt: skip
    return 0 if starts else 1


def _advise(names: list[str]) -> None:
    """A hint for sets whose reading will take longer than all the rest."""
    from analysis.rows import RowsError
    from analysis.tables.measured import find_set

    for name in names:
        try:
            root = find_set(name)
        except RowsError:  # told where it is read
            continue
        files = sum(1 for table in ("engines", "workloads") for _ in (root / table).glob("*.parquet"))
        if files > MANY_FILES:
            print(f"note: {root} is {files:,} small files; `python -m bench.record.compact {root}` joins them, and "
                  "reading is then a matter of seconds", file=sys.stderr)  # fmt: skip


def _empty(folder: Path, suffixes: tuple[str, ...]) -> None:
    """The folder, without the files of an earlier report of the same name."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        if old.suffix in suffixes:
            old.unlink()


def _files(folder: Path, pictures: list[Job], tables: list[Table]) -> str:
    _say(f"{len(tables)} tables, {len(pictures)} pictures")
    for table in tables:
        table.write(folder / "tables")
    for one in pictures:
        one.result()
    return f"\n{len(pictures)} pictures in {folder / 'pictures'}, {len(tables)} tables in {folder / 'tables'}"


def _say(what: str) -> None:
    """What is being done, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)


def _refuse(sentence: str, code: int) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return code
