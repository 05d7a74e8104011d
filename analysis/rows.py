"""Reading result sets: Parquet files to rows, newest per point, environments kept apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

SCHEMA_VERSION = 2
"""Newest schema of result sets that is read here; bench/record/tables.py holds the history."""

TABLES = ("engines", "workloads", "requests", "samples", "colocations")
STARTED = ("ok", "memory_only")
"""Status of rows whose engine started and was measured."""

ENVIRONMENT = (
    "device_kind", "device_name", "device_memory_total_bytes", "device_count", "gpu_power_limit_w", "gpu_mig_mode",
    "driver_version", "cuda_driver_version", "vllm_version", "torch_version", "transformers_version",
    "host_cpu", "host_cpu_isa", "host_cpu_count", "cpu_threads", "host_memory_bytes",
)  # fmt: skip
"""Columns that explain why two environment ids differ, in the order a person would ask."""

CLIENT_BOUND = frozenset({
    "client_bound", "client_cpu_bound", "client_starved", "client_lag", "client_share", "send_delay",
})  # fmt: skip
"""Flags by which a workload's figures may be the client's instead of the engine's."""


def held_back(load: Mapping[str, Any]) -> bool:
    """Whether a workload's figures may be the client's: by its own column, or by its flags where an older schema
    has none."""
    return bool(load.get("client_bound")) or not CLIENT_BOUND.isdisjoint(load.get("flags") or ())


class RowsError(ValueError):
    """A result set cannot be used as it is: one sentence, naming the file or the field."""


def read_table(root: Path, table: str = "engines", columns: Sequence[str] | None = None) -> list[Row]:
    """All rows of one table of a result set, in the order of their files' names.

    Args:
        root: the set's folder, `results/<set>`, or a Parquet file of that table itself.
        columns: read only these. A column that an older file lacks is null in its rows.

    Raises:
        RowsError: no such set, a file that is no Parquet, or one with a newer schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if table not in TABLES:
        raise RowsError(f"{table!r} is not a table of a result set; they are {', '.join(TABLES)}")
    if root.is_file():
        files = [root]
    else:
        if not root.is_dir():
            raise RowsError(f"there is no result set {root}")
        files = sorted((root / table).glob("*.parquet"))
        if not files:
            raise RowsError(f"{root} holds no {table}: no file {table}/*.parquet")
    rows: list[Row] = []
    for path in files:
        try:
            file = pq.ParquetFile(path)
            _check_schema(path, file.schema_arrow.metadata or {})
            present = None if columns is None else [c for c in columns if c in file.schema_arrow.names]
            read = file.read(columns=present).to_pylist()
        except (pa.ArrowException, OSError) as broken:
            first = (str(broken).strip().splitlines() or [type(broken).__name__])[0]
            raise RowsError(f"{path} is not a readable Parquet file: {first}") from None
        rows += read
    names = list(dict.fromkeys(name for row in rows for name in row)) if columns is None else columns
    return [{name: row.get(name) for name in names} for row in rows]


def _check_schema(path: Path, metadata: Mapping[bytes, bytes]) -> None:
    try:
        version = int(metadata.get(b"schema_version", b"0"))
    except ValueError:
        version = 0
    if version > SCHEMA_VERSION:
        raise RowsError(
            f"{path} was written with schema {version} and this program reads up to {SCHEMA_VERSION}; "
            "update the program"
        )
    if version < 1:
        raise RowsError(f"{path} names no schema version: it is not a file of a result set")


def read_engines(roots: Iterable[Path]) -> list[Row]:
    """The engines table of several sets."""
    return [row for root in roots for row in read_table(Path(root))]


def started(rows: Iterable[Row]) -> list[Row]:
    """Rows whose engine started and was measured, whether or not it could generate."""
    return [row for row in rows if row.get("status") in STARTED]


def alone(rows: Iterable[Row]) -> list[Row]:
    """Rows of engines that had the device to themselves: not those of a group that ran at once."""
    return [row for row in rows if row.get("colocation_id") is None]


def newest(rows: Iterable[Row]) -> list[Row]:
    """Of every restart of a point in one environment the newest row, in order of their start.

    A point measured again replaces its older measurement; its repeats stay.
    """
    latest: dict[tuple[Any, ...], Row] = {}
    for row in sorted(rows, key=lambda row: (row.get("started_unix_s") or 0.0, str(row.get("run_id")))):
        point = row.get("point_id") or row.get("run_id")
        latest[(row.get("environment_id"), point, row.get("repeat"))] = row
    return list(latest.values())


def by_environment(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by environment id. Rows of different environments answer different questions."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row.get("environment_id")), []).append(row)
    return dict(sorted(groups.items()))


def differences(rows: Iterable[Row]) -> dict[str, list[str]]:
    """What differs between the environments of these rows: column -> its values; empty for one environment."""
    found: dict[str, set[str]] = {name: set() for name in ENVIRONMENT}
    ids = set()
    for row in rows:
        ids.add(row.get("environment_id"))
        for name, values in found.items():
            values.add("none" if row.get(name) is None else str(row[name]))
    if len(ids) < 2:
        return {}
    differing = {name: sorted(values) for name, values in found.items() if len(values) > 1}
    return differing or {"environment_id": sorted(map(str, ids))}


def one_environment(rows: Sequence[Row], pool: bool = False) -> list[str]:
    """Notes on the environments of rows that are about to be pooled: none for one environment.

    Raises RowsError if there are several and `pool` is false.
    """
    differing = differences(rows)
    if not differing:
        return []
    told = "; ".join(f"{name}: {' | '.join(values)}" for name, values in differing.items())
    if not pool:
        raise RowsError(f"the rows come from several environments, which are never pooled silently ({told})")
    return [f"pooled over several environments ({told})"]
