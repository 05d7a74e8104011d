"""Element types: their names as torch and config.json spell them, and their sizes in bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.arithmetic.errors import MalformedConfig
from analysis.arithmetic.fields import Fields

SIZE_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip
_ALIASES = {"half": "float16", "fp16": "float16", "bf16": "bfloat16", "float": "float32", "fp32": "float32"}
MODEL_DTYPES = ("float32", "bfloat16", "float16")

# vLLM's --kv-cache-dtype; `auto` follows the model's dtype.
_KV_SIZE_BYTES = {
    "bfloat16": 2, "float16": 2, "float32": 4,
    "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "fp8_inc": 1, "fp8_ds_mla": 1, "int8": 1,
}  # fmt: skip


def canonical(name: str) -> str:
    """`torch.bfloat16`, `bf16` and `bfloat16` are one dtype. Raises MalformedConfig on an unknown name."""
    short = name.removeprefix("torch.").lower()
    short = _ALIASES.get(short, short)
    if short not in SIZE_BYTES:
        raise MalformedConfig("dtype", f"is {name!r}, which is none of {', '.join(SIZE_BYTES)}")
    return short


def model_dtype(config: Mapping[str, Any], dtype: str | None = None) -> str:
    """The dtype of everything that is not quantized, as vLLM resolves `--dtype`.

    `auto` (or None) takes `torch_dtype`/`dtype` of config.json, and turns float32 into bfloat16 as vLLM does
    (config/model.py: `_resolve_auto_dtype`); float32 has to be asked for.
    """
    fields = Fields(config).config
    inner = fields.get("text_config")
    text = inner if isinstance(inner, Mapping) else {}
    if dtype is None or dtype == "auto":
        declared = next(
            (block[name] for block in (fields, text) for name in ("torch_dtype", "dtype") if block.get(name)), "float32"
        )
        if not isinstance(declared, str):
            raise MalformedConfig("torch_dtype", f"is {declared!r}, not the name of a dtype")
        resolved = canonical(declared)
        resolved = "bfloat16" if resolved == "float32" else resolved
    else:
        resolved = canonical(dtype)
    if resolved not in MODEL_DTYPES:
        raise MalformedConfig(
            "torch_dtype", f"is {resolved}, which no model runs in ({', '.join(MODEL_DTYPES)})"
        )
    return resolved


def kv_size_bytes(kv_dtype: str, model: str) -> int:
    """Bytes per element of the KV cache for vLLM's `--kv-cache-dtype`."""
    if kv_dtype == "auto":
        return SIZE_BYTES[model]
    short = kv_dtype.removeprefix("torch.").lower()
    short = _ALIASES.get(short, short)
    if short not in _KV_SIZE_BYTES:
        raise MalformedConfig(
            "kv_cache_dtype", f"is {kv_dtype!r}, which is none of auto, {', '.join(_KV_SIZE_BYTES)}"
        )
    return _KV_SIZE_BYTES[short]
