"""Result sets made by hand, in the schema, for the report to read. None of their figures was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

GIB = 2**30
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": True, "head_dim": 64,
}  # fmt: skip


def gpu_row(number: int = 0, **changes: Any) -> dict[str, Any]:
    """An engine start on a GPU as the harness would write it."""
    tokens, seqs = (2048, 4096)[number % 2], (64, 128, 256)[number // 2 % 3]
    return {
        "run_id": f"run{number:04d}", "point_id": f"point{number:04d}", "environment_id": "one", "set_name": "made-up",
        "repeat": 0, "started_unix_s": 1.767e9 + number, "status": "ok", "model": "llama-3.2-1b",
        "quantization": "bf16",
        "flags": [], "warnings": [], "model_config_json": json.dumps(CONFIG), "dtype": "bfloat16",
        "kv_pool_mode": "auto", "max_num_seqs": seqs, "max_num_batched_tokens": tokens, "max_model_len": 8192,
        "effective_max_num_seqs": seqs, "effective_max_num_batched_tokens": tokens, "effective_max_model_len": 8192,
        "gpu_memory_utilization": 0.9, "enforce_eager": True, "tensor_parallel_size": 1, "pipeline_parallel_size": 1,
        "weights_bytes": 2_471_645_184, "expected_weights_bytes": 2_471_645_184, "activation_peak_bytes": GIB + number,
        "non_torch_bytes": GIB // 4, "kv_cache_bytes": 66 * GIB, "available_kv_cache_bytes": 66 * GIB,
        "kv_cache_tokens": 2_000_000, "requested_bytes": 71 * GIB, "init_total_bytes": int(79.19 * GIB),
        "init_free_bytes": int(78.6 * GIB), "device_memory_baseline_bytes": 0, "device_memory_peak_bytes": 72 * GIB,
        "device_kind": "cuda", "device_name": "NVIDIA H100 80GB HBM3", "device_memory_total_bytes": 81559 * 2**20,
        "vllm_version": "0.32.0", "model_runner": "v1",
    } | changes  # fmt: skip


def load_row(run_id: str, point_id: str, **changes: Any) -> dict[str, Any]:
    """A workload on it."""
    return {
        "run_id": run_id, "point_id": point_id, "workload": "c8", "position": 0, "pattern": "closed_loop",
        "concurrency": 8, "num_requests": 64, "input_tokens": 512, "output_tokens": 64, "status": "ok",
        "completed": 64, "failed": 0, "flags": [], "output_tokens_per_s": 900.0, "ttft_p50_s": 0.1,
        "tpot_p50_s": 0.01,
    } | changes  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """Writes a set, one file per row, and gives its folder."""

    def write(name: str = "made-up", engines: list[dict[str, Any]] | None = None,
              workloads: list[dict[str, Any]] | None = None, version: int = 2) -> Path:  # fmt: skip
        root = tmp_path / name
        for table, rows in (("engines", engines or []), ("workloads", workloads or [])):
            (root / table).mkdir(parents=True, exist_ok=True)
            for number, row in enumerate(rows):
                whole = pa.Table.from_pylist([row])
                meta = {"table": table, "schema_version": str(version)}
                pq.write_table(whole.replace_schema_metadata(meta), root / table / f"{number:05d}.parquet")
        return root

    return write
