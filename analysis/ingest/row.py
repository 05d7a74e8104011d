"""One log to one row of the engines table."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from analysis import defaults
from analysis.fit.starts import weights_of
from analysis.gpus import Gpu
from analysis.ingest import older
from analysis.rows import ENVIRONMENT

USEFUL = ("weights_bytes", "activation_peak_bytes", "available_kv_cache_bytes", "kv_cache_tokens", "cuda_graph_bytes")
"""A log with none of these says nothing about memory."""

_PREFIX = re.compile(
    r"^[^\[\]]*?(?:DEBUG|INFO|WARNING|ERROR) \d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d+)? *(?:\[[^\]]*\]|[\w.]+:\d+\])? *"
)
"""A line's prefix, whatever a container runtime put before it; until 0.8 vLLM wrote `file.py:12]` without a bracket."""


class UselessLog(ValueError):
    """There is nothing in it to learn; the sentence names the log and says what is missing."""


def row_of(
    name: str, text: str, gpu: Gpu, *, set_name: str, config: Mapping[str, Any] | None, vllm_version: str | None = None
) -> dict[str, Any]:
    """The row of a log.

    Args:
        name: the log's name, for sentences.
        gpu: the device, which no log names.
        config: config.json of the model, or None where it is not known: the row is kept but cannot be fitted to.
        vllm_version: for a log that does not name it.

    Raises:
        UselessLog: no memory figure in it, or no version.
    """
    # Reading logs is the harness' trade; it is imported here so that nothing else of analysis depends on it.
    from bench.engine.logs import clean_lines, parse_log

    facts = parse_log(text)
    told = older.read(_PREFIX.sub("", line.text) for line in clean_lines(text))
    version = vllm_version or told.vllm_version or facts.vllm_version
    row: dict[str, Any] = {
        "weights_bytes": _first(told.weights_bytes, facts.weights_bytes),
        "activation_peak_bytes": _first(told.activation_peak_bytes, facts.activation_peak_bytes),
        "non_torch_bytes": _first(told.non_torch_bytes, facts.non_torch_bytes),
        "available_kv_cache_bytes": _first(told.available_kv_cache_bytes, facts.available_kv_cache_bytes),
        "init_total_bytes": _first(told.init_total_bytes, facts.init_total_bytes),
        "requested_bytes": _first(told.requested_bytes, facts.requested_bytes),
        "kv_cache_blocks": told.kv_cache_blocks,
        "kv_cache_tokens": facts.kv_cache_tokens,
        "total_consumed_bytes": facts.total_consumed_bytes,
        "cuda_graph_bytes": facts.cuda_graph_bytes,
        "cuda_graph_estimate_bytes": facts.cuda_graph_estimate_bytes,
        "init_free_bytes": facts.init_free_bytes,
        "load_s": facts.load_s,
        "profile_s": facts.profile_s,
        "graph_capture_s": facts.graph_capture_s,
        "attention_backend": facts.attention_backend,
        "linear_kernels": facts.linear_kernels or None,
    }
    if all(row[column] is None for column in USEFUL):
        raise UselessLog(f"{name}: no memory figure of vLLM in it (weights, activation, KV cache or CUDA graphs)")
    if version is None:
        raise UselessLog(f"{name}: the vLLM version is not in it; give --vllm-version")
    try:
        known = defaults.parsed(version)
    except ValueError as wrong:
        raise UselessLog(f"{name}: {wrong}") from None
    if known[:2] < defaults.OLDEST:
        raise UselessLog(f"{name}: vLLM {version} is older than 0.8, whose settings are not known here")
    row |= _settings(told, known, gpu, config, facts)
    row |= {
        "set_name": set_name, "model": told.model or "unknown", "model_hub_id": told.model, "model_source": "hub",
        "architecture": told.architecture or (config or {}).get("architectures", [None])[0],
        "model_config_json": json.dumps(config, sort_keys=True) if config else None,
        "launcher": "log", "repeat": 0,
        "model_runner": facts.model_runner or _runner(told, known, config),
        "device_kind": "cuda", "device_name": gpu.title,
        "device_memory_total_bytes": gpu.nvml_bytes, "vllm_version": version,
    }  # fmt: skip
    ready = re.search(r"Application startup complete|init engine \(|Graph capturing finished|Available routes", text)
    row["status"] = "ok" if ready else "failed"
    if not ready:
        row |= {"failure_phase": "unknown", "failure_cause": "log_ends",
                "failure_sentence": "the log ends before the engine was ready"}  # fmt: skip
    if config:
        expected, _ = weights_of(
            config, dtype=row["dtype"], tensor_parallel_size=row["tensor_parallel_size"],
            pipeline_parallel_size=row["pipeline_parallel_size"], vllm_version=version,
        )  # fmt: skip
        if expected and row["weights_bytes"]:
            row |= {"expected_weights_bytes": int(expected), "weights_error": row["weights_bytes"] / expected - 1.0}
    row["memory_sources_json"] = json.dumps({column: "log" for column in USEFUL if row[column] is not None})
    return row | _identity(row, text)


