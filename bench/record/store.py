"""A result set on disk, append-only: `results/<set>/{engines,workloads,requests,samples,colocations}/*.parquet`."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.errors import BenchError
from bench.record.tables import OPTIONAL, SCHEMA_VERSION, TABLES, table_schema


class StoreError(BenchError):
    """A result could not be written. What was written before is untouched."""


@dataclass(frozen=True)
class Recorded:
    """What the resume rule needs of a recorded engine start."""

    run_id: str
    point_id: str
    environment_id: str
    repeat: int
    status: str
    failure_cause: str | None


class ResultSet:
    """One result set's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def logs(self) -> Path:
        """Folder of the engines' logs."""
        return self.root / "logs"

    def create(self) -> None:
        """Make the folders; raises `StoreError` where that is impossible."""
        try:
            for folder in (*(table for table in TABLES if table not in OPTIONAL), "logs"):
                (self.root / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"paths.results={self.root.parent}: cannot be written ({error.strerror}); "
                             "name a folder that can, as in paths.results=/data/results") from error  # fmt: skip

    def write(
        self, run_id: str, engine: dict[str, Any], workloads: Iterable[dict], samples: Iterable[dict],
        requests: Iterable[dict] = (),
    ) -> None:  # fmt: skip
        """Write one engine start. The engines row goes last: a run counts as recorded once it is there.

        Raises `StoreError` and leaves no partial file when the disk is full or read-only.
        """
        tables = {"samples": list(samples), "requests": list(requests), "workloads": list(workloads)}
        for table, rows in (tables | {"engines": [engine]}).items():
            if rows:
                self._write_table(table, run_id, rows)

    def write_group(self, row: dict[str, Any], workloads: Iterable[dict], requests: Iterable[dict] = ()) -> None:
        """Write one group of engines, whose own rows are written; see `write`."""
        for table, rows in {"requests": list(requests), "workloads": list(workloads), "colocations": [row]}.items():
            if rows:
                self._write_table(table, row["run_id"], rows)

    def recorded(self) -> list[Recorded]:
        """Every engine start and every group. A file that cannot be read is reported by name, not skipped."""
        rows = []
        groups = sorted((self.root / "colocations").glob("*.parquet"))
        for path in [*sorted((self.root / "engines").glob("*.parquet")), *groups]:
            try:
                check_schema_version(path)
                row = pq.read_table(path, columns=[f for f in Recorded.__dataclass_fields__], partitioning=None)
                rows += [Recorded(**values) for values in row.to_pylist()]
            except (pa.ArrowException, OSError, TypeError, ValueError) as error:
                raise StoreError(f"{path}: not a readable engines file ({_first_line(error)}); "
                                 "move it out of the set to go on") from error  # fmt: skip
        return rows

    def engine(self, run_id: str) -> dict[str, Any]:
        """The row of one engine start."""
        path = self.root / "engines" / f"{run_id}.parquet"
        # A set may have been joined since (`bench.record.compact`).
        place = path if path.is_file() else path.parent
        try:
            found = pq.read_table(place, partitioning=None, filters=[("run_id", "=", run_id)])
            row: dict[str, Any] = found.to_pylist()[0]
        except (pa.ArrowException, OSError, IndexError) as error:
            raise StoreError(f"{path}: not a readable engines file ({_first_line(error)}); "
                             "move it out of the set to go on") from error  # fmt: skip
        return row

    def rows(self, table: str) -> list[dict[str, Any]]:
        """All rows of a table as dictionaries, for summaries of a set of modest size; a column that a file of an older
        schema lacks is None."""
        rows: list[dict[str, Any]] = []
        blank = dict.fromkeys(table_schema(table).names)
        for path in sorted((self.root / table).glob("*.parquet")):
            try:
                check_schema_version(path)
                rows += [blank | row for row in pq.read_table(path, partitioning=None).to_pylist()]
            except (pa.ArrowException, OSError) as error:
                raise StoreError(f"{path}: not a readable {table} file ({_first_line(error)}); "
                                 "move it out of the set to go on") from error  # fmt: skip
        return rows

    def _write_table(self, table: str, run_id: str, rows: list[dict[str, Any]]) -> None:
        schema = table_schema(table)
        unknown = sorted({key for row in rows for key in row} - set(schema.names))
        if unknown:
            raise ValueError(f"columns that table {table} does not have: {', '.join(unknown)}")
        final = self.root / table / f"{run_id}.parquet"
        partial = final.with_name(f".{final.name}.partial")
        try:
            final.parent.mkdir(exist_ok=True)
            columns = {name: [row.get(name) for row in rows] for name in schema.names}
            data = pa.table(columns, schema=schema)
            with open(partial, "wb") as out:
                pq.write_table(data, out, compression="zstd")
                out.flush()
                os.fsync(out.fileno())
            os.replace(partial, final)
        except OSError as error:
            partial.unlink(missing_ok=True)
            full = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror or error)
            raise StoreError(f"{final}: cannot be written ({full}); earlier results are untouched. "
                             "Make room and run the same command again") from error  # fmt: skip


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_schema_version(path: Path) -> int:
    """The schema version of a file; refuses a newer one than this program knows."""
    metadata = pq.read_schema(path).metadata or {}
    version = int(metadata.get(b"schema_version", b"0"))
    if version > SCHEMA_VERSION:
        raise StoreError(f"{path}: written with schema {version}, this program knows {SCHEMA_VERSION}; update it")
    return version
