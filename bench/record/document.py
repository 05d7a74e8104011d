"""Writes the schema's documentation, `results/README.md`, from the schema itself."""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow as pa

from bench.load.percentiles import PERCENTILES
from bench.record.tables import SCHEMA_VERSION, TABLES

INTRODUCTION = """# Result sets

<!-- Written by `python -m bench.record.document`; edit bench/record instead. -->

A result set is a folder: `results/<set>/{engines,workloads,requests,samples,colocations}/<run>.parquet`, one file per
engine start and table, and `logs/<run>.log`, the engine's own log. Files are written whole and never edited;
`python -m bench.record.compact results/<set>` joins those of a finished set into one per table. Read a table as one:

    import pandas
    engines = pandas.read_parquet("results/cpu/engines")

- **engines**: one row per engine start, failed and pruned ones included.
- **workloads**: one row per workload on a live engine; of a knee search one row per trial.
- **requests**: one row per request, for workloads with `save_requests: true`; no folder where none asked for it.
- **samples**: the telemetry timeline.
- **colocations**: one row per group of engines that ran on one device at once; no folder where there was none. Its
  engines and loads are rows of the tables above with `colocation_id` set: they are not engines alone, and whoever
  fits or compares leaves them aside.

Schema version {version}, in the metadata of every file; unit and meaning are in each field's metadata. Older files stay
as they are: a set may hold several versions, and a column that a file lacks is null. `analysis.rows.read_table` reads
them so; elsewhere unite by name, as DuckDB does: `read_parquet('results/*/workloads/*.parquet', union_by_name = true)`.

Bytes are whole bytes. A null means: not reported, or not applicable to this device or load. Distributions have a
mean, a maximum and the percentiles {percentiles}. `status` says what a row is worth:

| status | meaning |
|---|---|
| `ok` | started, measured, and every workload completed |
| `memory_only` | started and measured, but the engine cannot generate here; `missing_kernel` says what it lacks |
| `failed` | did not start or did not finish; phase, cause and the last memory readings are in the row |
| `pruned` | not started, because it cannot fit; `failure_sentence` has the arithmetic |
"""


def _type_name(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {_type_name(kind.value_type)}"
    return {"string": "text", "int64": "int", "double": "float", "bool": "bool"}[str(kind)]


def markdown() -> str:
    """The documentation of all tables as Markdown."""
    percentiles = ", ".join(map(str, PERCENTILES))
    out = [INTRODUCTION.replace("{version}", str(SCHEMA_VERSION)).replace("{percentiles}", percentiles)]
    for table, groups in TABLES.items():
        out.append(f"## {table}\n")
        for group in groups:
            out.append(f"### {group.title}\n\n| column | type | unit | meaning |\n|---|---|---|---|")
            for f in group.fields:
                meaning = f.meaning.replace("|", "\\|")
                out.append(f"| `{f.name}` | {_type_name(f.type)} | {f.unit} | {meaning} |")
            out.append("")
    return "\n".join(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the documentation of all columns as Markdown.")
    parser.add_argument("target", nargs="?", type=Path, default=Path("results/README.md"))
    target = parser.parse_args().target
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(markdown())
