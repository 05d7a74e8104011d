"""DuckDB over the files of result sets: views, and a lock on everything else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.query.sources import SET_COLUMN, Source
from analysis.rows import TABLES

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


class QueryError(ValueError):
    """The query cannot be answered as written: one sentence."""


def mentioned(sql: str) -> list[str]:
    """Tables whose name stands in the query, so that no other needs to be opened; all where there is none."""
    words = set(re.findall(r"[a-z_]+", sql.lower()))
    return [table for table in TABLES if table in words] or list(TABLES)


def connect(sources: Iterable[Source]) -> duckdb.DuckDBPyConnection:
    """A database in memory with a view per table.

    It reads the files of these sets and nothing else: no other file, no network, no extension, and its settings are
    locked. A column that an older file lacks is null; `result_set` names the set of each row.
    """
    import duckdb

    connection = duckdb.connect(
        ":memory:",
        config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"},
    )
    connection.execute("SET parquet_metadata_cache = true")  # views, checks and the query read the same footers
    allowed: list[Path] = []
    for source in sources:
        selects = [
            f"SELECT {_text(name)} AS {SET_COLUMN}, * FROM read_parquet([{_list(files)}], union_by_name = true)"
            for name, files in source.files.items()
        ]
        if selects:
            connection.execute(f"CREATE VIEW {source.table} AS {' UNION ALL BY NAME '.join(selects)}")
            allowed += [path for files in source.files.values() for path in files]
    connection.execute(f"SET allowed_paths = [{_list(allowed)}]")
    for setting in ("temp_directory = ''", "enable_external_access = false", "lock_configuration = true"):
        connection.execute(f"SET {setting}")
    return connection


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _list(paths: Iterable[Path]) -> str:
    return ", ".join(_text(str(path.resolve())) for path in paths)


def ask(connection: duckdb.DuckDBPyConnection, sql: str, sources: Iterable[Source]) -> pa.Table:
    """The rows of one SELECT (also WITH, FROM, VALUES, PIVOT, SHOW, DESCRIBE, SUMMARIZE, EXPLAIN).

    Raises QueryError.
    """
    import duckdb

    known = {source.table: source for source in sources if source.files}
    try:
        _check(connection, sql)
        return connection.sql(sql).to_arrow_table()
    except duckdb.Error as problem:
        raise QueryError(explained(str(problem), known)) from None


def _check(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Result sets are never changed: a statement that could write is refused before it runs."""
    import duckdb

    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise QueryError(
            "there is no query: give one SELECT" if not statements
            else f"these are {len(statements)} statements; give one, and run the command again for the next"
        )  # fmt: skip
    kinds = duckdb.StatementType
    kind = statements[0].type
    reads = kind in (kinds.SELECT, kinds.MULTI) or (
        kind == kinds.EXPLAIN and not re.search(r"\b(copy|export|create|insert|update|delete|attach)\b", sql, re.I)
    )
    if not reads:
        raise QueryError(
            f"{kind.name} is not answered here: result sets are only read; give a SELECT, "
            "and --out FILE to keep its rows"
        )


def explained(message: str, known: Mapping[str, Source]) -> str:
    """DuckDB's message in one sentence, with the name that was meant where it can tell."""
    body, _, place = message.partition("\n\nLINE ")
    text = " ".join(body.split())
    text = re.sub(r"^(\w+ )+Error: ", "", text)
    text = re.split(r" Candidate (?:functions|macros)| You might need to add explicit", text)[0]
    if found := re.match(r'Referenced column "([^"]+)" (?:was )?not found in FROM clause!?(.*)', text):
        column, rest = found.groups()
        near = re.findall(r'"([^"]+)"', rest)
        return f"column {column!r} is not there{_meant(column, near, known)}; --schema lists the columns"
    if found := re.match(r"Table with name (\S+) does not exist!?(.*)", text):
        table, rest = found.groups()
        if table in TABLES:
            return f"these sets hold no {table}: no readable file {table}/*.parquet"
        return f"table {table!r} is not there{_meant(table, list(known), known)}; there are {', '.join(known)}"
    if "file system operations are disabled" in text or "external access" in text.lower():
        return f"only the files of the result sets are read here: {text}"
    if text.startswith("syntax error") and place:
        return f"{text} (line {place.partition(':')[0]})"
    return text.rstrip("!")


def _meant(name: str, near: list[str], known: Mapping[str, Source]) -> str:
    import difflib

    columns = {column for source in known.values() for column in source.columns}
    best = difflib.get_close_matches(name, [*near, *columns] if near else list(known), n=1, cutoff=0.5)
    return f"; did you mean {(best or near)[0]!r}?" if best or near else ""
