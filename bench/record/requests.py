"""The requests table: one row per request, written where a workload asks for it (`save_requests`)."""

from __future__ import annotations

import pyarrow as pa

from bench.load.request_table import REQUEST_COLUMNS
from bench.record.fields import Field, Group, count, text

_TYPES: dict[str, pa.DataType] = {
    "int": pa.int64(),
    "float": pa.float64(),
    "text": pa.string(),
    "bool": pa.bool_(),
    "floats": pa.list_(pa.float64()),
    "ints": pa.list_(pa.int64()),
}

REQUESTS = (
    Group(
        "Requests (on demand; times count from the run's start)",
        (
            text("run_id", "The engine start"),
            text("workload", "The workload"),
            count("position", "Its order on the engine; with run_id it names the workloads row"),
            *(Field(name, _TYPES[kind], unit, meaning) for name, (kind, unit, meaning) in REQUEST_COLUMNS.items()),
        ),
    ),
)
