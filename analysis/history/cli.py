"""`python -m analysis history --metric X SETS...`: one metric over many sets, with its change points."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analysis.compare.model import CompareError, Options

EPILOG = """\
examples:
  history --metric throughput results/vllm-0.*
  history --metric kv_pool results/* --filter model:qwen2.5-7b --order time
metrics are those of `compare`, or any numeric column."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `history`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("sets", nargs="*", type=Path, metavar="SET", help="result sets, in any order")
    parser.add_argument("--metric", required=True, metavar="NAME", help="a metric or numeric column")
    parser.add_argument(
        "--order",
        default="auto",
        choices=("auto", "version", "time", "given"),
        help="of the sets (default: by vLLM version where each set has its own, else by start time)",
    )
    parser.add_argument("--filter", default="", metavar="EXPR", help="rows to use, as in `compare`")
    parser.add_argument("--row", action="append", default=[], metavar="KEY,...", help="columns that make a cell")
    parser.add_argument("--ignore", action="append", default=[], metavar="KEY,...", help="columns that make no cell")
    parser.add_argument("--strict", action="store_true", help="leave out rows flagged as disturbed")
    parser.add_argument(
        "--alpha", type=float, default=0.05, help="probability to split a steady history (default 0.05)"
    )
    parser.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there instead of to the terminal")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 2 with one sentence on a bad request."""
    import json
    import shutil

    from analysis.compare.cli import printable, words
    from analysis.history import render, series

    printable()
    try:
        if not 0 < args.alpha < 1:
            raise CompareError(f"--alpha {args.alpha:g}: a level between 0 and 1 is needed, such as 0.05")
        options = Options(
            row=words(args.row), ignore=words(args.ignore), filter=args.filter, strict=args.strict, alpha=args.alpha
        )
        found = series.history(args.sets, args.metric, options, args.order)
        width = min(140, shutil.get_terminal_size((118, 40)).columns)
        text = (
            json.dumps(render.document(found), indent=1, default=str) + "\n"
            if args.format == "json"
            else render.page(found, args.format == "markdown", width)
        )
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(text, encoding="utf-8")
            print(f"written: {args.out}")
        else:
            print(text, end="")
    except CompareError as problem:
        return _refuse(str(problem))
    except ModuleNotFoundError as missing:
        return _refuse(f"history needs the Python package {missing.name!r}, which is not installed")
    except OSError as problem:
        return _refuse(f"{problem.filename or args.out} cannot be written ({problem.strerror})")
    return 0


def _refuse(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2
