"""Result sets as two Arrow tables, engines and workloads. What cannot be read is named and left out, the rest goes on.

Every file under `engines/` and `workloads/` counts, however many rows it has: one per engine start, as the harness
writes them, or a few large ones after consolidation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import rows
from analysis.compare import keys
from analysis.compare.model import CompareError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

SET = "set"
"""Column added to both tables: index of the set a row comes from."""

MANY = 256
"""Rows from which it pays to ask a file which of its columns are null throughout."""

ALWAYS = {
    "engines": {
        "run_id",
        "point_id",
        "environment_id",
        "repeat",
        "started_unix_s",
        "status",
        "failure_phase",
        "failure_cause",
        "missing_kernel",
        "flags",
        "workload",
        *rows.ENVIRONMENT,
        *keys.ENGINE,
        *keys.MINOR,
        *keys.OBSERVED,
    },
    "workloads": {"run_id", "workload", "status", "failure_cause", "flags", *keys.WORKLOAD},
}


@dataclass
class Data:
    """What was read.

    Attributes:
        labels, paths: one per usable set. engines, workloads: with the column `set`.
        engine_of: per row of `workloads` the row of `engines` that it ran on.
        present: per table and set the columns its files have. numeric: per table the columns that hold numbers.
    """

    labels: list[str]
    paths: list[Path]
    engines: pa.Table
    workloads: pa.Table
    engine_of: np.ndarray
    present: dict[str, list[set[str]]]
    numeric: dict[str, list[str]]
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def load(paths: Sequence[Path], wanted: Collection[str], least: int = 2) -> Data:
    """Reads sets. `wanted`: further columns, where they exist; `least`: how many sets must be usable.

    Raises:
        CompareError: fewer than `least` sets can be used, with the reason for each of the others.
    """
    import pyarrow as pa

    places = [_place(Path(path)) for path in paths]
    problems: list[str] = []
    read: list[tuple[Path, dict[str, _Read]]] = []
    for path in places:
        try:
            read.append((path, _read_set(path, wanted)))
        except CompareError as problem:
            problems.append(str(problem))
    for _, tables in read:
        problems += tables["engines"].problems + tables["workloads"].problems
    if len(read) < least:
        need = "two result sets are needed" if least == 2 else "no result set can be used"
        raise CompareError("; ".join([*problems, need + (f", and {len(read)} can be used" if least == 2 else "")]))
    data = Data(
        _labels([path for path, _ in read]),
        [path for path, _ in read],
        pa.table({}),
        pa.table({}),
        None,  # type: ignore[arg-type]
        {},
        {},
        warnings=problems,
    )
    for table in ("engines", "workloads"):
        parts = [tables[table] for _, tables in read]
        data.present[table] = [part.names for part in parts]
        data.numeric[table] = sorted(set().union(*(part.numeric for part in parts)))
        merged = [
            part.table.append_column(SET, pa.repeat(pa.scalar(at, pa.int64()), part.table.num_rows))
            for at, part in enumerate(parts)
        ]
        setattr(data, table, _concat(merged))
    for at, (first, _) in enumerate(read):
        for other in range(at + 1, len(read)):
            if first.resolve() == read[other][0].resolve():
                data.warnings.append(f"{data.labels[at]} and {data.labels[other]} are the same set: nothing can differ")
    _note_schemas(data, [tables["engines"].versions for _, tables in read])
    _newest(data)
    _join(data)
    return data


def _place(path: Path) -> Path:
    return Path("results") / path if not path.exists() and (Path("results") / path).is_dir() else path


def _labels(paths: Sequence[Path]) -> list[str]:
    names = [path.resolve().name or str(path) for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return [
        f"{name} ({names[:at].count(name) + 1})" if names[:at].count(name) else name for at, name in enumerate(names)
    ]


@dataclass
class _Read:
    table: pa.Table
    names: set[str]
    numeric: set[str]
    versions: set[int]
    problems: list[str]


def _read_set(root: Path, wanted: Collection[str]) -> dict[str, _Read]:
    if not root.exists():
        raise CompareError(f"there is no result set {root}")
    if not root.is_dir():
        raise CompareError(f"{root} is no result set: a result set is a folder with engines/*.parquet")
    if not any(root.iterdir()):
        raise CompareError(f"{root} is an empty folder: no result set")
    found = {
        table: _read_files(sorted((root / table).glob("*.parquet")), table, wanted)
        for table in ("engines", "workloads")
    }
    engines = found["engines"]
    if not engines.table.num_rows:
        if not engines.problems:
            raise CompareError(f"{root} is no result set: it has no engine starts in engines/*.parquet")
        why = "; ".join(engines.problems)
        raise CompareError(f"{root} is left out, no engine start can be read from it: {why}")
    return found


def _read_files(files: Sequence[Path], table: str, wanted: Collection[str]) -> _Read:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = _Columns(ALWAYS[table] | set(wanted), len(files) < 4)

    def one(path: Path) -> tuple[pa.Table, pa.Schema, int] | str:
        try:
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                version = _version(path, schema)
                return columns.read(file, schema), schema, version
        except CompareError as newer:
            return str(newer)
        except (pa.ArrowException, OSError) as broken:
            first = (str(broken).strip().splitlines() or [type(broken).__name__])[0]
            return f"{path} is left out: not a readable Parquet file ({first[:80]})"

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(one, files))
    good = [result for result in results if not isinstance(result, str)]
    problems = [result for result in results if isinstance(result, str)]
    names: set[str] = set()
    numeric: set[str] = set()
    seen: list[pa.Schema] = []
    for _, schema, _ in good:
        if not any(schema is one or schema.equals(one) for one in seen):
            seen.append(schema)
            names |= set(schema.names)
            numeric |= {
                part.name for part in schema if pa.types.is_integer(part.type) or pa.types.is_floating(part.type)
            }
    merged = _concat([part for part, _, _ in good])
    return _Read(merged, names, numeric, {version for _, _, version in good}, problems)


class _Columns:
    """Reads the wanted columns of files that are mostly alike. One that a large file says is null throughout, as most
    settings are, is made up instead: that halves the time."""

    def __init__(self, wanted: Collection[str], use_threads: bool) -> None:
        self._wanted, self._use_threads = wanted, use_threads
        self._places: dict[str, int] = {}

    def read(self, file: pq.ParquetFile, schema: pa.Schema) -> pa.Table:
        import pyarrow as pa

        columns = [name for name in schema.names if name in self._wanted]
        if file.metadata.num_rows < MANY:
            return file.read(columns=columns, use_threads=self._use_threads)
        absent = self._null_throughout(file.metadata, columns)
        table = file.read(columns=[name for name in columns if name not in absent], use_threads=self._use_threads)
        for name in absent:
            table = table.append_column(schema.field(name), pa.nulls(table.num_rows, schema.field(name).type))
        return table.select(columns)

    def _null_throughout(self, metadata: pq.FileMetaData, columns: Sequence[str]) -> set[str]:
        groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
        if not self._places:  # where columns stood in the first file; looked for anew in each, it would cost the gain
            self._places = {groups[0].column(at).path_in_schema: at for at in range(metadata.num_columns)}
        found = set()
        for name in columns:
            # A nested column has another path, so it is not found here, and read.
            at = self._places.get(name)
            if at is not None and at < metadata.num_columns:
                parts = [group.column(at) for group in groups]
                if all(part.path_in_schema == name and _is_null(part) for part in parts):
                    found.add(name)
        return found


def _is_null(part: pq.ColumnChunkMetaData) -> bool:
    known = part.statistics
    return known is not None and known.has_null_count and known.null_count == part.num_values


def _version(path: Path, schema: pa.Schema) -> int:
    text = (schema.metadata or {}).get(b"schema_version", b"")
    if not text.isdigit():
        raise CompareError(f"{path} is left out: it names no schema version, so it is no file of a result set")
    if int(text) > rows.SCHEMA_VERSION:
        raise CompareError(
            f"{path} is left out: it has schema {int(text)} and this program reads up to "
            f"{rows.SCHEMA_VERSION}; update the program"
        )
    return int(text)


def _concat(tables: Sequence[pa.Table]) -> pa.Table:
    import pyarrow as pa

    if not tables:
        return pa.table({})
    return pa.concat_tables([table.replace_schema_metadata(None) for table in tables], promote_options="permissive")


def _note_schemas(data: Data, versions: Sequence[set[int]]) -> None:
    if len(set().union(*versions)) > 1:
        told = "; ".join(
            f"{label}: {', '.join(map(str, sorted(of)))}" for label, of in zip(data.labels, versions, strict=True)
        )
        data.notes.append(
            f"the sets have different schema versions ({told}): columns that one lacks are not compared, "
            "and schema 1 counts TTFT and E2E from the send, later ones from when a request was due"
        )


def _newest(data: Data) -> None:
    """Of every restart of a point in one environment only the newest row stays, as everywhere in this program."""
    import numpy as np

    engines = data.engines
    needed = {"point_id", "repeat", "started_unix_s"}
    if not needed <= set(engines.column_names):
        return
    codes = keys.Codes(engines.num_rows)
    for name in (SET, "environment_id", "point_id", "repeat"):
        if name in engines.column_names:
            codes.add(engines.column(name))
    started = keys.floats(engines.column("started_unix_s"))
    order = np.lexsort((np.nan_to_num(started), codes.combined))
    grouped = codes.combined[order]
    last = np.ones(len(order), bool)
    last[:-1] = grouped[1:] != grouped[:-1]
    # Rows that name no point or restart cannot be replaced by one another.
    anonymous = keys.nulls(engines.column("point_id")) | keys.nulls(engines.column("repeat"))
    stays = np.zeros(len(order), bool)
    stays[order[last]] = True
    stays |= anonymous
    if dropped := int((~stays).sum()):
        data.notes.append(
            f"{dropped} engine starts were measured again later in the same set; the newest of each counts"
        )
        data.engines = engines.filter(stays)


def _join(data: Data) -> None:
    import numpy as np
    import pyarrow.compute as pc

    workloads, engines = data.workloads, data.engines
    if not workloads.num_rows:
        data.engine_of = np.zeros(0, np.int64)
        return
    engine_of = np.full(workloads.num_rows, -1, np.int64)
    set_of_workload, set_of_engine = (keys.floats(table.column(SET)) for table in (workloads, engines))
    for at in range(len(data.labels)):
        ours, theirs = np.flatnonzero(set_of_workload == at), np.flatnonzero(set_of_engine == at)
        if not len(ours) or not len(theirs):
            continue
        runs = engines.column("run_id").take(theirs).combine_chunks()
        # A set's rows lie together, so its runs are looked up as a slice.
        asked = workloads.column("run_id").slice(int(ours[0]), len(ours))
        found = pc.fill_null(pc.index_in(asked, value_set=runs), -1).to_numpy()
        engine_of[ours] = np.where(found >= 0, theirs[found], -1)
    joined = engine_of >= 0
    if not joined.all():
        data.workloads, engine_of = workloads.filter(joined), engine_of[joined]
    data.engine_of = engine_of


def named_columns(words: Collection[str], expression: str) -> set[str]:
    """Columns that options may mean, to be read where they exist."""
    import re

    return set(words) | set(re.findall(r"([\w.]+):", expression))


def value_text(value: Any) -> str:
    """A value as filters and names write it; null is `none`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value)
