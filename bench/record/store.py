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

from bench.errors import BenchError, first_line
from bench.record.tables import OPTIONAL, SCHEMA_VERSION, TABLES, table_schema

JOINED_PREFIX = "joined-"
"""Begins the name of a file that `bench.record.compact` made of many."""


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
                finish_joining(self.root / folder)
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
                raise StoreError(f"{path}: not a readable engines file ({first_line(error)}); "
                                 "move it out of the set to go on") from error  # fmt: skip
        # A run id ends in the time of the start: what was measured again comes last, whichever file it is in.
        return sorted(rows, key=lambda row: row.run_id)

    def engine(self, run_id: str) -> dict[str, Any]:
        """The row of one engine start."""
        own = self.root / "engines" / f"{run_id}.parquet"
        # A set may have been joined since (`bench.record.compact`).
        for path in [own] if own.is_file() else sorted(own.parent.glob(f"{JOINED_PREFIX}*.parquet")):
            try:
                found = pq.read_table(path, partitioning=None, filters=[("run_id", "=", run_id)]).to_pylist()
            except (pa.ArrowException, OSError) as error:
                raise StoreError(f"{path}: not a readable engines file ({first_line(error)}); "
                                 "move it out of the set to go on") from error  # fmt: skip
            if found:
                row: dict[str, Any] = found[0]
                return row
        raise StoreError(f"{own}: not a readable engines file (there is none, and no joined one has that run)")

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
                raise StoreError(f"{path}: not a readable {table} file ({first_line(error)}); "
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
            write_synced(data, partial)
            os.replace(partial, final)
        except OSError as error:
            partial.unlink(missing_ok=True)
            full = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror or error)
            raise StoreError(f"{final}: cannot be written ({full}); earlier results are untouched. "
                             "Make room and run the same command again") from error  # fmt: skip


def list_of_parts(joined: Path) -> Path:
    """Names the files that a joined one was made of, as long as they are still there."""
    return joined.with_suffix(".parts")


def finish_joining(folder: Path) -> None:
    """Deletes the parts of joined files that stand, where a joining was cut short before it had."""
    for parts in sorted(folder.glob(f"{JOINED_PREFIX}*.parts")):
        if parts.with_suffix(".parquet").is_file():
            for name in parts.read_text(encoding="utf-8").splitlines():
                (folder / name).unlink(missing_ok=True)
            parts.unlink(missing_ok=True)


def write_synced(data: pa.Table, path: Path) -> None:
    """Writes a Parquet file and waits until the disk has it."""
    with open(path, "wb") as out:
        pq.write_table(data, out, compression="zstd")
        out.flush()
        os.fsync(out.fileno())


def check_schema_version(path: Path) -> int:
    """The schema version of a file; refuses a newer one than this program knows."""
    metadata = pq.read_schema(path).metadata or {}
    version = int(metadata.get(b"schema_version", b"0"))
    if version > SCHEMA_VERSION:
        raise StoreError(f"{path}: written with schema {version}, this program knows {SCHEMA_VERSION}; update it")
    return version
