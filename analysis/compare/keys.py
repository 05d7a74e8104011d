"""What makes a configuration: the columns of a cell's identity, and rows grouped by them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

ENGINE = (
    "model",
    "model_source",
    "load_format",
    "quantization",
    "dtype",
    "max_num_batched_tokens",
    "max_num_seqs",
    "max_model_len",
    "kv_pool_mode",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "kv_cache_dtype",
    "block_size",
    "enforce_eager",
    "enable_prefix_caching",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "cpu_offload_gb",
    "extra_args",
    "launcher",
    "colocation",
    "colocation_member",
    "colocation_point_id",
)
"""Settings of an engine start, in the order in which a cell's name tells them."""

WORKLOAD = (
    "pattern",
    "concurrency",
    "rate_per_s",
    "rate_end_per_s",
    "burstiness",
    "trace_file",
    "trace_speed",
    "input_tokens",
    "output_tokens",
    "input_tokens_json",
    "output_tokens_json",
    "shared_prefix_ratio",
    "prefix_groups",
    "num_requests",
    "duration_s",
    "warmup_requests",
    "temperature",
    "top_p",
    "seed",
    "slo_ttft_s",
    "slo_tpot_s",
    "slo_itl_s",
    "slo_e2e_s",
    "knee_axis",
    "colocation_mode",
)
"""Settings of a workload, of any schema version."""

_ALONE = ("colocation", "colocation_member", "colocation_point_id", "colocation_mode")
MISSING_MEANS = {"shared_prefix_ratio": 0.0, **dict.fromkeys(_ALONE, "")}
"""What rows of a schema without the column stand for; null elsewhere."""

OBSERVED = ("model_runner", "attention_backend", "linear_kernels")
"""What the engine chose by itself: no part of a configuration, and often the reason of a change."""

MINOR = ("python_version", "harness_version", "harness_commit", "host_id", "host_kernel", "gpu_uuid", "container")
"""Metadata that is told, but warned of in one line only."""

SHORT = {
    "max_num_batched_tokens": "T",
    "max_num_seqs": "S",
    "max_model_len": "len",
    "tensor_parallel_size": "TP",
    "pipeline_parallel_size": "PP",
    "gpu_memory_utilization": "util",
    "kv_cache_memory_bytes": "pool",
    "kv_cache_dtype": "kv",
    "concurrency": "c",
    "input_tokens": "in",
    "output_tokens": "out",
    "num_requests": "req",
    "block_size": "block",
    "enforce_eager": "eager",
    "enable_prefix_caching": "prefix",
    "rate_per_s": "rate",
    "warmup_requests": "warm-up",
    "trace_file": "trace",
    "shared_prefix_ratio": "shared",
}
"""Prefix of a value in a cell's name."""

BARE = frozenset({"model", "quantization", "dtype", "kv_pool_mode", "pattern", "load_format", "launcher"})
"""Columns whose value says by itself what it is."""


def name_of(key: dict[str, Any], columns: list[str]) -> str:
    """A cell in few words: the values of these columns."""
    parts = []
    for column in columns:
        value = key.get(column)
        if column in BARE:
            parts.append("none" if value is None else str(value))
        elif value is not None:
            parts.append(f"{SHORT.get(column, column)}={_short(column, value)}")
    return " ".join(parts) or "all rows"


def _short(column: str, value: Any) -> str:
    if column.endswith("_bytes") and isinstance(value, (int, float)):
        return f"{value / 2**30:.4g}GiB"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def floats(column: pa.ChunkedArray) -> np.ndarray:
    """A numeric column as float64, null as NaN."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return np.full(len(column), np.nan)
    return pc.fill_null(column.cast(pa.float64(), safe=False), np.nan).to_numpy()


def nulls(column: pa.ChunkedArray) -> np.ndarray:
    """Where a column is null."""
    return column.is_null().to_numpy()


def encode(column: pa.ChunkedArray) -> tuple[np.ndarray, list[Any]]:
    """Codes of a column's values, and the values; null has a code, where there is one. Lists become text."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        # An empty list and a null say the same: no flags, no further arguments.
        column = pc.fill_null(pc.binary_join(column.cast(pa.list_(pa.string())), " "), "")
    if not len(column):
        return np.zeros(0, np.int64), []
    if column.null_count == len(column):
        return np.zeros(len(column), np.int64), [None]
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()


class Codes:
    """Rows grouped by several columns: one integer per row, equal where all of them are equal."""

    def __init__(self, rows: int) -> None:
        import numpy as np

        self.combined = np.zeros(rows, np.int64)
        self._radix = 1

    def add(self, column: pa.ChunkedArray) -> None:
        codes, values = encode(column)
        self.add_codes(codes, len(values))

    def add_codes(self, codes: np.ndarray, distinct: int) -> None:
        """Groups by these codes, 0 .. distinct-1, too."""
        import numpy as np

        if distinct < 2:
            return
        if self._radix * distinct > 2**62:
            values, self.combined = np.unique(self.combined, return_inverse=True)
            self._radix = len(values)
        self.combined = self.combined * distinct + codes
        self._radix *= distinct

    def groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Group of every row, numbered by first appearance of its code, and a first row of every group."""
        import numpy as np

        _, first, group = np.unique(self.combined, return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")
        number = np.empty_like(order)
        number[order] = np.arange(len(order))
        return number[group], first[order]
