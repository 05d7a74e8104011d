"""Parquet without a trace of when or where it was written: the same rows give the same bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from analysis.tables.cells import Cell

FORMAT = 1
"""Of multipliers.parquet and audit.parquet.  1: first version."""

_ROUND = 6
"""Decimals of stored factors and figures; bytes are whole."""


def write_cells(path: Path, cells: Iterable[Cell], gpu: str, vllm_version: str) -> None:
    """One row per cell; sizes in bytes, multipliers and ratios plain."""
    columns = (
        ("gpu", "string"), ("vllm_version", "string"), ("size", "string"), ("model", "string"),
        ("quantization", "string"), ("quantity", "string"), ("sequences", "int64"), ("tokens_per_sequence", "int64"),
        ("unit", "string"), ("value", "double"), ("low", "double"), ("high", "double"), ("basis", "string"),
        ("formula", "string"), ("run_ids", "strings"), ("calibrations", "strings"), ("guide_low", "double"),
        ("guide_high", "double"), ("guide_text", "string"), ("guide_section", "string"), ("ratio_low", "double"),
        ("ratio_high", "double"),
    )  # fmt: skip
    rows = []
    for cell in cells:
        whole = cell.unit == "B"
        bounds, ratio = cell.guide_bounds or (None, None), cell.ratio or (None, None)
        rows.append((
            gpu, vllm_version, cell.size, cell.model, cell.quantization, cell.quantity, cell.sequences, cell.tokens,
            cell.unit, *(_number(one, whole) for one in (cell.value, cell.low, cell.high)), cell.basis, cell.formula,
            list(cell.run_ids), list(cell.calibrations), *(_number(one, whole) for one in bounds),
            cell.guide.text() if cell.guide else None, cell.guide.section if cell.guide else None,
            *(_number(one) for one in ratio),
        ))  # fmt: skip
    write_table(path, columns, rows)


def write_table(path: Path, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[Any]]) -> None:
    """Columns as (name, type), rows in their order; written whole and renamed into place."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    types = {"string": pa.string(), "int64": pa.int64(), "double": pa.float64(), "strings": pa.list_(pa.string())}
    schema = pa.schema(
        [pa.field(name, types[kind]) for name, kind in columns], metadata={"format_version": str(FORMAT)}
    )
    table = pa.table([[row[place] for row in rows] for place in range(len(columns))], schema=schema)
    partial = path.with_name(path.name + ".partial")
    pq.write_table(table, partial, compression="zstd")
    os.replace(partial, path)


def write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)


def _number(value: float | None, whole: bool = False) -> float | None:
    return None if value is None else float(round(value)) if whole else round(value, _ROUND)
