"""What the arithmetic says of a request before it is launched, and of the engine once it has loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from analysis.arithmetic import (
    ArithmeticRefusal,
    ExpectedLoad,
    check_loaded,
    expected_loaded_bytes,
    kv_bytes_per_block,
    kv_bytes_per_token,
)
from bench.engine.memory import MemoryTerms
from bench.request import Request

_CUDA_DEFAULT_UTILIZATION = 0.92
"""vLLM's --gpu-memory-utilization where none is given (0.25 to 0.33)."""


@dataclass(frozen=True)
class Check:
    """Columns about the loaded model. `sentence` is set where it is not the one that was asked for; `warnings` say,
    under a row flag each, what else differs from the arithmetic."""

    columns: dict[str, Any] = field(default_factory=dict)
    sentence: str = ""
    warnings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Expectation:
    """`load` and `kv_bytes_per_token` are None for a model that the arithmetic does not know; `note` says so.
    `cannot_fit` is a sentence where the request cannot fit whatever vLLM does, else empty."""

    load: ExpectedLoad | None
    kv_bytes_per_token: int | None
    kv_bytes_per_block: Callable[[int], int] | None = None
    """Bytes of one KV block of so many tokens; hybrids group their layers, so this is no multiple of the above."""
    cannot_fit: str = ""
    shortfall_bytes: int | None = None
    """What is missing at least, where it cannot fit."""
    note: str = ""

    def columns(self) -> dict[str, Any]:
        """Columns known before the launch."""
        return {
            "expected_weights_bytes": self.load.bytes if self.load else None,
            "expected_kv_bytes_per_token": self.kv_bytes_per_token,
        }

    def check(self, terms: MemoryTerms) -> Check:
        """Compare what the engine holds with what config.json implies."""
        warnings = {}
        if kv := self._kv_difference(terms):
            warnings["kv_unexpected"] = kv
        measured = terms.weights_tensor_bytes or terms.weights_bytes
        if self.load is None or measured is None:
            return Check(warnings=warnings)
        found = check_loaded(measured, self.load)
        columns = {"weights_error": found.relative_error, "quantization_applied": found.ok}
        if found.ok:
            return Check(columns, warnings=warnings)
        # The trap this guards against is a plain model under a quantized name. Bytes that are neither are a row to
        # look at: a kernel's workspace, or a term that the arithmetic does not know yet.
        plain = self.load.unquantized_bytes
        if plain != self.load.bytes and abs(measured / plain - 1) < abs(found.relative_error):
            return Check(columns, found.sentence, warnings)
        return Check(columns, warnings=warnings | {"weights_unexpected": found.sentence})

    def _kv_difference(self, terms: MemoryTerms) -> str:
        per_block, block = terms.kv_bytes_per_block, terms.kv_block_size_tokens
        if not (self.kv_bytes_per_block and per_block and block):
            return ""
        expected = self.kv_bytes_per_block(block)
        if per_block == expected:
            return ""
        return f"a KV block of {block} tokens holds {per_block} bytes, {expected} expected"


def expect(request: Request, environment: dict[str, Any]) -> Expectation:
    """Weights and KV bytes a token of one rank, and whether the device could hold them at all."""
    cfg, config = request.cfg, request.source.config
    tp, pp = cfg.engine.tensor_parallel_size, cfg.engine.pipeline_parallel_size
    dtype = None if cfg.quantization.dtype == "auto" else cfg.quantization.dtype
    try:
        load = expected_loaded_bytes(
            config,
            # Both kinds of engine report the plain sum of tensors through the probe; the allocator's figure is
            # another column.
            platform="cpu",
            dtype=dtype,
            tensor_parallel_size=tp,
            pipeline_parallel_size=pp,
            max_model_len=cfg.engine.max_model_len,
            vllm_version=str(environment["vllm_version"]),
        )
        kv = {"kv_dtype": cfg.engine.kv_cache_dtype, "tensor_parallel_size": tp, "pipeline_parallel_size": pp}
        per_token = kv_bytes_per_token(config, dtype=dtype, **kv)
    except ArithmeticRefusal as refusal:
        return Expectation(None, None, note=f"not checked against the arithmetic: {refusal}")
    per_block = partial(kv_bytes_per_block, config, dtype=dtype, **kv)
    return Expectation(load, per_token, per_block, *_cannot_fit(request, environment, load, per_token))


def _cannot_fit(
    request: Request, environment: dict[str, Any], load: ExpectedLoad, per_token: int
) -> tuple[str, int | None]:
    """Why not, and what is missing. Certainties only: what is merely tight is worth an engine start, because its
    failure is data."""
    total = environment.get("device_memory_total_bytes")
    engine = request.cfg.engine
    if total is None or engine.cpu_offload_gb:
        return "", None
    weights = load.bytes
    if engine.kv_cache_memory_bytes is not None:
        needed, of = weights + engine.kv_cache_memory_bytes, total
        what = f"weights {_gib(weights)} and the KV pool {_gib(engine.kv_cache_memory_bytes)}"
    else:
        one_request = per_token * (engine.max_model_len or 1)
        share = engine.gpu_memory_utilization or _CUDA_DEFAULT_UTILIZATION
        needed, of = weights + one_request, int(total * share)
        what = f"weights {_gib(weights)} and the KV cache of one request {_gib(one_request)}"
    if needed <= of:
        return "", None
    return f"{what} need {_gib(needed)} of {_gib(of)}, before activations", needed - of


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
