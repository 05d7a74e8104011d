"""Joins the small files of a result set: one file per table, where the harness writes one per engine start.

    python -m bench.record.compact results/SET [results/OTHER ...]

A sweep writes every start at once and whole, so that nothing is ever lost; most of each file is then its schema, and
most of the time of reading it too. Joined, a set is a fraction of the size and quick to read. Every reader takes both;
a sweep that goes on in the set writes small files beside the large one, and joining again takes those in. Timelines
(`samples`) and `requests` stay one file per start: they are read by start.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.errors import BenchError, first_line
from bench.record.store import (
    JOINED_PREFIX,
    StoreError,
    check_schema_version,
    finish_joining,
    list_of_parts,
    write_synced,
)

BATCH = 250
"""Files read before they are put together."""
JOINED = ("engines", "workloads", "colocations")


@dataclass(frozen=True)
class Joined:
    """What became of one table's files of one schema version."""

    table: str
    target: Path
    files: int
    rows: int
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        mb = f"{self.bytes_before / 1e6:.1f} MB -> {self.bytes_after / 1e6:.1f} MB"
        return f"{self.files:,} files of {self.table} joined into {self.target} ({self.rows:,} rows, {mb})"


def compact(root: Path) -> tuple[list[Joined], list[str]]:
    """Joins what can be joined in the set at `root`; files of different schema versions stay apart.

    A file is deleted only after the joined one was written, read back and found equal. Returns what was done, and a
    sentence for every file that cannot be read: it stays as it is.

    Raises:
        StoreError: no such set, one that another process is joining, or a joined file cannot be written. Nothing is
            lost then.
    """
    if not (root / "engines").is_dir():
        raise StoreError(f"{root} is no result set: a result set is a folder with engines/*.parquet")
    done: list[Joined] = []
    problems: list[str] = []
    with _alone(root):
        for table in JOINED:
            folder = root / table
            finish_joining(folder)
            for left in [*folder.glob(f"{JOINED_PREFIX}*.parts"), *folder.glob(f".{JOINED_PREFIX}*.partial")]:
                left.unlink()  # of one that was cut short before its joined file stood: everything is in its parts
            for version, files in _by_version(folder, problems).items():
                if len(files) > 1:
                    done.append(_join(folder, version, files))
    return done, problems


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keeps others from joining the same set; the folder itself is what is locked."""
    folder = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StoreError(f"{root} is being joined by another process; wait until it is done") from None
    finally:
        os.close(folder)


def _by_version(folder: Path, problems: list[str]) -> dict[int, list[Path]]:
    found: dict[int, list[Path]] = {}
    for path in sorted(folder.glob("*.parquet")):
        try:
            found.setdefault(check_schema_version(path), []).append(path)
        except (StoreError, pa.ArrowException, OSError, ValueError) as error:
            problems.append(f"{path} stays as it is: {first_line(error)}")
    return dict(sorted(found.items()))


def _join(folder: Path, version: int, files: Sequence[Path]) -> Joined:
    # Names of runs end in the time of their start, by which readers tell older files from newer ones.
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")[:-3]
    target = folder / f"{JOINED_PREFIX}v{version}-{stamp}.parquet"
    before = sum(path.stat().st_size for path in files)
    try:
        whole = _whole(files)
        partial = target.with_name(f".{target.name}.partial")
        try:
            write_synced(whole, partial)
            if not _same(pq.read_table(partial, partitioning=None), whole):
                raise StoreError(f"{target}: what was written does not read back the same; nothing was deleted")
            # From here until the parts are gone rows are there twice. Whoever joins or measures next finishes it.
            with open(list_of_parts(target), "w", encoding="utf-8") as parts:
                parts.writelines(f"{path.name}\n" for path in files)
                parts.flush()
                os.fsync(parts.fileno())
            _sync(folder)
            os.replace(partial, target)
            _sync(folder)
        finally:
            partial.unlink(missing_ok=True)
        finish_joining(folder)
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise StoreError(f"{target}: cannot be written ({reason}); the files it would have joined are there") from error
    return Joined(folder.name, target, len(files), whole.num_rows, before, target.stat().st_size)


def _whole(files: Sequence[Path]) -> pa.Table:
    """The rows of all files in their order, with the columns of all and the schema's texts of the newest."""

    def one(path: Path) -> pa.Table:
        with pq.ParquetFile(path) as file:
            return file.read(use_threads=False)

    parts: list[pa.Table] = []
    with ThreadPoolExecutor(2) as pool:
        for first in range(0, len(files), BATCH):
            read = list(pool.map(one, files[first : first + BATCH]))
            # One piece a batch: thousands of pieces in every column would take minutes and gigabytes.
            parts.append(_concat(read).combine_chunks())
    return _concat(parts).combine_chunks()


def _concat(tables: Sequence[pa.Table]) -> pa.Table:
    newest = tables[-1].schema
    if all(table.schema.equals(newest) for table in tables):
        # The meaning of a field is no part of what `equals` compares.
        return pa.concat_tables([table.cast(newest) for table in tables])
    schema = pa.unify_schemas([newest, *(table.schema for table in tables)], promote_options="permissive")
    schema = schema.with_metadata(newest.metadata)
    tables = [pa.concat_tables([schema.empty_table(), table], promote_options="permissive") for table in tables]
    return pa.concat_tables([table.select(schema.names).cast(schema) for table in tables])


def _same(read: pa.Table, written: pa.Table) -> bool:
    """Equal, and NaN equal to NaN."""
    if not read.schema.equals(written.schema) or read.num_rows != written.num_rows:
        return False
    for one, other in zip(read.columns, written.columns, strict=True):
        if pa.types.is_floating(one.type):
            missing = pc.is_nan(other)
            if not pc.is_nan(one).equals(missing):
                return False
            one, other = (pc.if_else(missing, 0.0, column) for column in (one, other))
        if not one.equals(other):
            return False
    return True


def _sync(folder: Path) -> None:
    place = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 where a file could not be read and stays; 2 where a set is none or cannot be written."""
    parser = argparse.ArgumentParser(prog="python -m bench.record.compact", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sets", nargs="+", type=Path, metavar="SET", help="result sets: folders such as results/gpu")
    code = 0
    for root in parser.parse_args(argv).sets:
        try:
            done, problems = compact(root)
        except (BenchError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        for problem in problems:
            print(f"note: {problem}", file=sys.stderr)
            code = 1
        print("\n".join(map(str, done)) or f"{root}: nothing to join")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
