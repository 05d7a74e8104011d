"""Writes the schema's documentation, `results/README.md`, from the schema itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa

from bench.record.tables import SCHEMA_VERSION, TABLES

INTRODUCTION = """# Result sets

<!-- Written by `python -m bench.record.document`; edit bench/record/tables.py instead. -->

A result set is a folder: `results/<set>/{engines,workloads,samples}/<run>.parquet`, one file per engine start and
table, and `logs/<run>.log`, the engine's own log. Files are written whole and never edited. Read a table as one:

    import pandas
    engines = pandas.read_parquet("results/cpu/engines")

- **engines**: one row per engine start, failed and pruned ones included.
- **workloads**: one row per workload on a live engine.
- **samples**: the telemetry timeline.

Schema version {version}, in the metadata of every file; unit and meaning are in each field's metadata. Bytes are whole
bytes. A null means: not reported, or not applicable to this device. `status` says what a row is worth:

| status | meaning |
|---|---|
| `ok` | started, measured, and every workload completed |
| `memory_only` | started and measured, but the engine cannot generate here; `missing_kernel` says what it lacks |
| `failed` | did not start or did not finish; phase, cause and the last memory readings are in the row |
| `pruned` | not started, because it cannot fit; `failure_sentence` has the arithmetic |
"""


def _type_name(kind: pa.DataType) -> str:
    return {"string": "text", "int64": "int", "double": "float", "bool": "bool"}.get(str(kind), "list of text")


def markdown() -> str:
    """The documentation of all tables as Markdown."""
    out = [INTRODUCTION.replace("{version}", str(SCHEMA_VERSION))]
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
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "results/README.md")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(markdown())
