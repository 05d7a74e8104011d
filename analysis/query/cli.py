"""`python -m analysis query`: SQL over result sets."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.query.sources import Source

EPILOG = """\
Tables: engines (a row per engine start), workloads (joined by run_id), requests (where kept), samples (telemetry).
Each has a column result_set. Sets are folders or names in results/; without any, all in results/ are asked.
Result sets are only read, and nothing else is: no other file, no network. A file that cannot be read is left out and
named.

  python -m analysis query --schema engines.kv          columns with "kv" in name or meaning: type, unit, meaning
  python -m analysis query --examples                   queries to start from
  python -m analysis query "SELECT model, count(*) FROM engines GROUP BY ALL" reference-cpu
  python -m analysis query - --format csv < question.sql

Exit code: 0 answered, 2 the query or a set cannot be used as given.
"""

EXAMPLES = (
    (
        "what was measured, and how it ended",
        "SELECT result_set, model, quantization, status, count(*) AS starts FROM engines GROUP BY ALL ORDER BY ALL",
    ),
    (
        "the memory terms of each point, MiB",
        "SELECT model, quantization, max_num_batched_tokens AS T, max_num_seqs AS S, round(weights_bytes / 2**20, 1) "
        "AS weights_mib, round(kv_cache_bytes / 2**20, 1) AS kv_pool_mib, kv_cache_tokens FROM engines "
        "WHERE status = 'ok' ORDER BY ALL",
    ),
    (
        "medians over restarts, with the number of restarts",
        "SELECT e.model, e.quantization, count(*) AS n, median(w.tpot_p50_s) AS tpot_p50_s, median(w.ttft_p50_s) AS "
        "ttft_p50_s FROM workloads w JOIN engines e USING (result_set, run_id) GROUP BY ALL ORDER BY tpot_p50_s",
    ),
    (
        "failures: where, and why",
        "SELECT result_set, model, failure_phase, failure_cause, failure_sentence FROM engines "
        "WHERE status IN ('failed', 'pruned')",
    ),
    (
        "rows not to be trusted blindly",
        "SELECT flag, count(*) AS starts FROM (SELECT unnest(flags) AS flag FROM engines) GROUP BY ALL ORDER BY 2 DESC",
    ),
    (
        "one metric over versions of vLLM",
        "SELECT vllm_version, device_name, median(kv_cache_bytes) AS kv_cache_bytes FROM engines "
        "GROUP BY ALL ORDER BY ALL",
    ),
    ("what a table holds at a glance", "SUMMARIZE SELECT * FROM workloads"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from analysis.query.render import FORMATS

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("sql", nargs="?", metavar="SQL", help="one SELECT; - reads it from standard input")
    parser.add_argument("sets", nargs="*", metavar="SET", help="result sets (default: all in results/)")
    parser.add_argument("--set", action="append", default=[], dest="more", metavar="SET", help="one more set")
    parser.add_argument("--file", type=Path, metavar="FILE", help="read the query from a file")
    parser.add_argument(
        "--schema", nargs="?", const="", metavar="TABLE", help="columns with type, unit and meaning; of one table, or "
        "TABLE.WORD for those that hold a word",
    )  # fmt: skip
    parser.add_argument("--examples", action="store_true", help="queries to start from")
    parser.add_argument("--format", choices=FORMATS, help="default: table, or what --out ends in")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there instead of to the terminal")
    parser.add_argument(
        "--limit", type=int, default=200, metavar="ROWS", help="most rows of a table on the terminal (200; 0: all)"
    )


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 2 with one sentence on what cannot be used."""
    from analysis.compare.cli import printable
    from analysis.query.database import QueryError
    from analysis.rows import RowsError

    printable()
    try:
        if args.examples:
            sys.stdout.write("".join(f"-- {title}\n{sql};\n\n" for title, sql in EXAMPLES))
            return 0
        return _schema(args) if args.schema is not None else _query(args)
    except (QueryError, RowsError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone: head, less
        sys.stderr.close()
        return 1


def _schema(args: argparse.Namespace) -> int:
    from analysis.query.sources import documentation, find_sets
    from analysis.rows import TABLES, RowsError

    table, _, word = args.schema.partition(".")
    sets = find_sets([*([args.sql] if args.sql else []), *args.sets, *args.more])
    if table and table not in TABLES:
        raise RowsError(f"{table!r} is not a table of a result set; they are {', '.join(TABLES)}")
    text = documentation([one for one in _sources([table] if table else list(TABLES), sets) if one.files], word)
    if not text:
        raise RowsError(
            f"no column of {table} holds {word!r} in name or meaning" if word else f"these sets hold no {table}"
        )
    sys.stdout.write(text)
    return 0


def _sources(tables: list[str], sets: dict[str, Path]) -> list[Source]:
    from analysis.query.sources import source

    found = [source(table, sets) for table in tables]
    for sentence in (sentence for one in found for sentence in one.skipped):
        print(f"note: {sentence}", file=sys.stderr)
    return found


def _query(args: argparse.Namespace) -> int:
    from analysis.query import render
    from analysis.query.database import QueryError, ask, connect, mentioned
    from analysis.query.sources import Column, find_sets

    sql, named = _text(args)
    how = args.format or (args.out and _FORMAT_OF.get(args.out.suffix.lower())) or "table"
    if how == "parquet" and args.out is None:
        raise QueryError("parquet goes into a file: give --out FILE")
    sources = _sources(mentioned(sql), find_sets(named))
    table = ask(connect(sources), sql, sources)
    columns: dict[str, Column] = {}
    for one in sources:
        columns = {**one.columns, **columns}
    limit = args.limit if how == "table" and args.out is None and 0 < args.limit < table.num_rows else None
    try:
        if how == "parquet":
            render.write_parquet(table, columns, args.out)
        else:
            text = {
                "table": lambda: render.aligned(table, columns, limit),
                "markdown": lambda: render.markdown(table, columns),
                "csv": lambda: render.as_csv(table),
                "json": lambda: render.as_json(table),
            }[how]()  # fmt: skip
            if args.out is None:
                sys.stdout.write(text)
            else:
                args.out.write_text(text, encoding="utf-8")
    except BrokenPipeError:
        raise
    except OSError as refused:
        raise QueryError(f"{args.out} cannot be written: {refused.strerror}") from None
    rows = f"{table.num_rows:,} row{'' if table.num_rows == 1 else 's'}"
    if args.out is not None:
        print(f"{rows}: {args.out}")
    elif limit:
        print(f"{limit:,} of {rows}; --limit 0 shows all")
    return 0


_FORMAT_OF = {".csv": "csv", ".json": "json", ".md": "markdown", ".parquet": "parquet"}


def _text(args: argparse.Namespace) -> tuple[str, list[str]]:
    """The query, and the sets that are named."""
    from analysis.query.database import QueryError

    named = [*args.sets, *args.more]
    if args.file is not None:
        named = [*([args.sql] if args.sql else []), *named]  # without a query, the first word is a set
        try:
            sql = args.file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as unreadable:
            why = getattr(unreadable, "strerror", None) or "it is not UTF-8 text"
            raise QueryError(f"--file {args.file} cannot be read: {why}") from None
    elif args.sql == "-":
        sql = sys.stdin.read()
    elif args.sql is None:
        raise QueryError('nothing is asked: give "SELECT ...", - for standard input, --schema or --examples')
    else:
        sql = args.sql
    if not sql.strip():
        raise QueryError("the query is empty: give one SELECT")
    return sql, named
