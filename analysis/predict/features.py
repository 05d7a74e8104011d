"""What drives the fitted memory terms, from a config.json and the settings an engine resolved.

The fit reads it from rows of a result set (`features_of_row`), a prediction from resolved settings (`features_of`):
both sides of a calibration therefore count layers, experts and CUDA graphs in one way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from analysis.arithmetic.dtypes import SIZE_BYTES, model_dtype
from analysis.arithmetic.errors import MalformedConfig
from analysis.arithmetic.fields import Fields, head_dim
from analysis.arithmetic.parallel import Shard
from analysis.estimate import Features

_METHODS = {
    "awq_marlin": "awq", "auto_awq": "awq", "gptq_marlin": "gptq", "auto_gptq": "gptq", "gptq_bitblas": "gptq",
}  # fmt: skip
"""One checkpoint format, by the names its kernels had in different versions of vLLM."""

_FULL_AND_PIECEWISE = "FULL_AND_PIECEWISE"


def features_of(config: Mapping[str, Any], settings: Mapping[str, Any]) -> Features:
    """Features of one rank.

    Args:
        config: the content of config.json; of a multimodal model, its `text_config` counts.
        settings: resolved settings: `max_num_seqs`, `max_num_batched_tokens`, `max_model_len`, and where they differ
            from one rank, compiled, in config.json's dtype: `tensor_parallel_size`, `pipeline_parallel_size`,
            `pipeline_rank`, `enforce_eager`, `cudagraph_mode`, `cudagraph_capture_sizes`, `dtype`, `quantization`.

    Raises:
        MalformedConfig, UnsupportedPartition: naming the field. KeyError: one of the three settings is absent.
    """
    text = text_config(config)
    fields = Fields(text)
    heads = fields.integer("num_attention_heads")
    shard = Shard(
        settings.get("tensor_parallel_size") or 1,
        settings.get("pipeline_parallel_size") or 1,
        settings.get("pipeline_rank") or 0,
    )
    eager = bool(settings.get("enforce_eager"))
    mode = str(settings.get("cudagraph_mode") or _FULL_AND_PIECEWISE).rpartition(".")[2].upper()
    sizes = [] if eager or mode == "NONE" else list(settings.get("cudagraph_capture_sizes") or ())
    return Features(
        architecture=_architecture(config),
        hidden_size=fields.integer("hidden_size"),
        intermediate_size=intermediate_size(fields),
        layers=len(shard.layers(fields.integer("num_hidden_layers"))),
        attention_heads=heads,
        kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=_head_dim(fields),
        vocab_size=fields.integer("vocab_size"),
        experts=experts(fields),
        tensor_parallel_size=shard.tensor_parallel_size,
        pipeline_parallel_size=shard.pipeline_parallel_size,
        max_num_seqs=int(settings["max_num_seqs"]),
        max_num_batched_tokens=int(settings["max_num_batched_tokens"]),
        max_model_len=int(settings["max_model_len"]),
        enforce_eager=eager,
        graph_count=graph_count(mode, sizes, int(settings["max_num_seqs"])),
        graph_max_size=max(sizes, default=0),
        dtype_bytes=SIZE_BYTES[model_dtype(dtype_source(config), settings.get("dtype"))],
        quantization=quantization_method(config, settings.get("quantization")),
    )


def features_of_row(row: Mapping[str, Any]) -> Features:
    """Features of a row of a result set's `engines` table.

    What the engine resolved (`effective_config_json`) comes before what was requested. Raises KeyError naming the
    setting where a row has neither, as rows of engines that died early do.
    """
    config = json.loads(row["model_config_json"])
    effective = json.loads(row.get("effective_config_json") or "{}")
    settings = {name: row.get(name) for name in ("tensor_parallel_size", "pipeline_parallel_size", "enforce_eager")}
    settings["dtype"] = row.get("dtype")
    for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len"):
        settings[name] = row.get(f"effective_{name}") or row.get(name)
    for name, value in effective.items():
        if value is not None:
            settings[name] = value
    for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len"):
        if settings.get(name) is None:
            raise KeyError(f"{name} of run {row.get('run_id')}")
    return features_of(config, settings)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's own config: `text_config` of a multimodal model, else the whole file."""
    nested = config.get("text_config") if isinstance(config, Mapping) else None
    return nested if isinstance(nested, Mapping) and "hidden_size" in nested else config


def dtype_source(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where the dtype stands: multimodal files carry it outside or inside `text_config`."""
    if config.get("torch_dtype") or config.get("dtype"):
        return config
    return text_config(config)


def experts(fields: Fields) -> int:
    """Routed experts of a mixture; 0 for a dense model."""
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if fields.config.get(name) is not None:
            return fields.integer(name, at_least=0)
    return 0


def intermediate_size(fields: Fields) -> int:
    """Dense MLP width, or the width of all experts that one token passes, the shared ones included."""
    if not experts(fields):
        return fields.integer("intermediate_size")
    width = fields.integer("moe_intermediate_size", fields.config.get("intermediate_size") or 0)
    for name in ("num_experts_per_tok", "experts_per_token", "moe_topk"):
        if fields.config.get(name) is not None:
            taken = width * fields.integer(name)
            break
    else:
        raise MalformedConfig("num_experts_per_tok", "is missing")
    shared = fields.integer("shared_expert_intermediate_size", 0, at_least=0)
    return taken + (shared or width * fields.integer("n_shared_experts", 0, at_least=0))


def graph_count(mode: str, sizes: Sequence[int], max_num_seqs: int) -> int:
    """Graphs captured in a cudagraph mode: one per size for mixed batches, one per size that decoding can reach.

    Full decode graphs exist for batches of at most max_num_seqs sequences (v1/worker/gpu_model_runner.py:
    `_capture_cudagraphs`, cudagraph_dispatcher.py: `initialize_cudagraph_keys`). The public H100 set has 51 + 51.
    """
    decode = sum(size <= max_num_seqs for size in sizes)
    return {
        "NONE": 0, "PIECEWISE": len(sizes), "FULL": len(sizes), "FULL_DECODE_ONLY": decode,
        _FULL_AND_PIECEWISE: len(sizes) + decode,
    }.get(mode, len(sizes) + decode)  # fmt: skip


def quantization_method(config: Mapping[str, Any], named: object = None) -> str:
    """`none`, or the checkpoint format; a setting that vLLM resolved comes before config.json's block."""
    block = config.get("quantization_config")
    method = named or (block.get("quant_method") if isinstance(block, Mapping) else None) or "none"
    return _METHODS.get(str(method), str(method))


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    if not isinstance(named, Iterable) or isinstance(named, str) or not list(named):
        raise MalformedConfig("architectures", "is missing" if not named else f"is {named!r}, not a list")
    return str(next(iter(named)))


def _head_dim(fields: Fields) -> int:
    if fields.config.get("qk_nope_head_dim") is not None:  # MLA: queries and keys are nope + rope wide
        return fields.integer("qk_nope_head_dim") + fields.integer("qk_rope_head_dim", at_least=0)
    return head_dim(fields)
