"""The tables of a result set and the version of their schema.

The columns stand in the modules beside this one, one a table: change a column there, and the history here.

Schema history:
  1  first version: engines, workloads, samples
  2  workloads: load patterns, length distributions, the steady window and its latencies, goodput, the client's
     self-check, the engine's counters and energy over the same window, knee searches; requests: a new, optional table;
     colocations: a new, optional table, and the place in a group in engines and workloads; engines: rungs of walks that
     answer a start that failed for memory; workloads: drift of memory
"""

from __future__ import annotations

import pyarrow as pa

from bench.record.colocations import COLOCATIONS
from bench.record.engines import ENGINES
from bench.record.fields import Group
from bench.record.requests import REQUESTS
from bench.record.samples import SAMPLES
from bench.record.workloads import WORKLOADS

SCHEMA_VERSION = 2
"""Files of this version and all before it are read; a column that an older file lacks is null."""

TABLES: dict[str, tuple[Group, ...]] = {
    "engines": ENGINES, "workloads": WORKLOADS, "requests": REQUESTS, "samples": SAMPLES,
    "colocations": COLOCATIONS,
}  # fmt: skip

OPTIONAL = frozenset({"requests", "colocations"})
"""Tables that a set has only where they were asked for."""


def table_schema(table: str) -> pa.Schema:
    """The pyarrow schema of one table, with its version in the metadata."""
    fields = [field.arrow() for group in TABLES[table] for field in group.fields]
    return pa.schema(fields, metadata={"table": table, "schema_version": str(SCHEMA_VERSION)})
