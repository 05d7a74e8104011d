"""A comparison as JSON and as a table."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from analysis.compare.model import VERDICTS, Comparison

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_VERSION = 1


def _columns(comparison: Comparison) -> dict[str, list[Any]]:
    changes = comparison.changes
    cells = [comparison.cells[at] for at in changes.cell]
    metrics = [comparison.metrics[at] for at in changes.metric]
    out: dict[str, list[Any]] = {
        "cell": [cell.name for cell in cells],
        "table": [cell.table for cell in cells],
        "cell_index": changes.cell.tolist(),
        "metric": [metric.name for metric in metrics],
        "unit": [metric.unit for metric in metrics],
        "baseline": [comparison.baseline] * len(cells),
        "other": [comparison.columns[at].label for at in changes.column],
    }
    for name in ("n_a", "n_b"):
        out[name] = getattr(changes, name).tolist()
    for name in ("median_a", "median_b", "spread_a", "spread_b", "change", "low", "high"):
        out[name] = _nullable(getattr(changes, name).tolist())
    for name in ("change", "low", "high"):
        out[f"{name}_pct"] = _nullable(changes.per_cent(name).tolist())
    out["p"], out["p_adjusted"] = _nullable(changes.p.tolist()), _nullable(changes.p_adjusted.tolist())
    out["verdict"] = [VERDICTS[at] for at in changes.verdict]
    out["need_n"] = [int(need) or None for need in changes.need_n]
    return out


def _nullable(values: list[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """One dictionary per comparison."""
    columns = _columns(comparison)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def document(comparison: Comparison) -> dict[str, Any]:
    """Everything, ready for `json.dumps`."""
    plain = {
        field.name: getattr(comparison, field.name)
        for field in dataclasses.fields(comparison)
        if field.name not in ("changes", "metrics", "broken", "unmeasured")
    }
    out: dict[str, Any] = {"format_version": FORMAT_VERSION}
    for name, value in plain.items():
        out[name] = (
            [dataclasses.asdict(one) if dataclasses.is_dataclass(one) else one for one in value]
            if isinstance(value, list)
            else value
        )
    out["metrics"] = [{"name": m.name, "unit": m.unit, "better": m.better} for m in comparison.metrics]
    out["comparisons"] = records(comparison)
    return out


def table(comparison: Comparison) -> pa.Table:
    """The comparisons as an Arrow table: identity columns of the cell first, the method in the metadata."""
    import json

    import pyarrow as pa

    columns = _columns(comparison)
    names = list(dict.fromkeys(name for cell in comparison.cells for name in cell.key))
    keys = {}
    for name in names:
        values = [comparison.cells[at].key.get(name) for at in comparison.changes.cell]
        keys[f"key_{name}"] = [" ".join(map(str, value)) if isinstance(value, list) else value for value in values]
    about = {
        "format_version": str(FORMAT_VERSION),
        "test": comparison.test,
        "correction": comparison.correction,
        "alpha": str(comparison.alpha),
        "comparisons": str(comparison.tests),
        "interval": comparison.interval,
        "warnings": json.dumps(comparison.warnings),
    }
    floats = {
        "median_a",
        "median_b",
        "spread_a",
        "spread_b",
        "change",
        "low",
        "high",
        "change_pct",
        "low_pct",
        "high_pct",
        "p",
        "p_adjusted",
    }
    typed = {
        name: pa.array(values, pa.float64())
        if name in floats
        else pa.array(values, pa.int64())
        if name == "need_n"
        else pa.array(values)
        for name, values in columns.items()
    }
    return pa.table({**keys, **typed}).replace_schema_metadata(about)
