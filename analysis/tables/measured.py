"""Figures that rows of result sets give: GPU rows of one device and one vLLM release, nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis import gpus, rows
from analysis.rows import Row, RowsError

RESULTS = Path("results")
SIXTEEN_BIT = ("bf16", "fp16")
"""Formats of one size: rows of either stand for both."""

COLUMNS = (
    "run_id", "point_id", "colocation_id", "environment_id", "repeat", "started_unix_s", "status", "model",
    "quantization",
    "kv_pool_mode", "max_model_len", "effective_max_model_len", "effective_max_num_seqs", "gpu_memory_utilization",
    "effective_max_num_batched_tokens", "kv_cache_dtype", "enforce_eager", "tensor_parallel_size", "extra_args",
    "pipeline_parallel_size", "cpu_offload_gb", "quantization_applied", "weights_bytes", "activation_peak_bytes",
    "non_torch_bytes", "total_consumed_bytes", "cuda_graph_estimate_bytes", "cuda_graph_bytes",
    "available_kv_cache_bytes", "kv_bytes_per_block", "kv_block_size_tokens", "runtime_activation_peak_bytes",
    "init_free_bytes", "init_total_bytes", "device_memory_baseline_bytes", *rows.ENVIRONMENT,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes read from rows: the median, the least and the most, and the engine starts behind them."""

    value: float
    low: float
    high: float
    run_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two starts that differ in one setting: what each of them measured, bytes."""

    model: str
    quantization: str
    before: float
    after: float
    run_ids: tuple[str, ...]

    @property
    def change(self) -> float:
        """Share by which the second differs from the first."""
        return self.after / self.before - 1


def find_set(name: str) -> Path:
    """Folder of a result set: a path, or a name in results/. Raises RowsError."""
    for folder in (Path(name), RESULTS / name):
        if folder.is_dir():
            return folder
    raise RowsError(f"there is no result set {name!r}: neither a folder of that path nor {RESULTS / name}")


class Measured:
    """The rows that may stand in a table for `gpu` and `vllm_version`; `notes` says which were left aside and why."""

    def __init__(self, found: Iterable[Row], gpu: str, vllm_version: str, *, pool: bool = False) -> None:
        """Raises RowsError where usable rows come from several environments and `pool` is false."""
        aside: dict[str, int] = {}
        self.rows: list[Row] = []
        for row in rows.newest(found):
            if reason := _unusable(row, gpu, vllm_version):
                aside[reason] = aside.get(reason, 0) + 1
            else:
                self.rows.append(row)
        self.notes = [f"left aside: {reason} (rows: {count})" for reason, count in sorted(aside.items())]
        try:
            self.notes += rows.one_environment(self.rows, pool)
        except RowsError as several:
            raise RowsError(f"{several}; name the sets of one environment, or give --pool") from None

    @classmethod
    def read(cls, sets: Sequence[str], gpu: str, vllm_version: str, *, pool: bool = False) -> Measured:
        """Rows of the named sets. Raises RowsError with one sentence."""
        found = [row for name in sets for row in rows.read_table(find_set(name), columns=COLUMNS)]
        return cls(found, gpu, vllm_version, pool=pool)

    def weights(self, model: str, quantization: str) -> Reading | None:
        """Weights as the engine counts them; no setting changes them."""
        return self._reading(self._of(model, quantization), lambda row: row.get("weights_bytes"))

    def kv_bytes_per_token(self, model: str, quantization: str) -> Reading | None:
        """Bytes of a block over its tokens, with a KV cache of the model's own type."""
        of_model = [row for row in self._of(model, quantization) if row.get("kv_cache_dtype") in (None, "auto")]
        return self._reading(of_model, _kv_per_token)

    def term(
        self, term: str, model: str, quantization: str, max_num_seqs: int, max_num_batched_tokens: int
    ) -> Reading | None:
        """A memory term (`analysis.estimate.TERMS`) at these settings, with CUDA graphs."""
        from analysis.fit.starts import measured_on_gpu

        wanted = (max_num_seqs, max_num_batched_tokens)
        of_setting = [
            row for row in self._of(model, quantization)
            if (row.get("effective_max_num_seqs"), row.get("effective_max_num_batched_tokens")) == wanted
            and not row.get("enforce_eager") and row.get("kv_cache_dtype") in (None, "auto")
        ]  # fmt: skip
        return self._reading(of_setting, lambda row: measured_on_gpu(row).get(term))

    def pairs(self, setting: str, before: int, after: int) -> list[Pair]:
        """KV pools of auto-sized starts that agree in everything but one setting, in order of model and format."""
        names = [
            "model", "quantization", "effective_max_num_seqs", "effective_max_num_batched_tokens", "enforce_eager",
            "effective_max_model_len", "kv_cache_dtype", "gpu_memory_utilization", "extra_args", "environment_id",
        ]  # fmt: skip
        others = [name for name in names if name != setting]
        groups: dict[str, dict[Any, list[Row]]] = {}
        for row in self.rows:
            if row.get("kv_pool_mode") == "auto" and row.get("available_kv_cache_bytes"):
                key = repr([row.get(name) for name in others])
                groups.setdefault(key, {}).setdefault(row.get(setting), []).append(row)
        found = []
        for _, by_value in sorted(groups.items()):
            if before in by_value and after in by_value:
                both = [by_value[before], by_value[after]]
                medians = [statistics.median(row["available_kv_cache_bytes"] for row in some) for some in both]
                ids = tuple(sorted(str(row.get("run_id")) for some in both for row in some))
                first = both[0][0]
                found.append(Pair(str(first["model"]), str(first["quantization"]), medians[0], medians[1], ids))
        return found

    def _of(self, model: str, quantization: str) -> list[Row]:
        same = SIXTEEN_BIT if quantization in SIXTEEN_BIT else (quantization,)
        return [row for row in self.rows if row.get("model") == model and row.get("quantization") in same]

    @staticmethod
    def _reading(found: Iterable[Row], of: Callable[[Row], float | None]) -> Reading | None:
        values = [(float(value), str(row.get("run_id"))) for row in found if (value := of(row)) is not None]
        if not values:
            return None
        sizes = [size for size, _ in values]
        return Reading(statistics.median(sizes), min(sizes), max(sizes), tuple(sorted(name for _, name in values)))


def _kv_per_token(row: Mapping[str, Any]) -> float | None:
    block, tokens = row.get("kv_bytes_per_block"), row.get("kv_block_size_tokens")
    return block / tokens if block and tokens else None


def _unusable(row: Row, gpu: str, vllm_version: str) -> str | None:
    """Why a row may not stand in the table, in words."""
    if row.get("status") not in rows.STARTED:
        return "the engine did not start"
    if row.get("colocation_id") is not None:
        return "other engines ran on the device at once"
    if row.get("device_kind") != "cuda":
        return "not measured on a GPU"
    device = gpus.of_device(row.get("device_name"), row.get("device_memory_total_bytes"))
    if device != gpu:
        return f"measured on {device}, not {gpu}"
    version = str(row.get("vllm_version") or "unknown").split("+")[0]
    if version != vllm_version.split("+")[0]:
        return f"vLLM {version}, not {vllm_version}"
    if (row.get("tensor_parallel_size") or 1) > 1 or (row.get("pipeline_parallel_size") or 1) > 1:
        return "more than one GPU"
    if row.get("cpu_offload_gb"):
        return "weights offloaded to the host"
    if row.get("quantization_applied") is False:
        return "the weight format was not applied"
    return None
