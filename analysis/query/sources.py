"""Which files there are to ask: the tables of result sets, with what their columns mean, and what cannot be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from analysis.rows import SCHEMA_VERSION, TABLES, RowsError

RESULTS = Path("results")
SET_COLUMN = "result_set"


@dataclass(frozen=True, slots=True)
class Column:
    """`kind` is text, int, float, bool, list of text; `unit` is empty for names, flags and identifiers."""

    name: str
    kind: str
    unit: str
    meaning: str


@dataclass(slots=True)
class Source:
    """One table over all chosen sets: its files by set, and its columns as the newest files describe them."""

    table: str
    files: dict[str, list[Path]] = field(default_factory=dict)
    columns: dict[str, Column] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def find_sets(named: Sequence[str], results: Path = RESULTS) -> dict[str, Path]:
    """Name to folder: those named (a folder, or a name in `results`), else all there are.

    Raises RowsError where one does not exist, holds no table, or two have one name.
    """
    if not named:
        found = {path.name: path for path in sorted(results.glob("*")) if _is_set(path)}
        if not found:
            raise RowsError(f"there is no result set in {results}/: name a set's folder, or measure one (`make sweep`)")
        return found
    found = {}
    for word in named:
        path = next((one for one in (Path(word), results / word) if one.is_dir()), None)
        if path is None:
            known = ", ".join(one.name for one in sorted(results.glob("*")) if _is_set(one)) or "none"
            raise RowsError(
                f"there is no result set {word!r}: it is no folder and no name in {results}/ (there: {known})"
            )
        if not _is_set(path):
            raise RowsError(f"{path} is no result set: it holds none of {', '.join(f'{table}/' for table in TABLES)}")
        name = path.resolve().name
        if name in found and found[name].resolve() != path.resolve():
            raise RowsError(f"two sets are called {name!r} ({found[name]} and {path}): rename one of the folders")
        found[name] = path
    return found


def _is_set(path: Path) -> bool:
    return any((path / table).is_dir() for table in TABLES)


def source(table: str, sets: dict[str, Path]) -> Source:
    """Files of one table that can be read; the others are named in `skipped`, each in one sentence."""
    found = Source(table)
    newest = -1
    for name, folder in sets.items():
        for path in sorted((folder / table).glob("*.parquet")):
            try:
                version, columns = _described(path)
            except RowsError as problem:
                found.skipped.append(str(problem))
                continue
            found.files.setdefault(name, []).append(path)
            # The newest schema says what a column means; older files may still have columns of their own.
            if version > newest:
                newest, found.columns = version, {**found.columns, **columns}
            else:
                found.columns = {**columns, **found.columns}
    return found


def _described(path: Path) -> tuple[int, dict[str, Column]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as broken:
        first = (str(broken).strip().splitlines() or [type(broken).__name__])[0]
        raise RowsError(f"{path} is not a readable Parquet file and is left out: {first}") from None
    metadata = schema.metadata or {}
    text = metadata.get(b"schema_version", b"").decode(errors="replace")
    if not text.isdecimal():
        raise RowsError(f"{path} names no schema version and is left out: it is not a file of a result set")
    if int(text) > SCHEMA_VERSION:
        raise RowsError(
            f"{path} has schema {text} and this program reads up to {SCHEMA_VERSION}; it is left out: "
            "update the program"
        )
    return int(text), {one.name: _column(one) for one in schema}


_KINDS = {"string": "text", "large_string": "text", "int64": "int", "double": "float", "bool": "bool"}


def _column(one: object) -> Column:
    metadata = {key.decode(): value.decode() for key, value in (getattr(one, "metadata", None) or {}).items()}
    kind = str(getattr(one, "type", ""))
    kind = "list of text" if kind.startswith("list") else _KINDS.get(kind, kind)
    return Column(str(getattr(one, "name", "")), kind, metadata.get("unit", ""), metadata.get("meaning", ""))


def documentation(sources: Iterable[Source], word: str = "") -> str:
    """Every column with its type, unit and meaning; those that hold `word` in name or meaning, if one is given."""
    import textwrap

    out: list[str] = []
    for one in sources:
        columns = [
            Column(SET_COLUMN, "text", "", "Name of the result set, which is its folder's"),
            *one.columns.values(),
        ]
        columns = [c for c in columns if word.lower() in c.name.lower() or word.lower() in c.meaning.lower()]
        if not columns:
            continue
        files = sum(map(len, one.files.values()))
        out.append(f"{one.table}: {len(one.columns) + 1} columns, {files} files in {', '.join(one.files)}")
        width = max(len(column.name) for column in columns)
        lead = f"  {'column':<{width}}  {'type':<12}  {'unit':<9}  "
        out.append(f"{lead}meaning")
        for column in columns:
            head = f"  {column.name:<{width}}  {column.kind:<12}  {column.unit or '-':<9}  "
            out += textwrap.wrap(
                column.meaning, 140, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False
            ) or [head.rstrip()]
        out.append("")
    return "\n".join(out)
