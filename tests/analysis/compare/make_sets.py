"""Result sets made to measure: a few large Parquet files with the columns of the harness's own schema."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.record.tables import table_schema

Values = dict[str, Any]


def write(root: Path, table: str, rows: list[Values], name: str = "rows") -> Path:
    """One Parquet file of a table, in the schema that the harness writes."""
    schema = table_schema(table)
    path = root / table / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {field: [row.get(field) for row in rows] for field in schema.names}
    pq.write_table(pa.table(columns, schema=schema), path)
    return path


def engine(cell: int, repeat: int, **more: Any) -> Values:
    """An engine start of configuration number `cell`."""
    return {"run_id": f"p{cell}-r{repeat}", "point_id": f"p{cell}", "environment_id": "e", "repeat": repeat,
            "started_unix_s": 1000.0 + repeat, "status": "ok", "flags": [], "model": "tiny-llama",
            "quantization": "bf16", "max_num_seqs": 2**(cell % 4), "max_num_batched_tokens": 128 * (1 + cell // 4),
            "device_kind": "cpu", "vllm_version": "0.32.0", "weights_bytes": 61_356_080, **more}  # fmt: skip


def workload(cell: int, repeat: int, **more: Any) -> Values:
    """A workload on that start."""
    return {"run_id": f"p{cell}-r{repeat}", "point_id": f"p{cell}", "workload": "c16", "position": 0, "status": "ok",
            "pattern": "closed_loop", "concurrency": 16, "num_requests": 64, "input_tokens": 128, "output_tokens": 32,
            "flags": [], **more}  # fmt: skip


def write_set(
    root: Path, cells: int, repeats: int, of_workload: Callable[[int, int], Values] = lambda c, r: {},
    of_engine: Callable[[int, int], Values] = lambda c, r: {},
) -> Path:  # fmt: skip
    """A set of `cells` configurations with `repeats` starts each; the callables add measured values."""
    points = [(cell, repeat) for cell in range(cells) for repeat in range(repeats)]
    write(root, "engines", [engine(c, r, **of_engine(c, r)) for c, r in points])
    write(root, "workloads", [workload(c, r, **of_workload(c, r)) for c, r in points])
    return root


def noisy(seed: int, base: float = 1000.0, noise: float = 0.01, planted: dict[int, float] | None = None,
          column: str = "output_tokens_per_s") -> Callable[[int, int], Values]:  # fmt: skip
    """Normal noise around `base`, times `planted[cell]`."""
    rng = np.random.default_rng(seed)

    def values(cell: int, repeat: int) -> Values:
        return {column: float(base * (planted or {}).get(cell, 1.0) * (1 + noise * rng.standard_normal()))}

    return values