def _settings(
    told: older.Told, version: defaults.Version, gpu: Gpu, config: Mapping[str, Any] | None, facts: Any
) -> dict[str, Any]:
    """The settings in force: from the log, and where it is silent, that version's default for this GPU."""
    given = told.settings
    length = given.get("max_model_len")
    assumed = [name for name in ("max_num_seqs", "max_num_batched_tokens") if name not in given]
    if facts.gpu_memory_utilization is not None:
        given.setdefault("gpu_memory_utilization", facts.gpu_memory_utilization)
    if told.engine == "v0":  # config.py: SchedulerConfig; a prompt is one step unless prefill is chunked
        tokens = given.get("max_num_batched_tokens") or max(length or 2048, 2048)
        batch = defaults.Batch(given.get("max_num_seqs") or 256, tokens)
    else:
        batch = defaults.resolve_batch(
            version, defaults.batch_defaults(version, gpu.nvml_bytes, gpu.title), given.get("max_num_seqs"),
            given.get("max_num_batched_tokens"), length or 2048,
        )  # fmt: skip
    eager = bool(given.get("enforce_eager", False))
    mode = "NONE" if eager else given.get("cudagraph_mode") or defaults.cudagraph_mode(version)
    if told.engine == "v0":
        mode = "NONE" if eager else "FULL"  # one whole graph per decode batch
    sizes = given.get("cudagraph_capture_sizes")
    if sizes is None:
        sizes = [] if eager else list(defaults.capture_sizes(version, batch))
    effective = {
        "max_num_seqs": batch.max_num_seqs, "max_num_batched_tokens": batch.max_num_batched_tokens,
        "max_model_len": length, "dtype": given.get("dtype"), "quantization": given.get("quantization"),
        "enforce_eager": eager, "cudagraph_mode": mode, "cudagraph_capture_sizes": sizes,
        "tensor_parallel_size": given.get("tensor_parallel_size", 1),
        "pipeline_parallel_size": given.get("pipeline_parallel_size", 1),
    }  # fmt: skip
    fixed = facts.kv_cache_fixed_bytes or given.get("kv_cache_memory_bytes")
    return {
        "max_num_seqs": given.get("max_num_seqs"), "max_num_batched_tokens": given.get("max_num_batched_tokens"),
        "max_model_len": length, "gpu_memory_utilization": given.get("gpu_memory_utilization"),
        "dtype": given.get("dtype"), "quantization": given.get("quantization") or "none", "enforce_eager": eager,
        "kv_cache_dtype": given.get("kv_cache_dtype"), "kv_pool_mode": "fixed" if fixed else "auto",
        "kv_cache_memory_bytes": int(fixed) if fixed else None,
        "block_size": given.get("block_size") if isinstance(given.get("block_size"), int) else None,
        "tensor_parallel_size": effective["tensor_parallel_size"],
        "pipeline_parallel_size": effective["pipeline_parallel_size"],
        "effective_max_num_seqs": batch.max_num_seqs, "effective_max_num_batched_tokens": batch.max_num_batched_tokens,
        "effective_max_model_len": length,
        "effective_config_json": json.dumps(effective, sort_keys=True),
        "flags": ["settings_assumed"] if assumed else [],
        "warnings": [f"{' and '.join(assumed)} not in the log: the default of vLLM {'.'.join(map(str, version))}"]
        if assumed else [],
    }  # fmt: skip


def _runner(told: older.Told, version: defaults.Version, config: Mapping[str, Any] | None) -> str:
    if told.engine == "v0":
        return "v0"
    architecture = told.architecture or str((config or {}).get("architectures", ["unknown"])[0])
    mixture = any((config or {}).get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts"))
    return defaults.model_runner(version, architecture, mixture=mixture, quantized="quantization" in told.settings)


def _identity(row: Mapping[str, Any], text: str) -> dict[str, str]:
    """Ids from the content: the same log read twice is the same row."""

    def short(content: Any, digits: int) -> str:
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:digits]

    point = {name: row.get(name) for name in ("model", "quantization", "effective_config_json", "kv_pool_mode",
                                               "gpu_memory_utilization", "kv_cache_dtype")}  # fmt: skip
    return {
        "run_id": f"log-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:16]}",
        "point_id": short(point, 16),
        "environment_id": short({name: row.get(name) for name in ENVIRONMENT}, 12),
    }


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
