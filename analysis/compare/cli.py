"""`python -m analysis compare A B ...`: result sets against the first of them."""

from __future__ import annotations

import argparse
import io
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.compare.metrics import METRICS
from analysis.compare.model import CORRECTIONS, TESTS, CompareError, Options

if TYPE_CHECKING:
    from analysis.compare.model import Comparison

FORMATS = ("text", "markdown", "json", "parquet")

LATENCIES = "ttft_, tpot_, itl_ and e2e_ with p50, p90, p95, p99, mean or max"


def listed() -> str:
    """The names of all metrics, on lines of a help text."""
    names = [metric.name for metric in METRICS if not metric.name.startswith(("ttft_", "tpot_", "itl_", "e2e_"))]
    return textwrap.fill(", ".join([*names, LATENCIES]), 114, initial_indent=" " * 9).lstrip()


EPILOG = f"""\
examples:
  compare results/vllm-0.31 results/vllm-0.32
  compare results/a results/b --metric throughput,tpot_p99 --filter 'model:/qwen/ max_num_seqs:>=64'
  compare results/a --col quantization --row model,max_num_seqs
  compare results/a results/b --fail-on 'tpot_p99>5%,kv_pool<-1%,activation>0.5GiB,failures>0'

filter: key:value words, joined by AND (or a blank) and OR, negated by -, grouped by ( ); a value is a word,
"quoted words", (a OR b), /a regular expression/, or <, <=, >, >= and a number. Null is none.

fail-on: a rule trips on a change that is decided (significant after correction, or exact) and beyond the threshold;
METRIC>5%! takes the estimate alone. From a baseline of 0 any change is beyond every per cent. What too few
restarts leave undecided passes with a word, unless --undecided fail. Cells that start in the baseline and fail in
another set trip the rules that would have judged them, unless a rule such as failures>2 says how many may.

metrics: {listed()}; or any numeric column of the sets.

exit code: 0; 1 where a rule tripped or nothing could be compared; 2 for a bad request, such as a rule on a metric
that no set has a value of."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `compare`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("sets", nargs="*", type=Path, metavar="SET", help="result sets; the first is the baseline")
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME,...",
        help="metrics or numeric columns (default: memory terms, start, throughput, latency p50 and p99, energy)",
    )
    parser.add_argument(
        "--row", action="append", default=[], metavar="KEY,...", help="columns that make a cell (default: all settings)"
    )
    parser.add_argument("--col", default="set", metavar="KEY", help="what is set against each other (default: set)")
    parser.add_argument(
        "--table", action="append", default=[], metavar="KEY,...", help="columns that get tables of their own"
    )
    parser.add_argument("--ignore", action="append", default=[], metavar="KEY,...", help="columns that make no cell")
    parser.add_argument("--filter", default="", metavar="EXPR", help="rows to use, see below")
    parser.add_argument(
        "--axis", metavar="COLUMN", help="the metadata whose difference is the question, such as vllm_version"
    )
    parser.add_argument(
        "--test",
        default="auto",
        choices=TESTS,
        help="auto: Mann-Whitney, exact, where the restarts leave it "
        "room to show a lone change after correction, else moderated-t (from 5 restarts each on)",
    )
    parser.add_argument("--correction", default="bh", choices=CORRECTIONS, help="over all comparisons (default bh)")
    parser.add_argument("--alpha", type=float, default=0.05, help="level after correction (default 0.05)")
    parser.add_argument("--strict", action="store_true", help="leave out rows flagged as disturbed")
    parser.add_argument("--all", action="store_true", help="list every comparison, not only what changed")
    parser.add_argument("--fail-on", default="", metavar="RULES", help="exit code 1 where a rule trips, see below")
    parser.add_argument("--fail-on-any", action="store_true", help="rules take estimates, whatever the test says")
    parser.add_argument(
        "--undecided", choices=("pass", "fail"), default="pass", help="what undecided rules do (default pass)"
    )
    parser.add_argument("--format", choices=FORMATS, help="default: by the ending of --out, else text")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there; the terminal still gets the text")
    parser.add_argument("--width", type=int, help="columns of the text (default: the terminal's, at most 140)")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 where a rule tripped or nothing was compared; 2 with one sentence on a bad request."""
    from analysis.compare import gate

    printable()
    try:
        options = Options(
            words(args.metric),
            words(args.row),
            args.col,
            words(args.table),
            words(args.ignore),
            args.filter,
            args.axis,
            args.test,
            args.correction,
            args.alpha,
            args.strict,
        )
        rules = gate.parse(args.fail_on, args.fail_on_any) if args.fail_on else []
        form = _format(args)
        asked = gate.metrics_of(rules)
        named = options.metrics or _defaults()
        if extra := {name: rule for name, rule in asked.items() if name not in named}:
            options = replace(options, metrics=(*named, *extra), rules=tuple(extra.items()))
        from analysis.compare.run import compare_sets

        comparison = compare_sets(args.sets, options)
        gate.check(rules, comparison)
        _write(comparison, args, form)
    except CompareError as problem:
        return _refuse(str(problem))
    except ModuleNotFoundError as missing:
        return _refuse(f"comparing needs the Python package {missing.name!r}, which is not installed")
    except OSError as problem:
        return _refuse(f"{problem.filename or args.out} cannot be written ({problem.strerror})")
    failed = False
    if rules:
        told, failed = gate.sentences(gate.apply(rules, comparison), comparison, args.undecided)
        # Beside machine-readable output the verdict must not stand on the same stream.
        print("\n".join(told), file=sys.stdout if form == "text" or args.out else sys.stderr)
    nothing = not len(comparison.changes) and not comparison.outcomes
    return 1 if failed or nothing else 0


def _write(comparison: Comparison, args: argparse.Namespace, form: str) -> None:
    from analysis.compare import export, render

    if form == "parquet":
        import pyarrow.parquet as pq

        args.out.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(export.table(comparison), args.out, compression="zstd")
    elif form != "text" or args.out:
        if form == "json":
            import json

            text = json.dumps(comparison.to_json(), indent=1, default=str) + "\n"
        else:
            text = render.page(comparison, form == "markdown", _width(args), args.all)
        if args.out is None:
            print(text, end="")
            return
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")
    print(render.page(comparison, False, _width(args), args.all), end="")
    if args.out:
        print(f"written: {args.out}")


def _width(args: argparse.Namespace) -> int:
    import shutil

    return args.width or min(140, shutil.get_terminal_size((118, 40)).columns)


def _format(args: argparse.Namespace) -> str:
    endings = {".md": "markdown", ".json": "json", ".parquet": "parquet"}
    form = args.format or (endings.get(args.out.suffix, "text") if args.out else "text")
    if form == "parquet" and args.out is None:
        raise CompareError("--format parquet is not for a terminal: name a file with --out changes.parquet")
    return form


def printable() -> None:
    """A terminal that has no ± or … gets ? for it, and no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def words(given: list[str]) -> tuple[str, ...]:
    """Names given in several options, or with commas between."""
    return tuple(word.strip() for text in given for word in text.split(",") if word.strip())


def _defaults() -> tuple[str, ...]:
    return tuple(metric.name for metric in METRICS if metric.default)


def _refuse(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2
