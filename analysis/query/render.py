"""Rows for people and for programs: an aligned table, Markdown, CSV, JSON, Parquet."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.query.sources import Column

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("table", "markdown", "csv", "json", "parquet")
WIDEST = 60
"""Characters of a cell of a table; longer text (a whole config.json) is cut there, and in no other format."""


def units(table: pa.Table, columns: Mapping[str, Column]) -> list[str]:
    """The unit of each result column that bears the name of a documented one."""
    found = [columns[name].unit if name in columns else "" for name in table.column_names]
    return ["" if unit == "1" else unit for unit in found]


def aligned(table: pa.Table, columns: Mapping[str, Column], limit: int | None = None) -> str:
    """Numbers to the right, text to the left; the units in a line of their own where there are any."""
    if table.column_names == ["explain_key", "explain_value"]:  # a drawing, lines and all
        return "\n".join(map(str, table.column("explain_value").to_pylist())) + "\n"
    shown = table if limit is None else table.slice(0, limit)
    heads = [list(map(str, table.column_names))]
    if any(units(table, columns)):
        heads.append(units(table, columns))
    body = [[_cell(value) for value in row.values()] for row in _rows(shown)]
    right = [_numeric(field) for field in table.schema]
    widths = [max(len(line[place]) for line in [*heads, *body]) for place in range(table.num_columns)]
    lines = [
        "  ".join(
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in [*heads, ["-" * width for width in widths], *body]
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def markdown(table: pa.Table, columns: Mapping[str, Column]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    heads = [
        f"{name} ({unit})" if unit else str(name)
        for name, unit in zip(table.column_names, units(table, columns), strict=True)
    ]
    rule = ["---:" if _numeric(field) else "---" for field in table.schema]
    body = [line([_cell(value, None) for value in row.values()]) for row in _rows(table)]
    return "\n".join([line(heads), line(rule).replace("\\", ""), *body]) + "\n"


def as_json(table: pa.Table) -> str:
    rows = [{name: _plain(value) for name, value in row.items()} for row in _rows(table)]
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def as_csv(table: pa.Table) -> str:
    import csv

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.column_names)
    for row in _rows(table):
        writer.writerow(
            json.dumps(value, default=str) if isinstance(value, list | dict) else value for value in row.values()
        )
    return out.getvalue()


def write_parquet(table: pa.Table, columns: Mapping[str, Column], path: Path) -> None:
    """Unit and meaning of documented columns go along in the fields' metadata. Raises OSError, QueryError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = []
    for one in table.schema:
        known = columns.get(one.name)
        fields.append(one.with_metadata({"unit": known.unit, "meaning": known.meaning}) if known else one)
    try:
        pq.write_table(table.cast(pa.schema(fields)), path)
    except pa.ArrowException as unfit:  # an interval, say, which Parquet does not know
        from analysis.query.database import QueryError

        why = " ".join(str(unfit).split())
        raise QueryError(f"{path}: Parquet cannot hold this result ({why}); cast the column, e.g. to VARCHAR") from None


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    """Row by row; columns of one name keep apart, as `name` and `name_2`."""
    names: list[str] = []
    for name in table.column_names:
        count = sum(one == name or one.startswith(f"{name}_") and one[len(name) + 1 :].isdecimal() for one in names)
        names.append(name if name not in names else f"{name}_{count + 1}")
    return table.rename_columns(names).to_pylist()


def _numeric(field: pa.Field) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_decimal(field.type))


def _cell(value: Any, widest: int | None = WIDEST) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        text = f"{value:.6g}"
        return f"{value:.0f}" if "e+" in text and abs(value) < 1e15 else text
    text = " ".join(json.dumps(value, default=str).split()) if isinstance(value, list | dict) else str(value)
    text = "".join(char if char.isprintable() else " " for char in text)  # logs hold line ends and escape codes
    return text if widest is None or len(text) <= widest else text[: widest - 1] + "…"


def _plain(value: Any) -> Any:
    import decimal
    import math

    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such number
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
