"""Was the model that was asked for the one that was loaded? Its bytes tell.

vLLM can build a plain 16-bit model where a quantized one was asked for, without a word (GPTQ with dummy
weights before 0.32). Loaded weight bytes are compared with the prediction, and with that of the same model
unquantized.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis.arithmetic.schemes import Platform
from analysis.arithmetic.weights import FROM_CONFIG, weight_bytes

GIB = 1024**3
TOLERANCE = 0.02
"""Repacking kernels keep a weight's size, but add padding, workspaces and copies of scales: at most 0.75 %
over public H100 starts with vLLM 0.19 (4-bit Marlin, the worst). 2 % is well above that and far below any
wrong format."""


@dataclass(frozen=True, slots=True)
class ExpectedLoad:
    """Bytes that one rank should hold, and what it would hold with no quantization.

    `tolerance` is the relative error up to which a measurement counts as this one: 2 %, or half of the
    distance to the unquantized model where that is less.
    """

    bytes: int
    unquantized_bytes: int
    tolerance: float
    label: str


@dataclass(frozen=True, slots=True)
class LoadedCheck:
    """`relative_error` is measured / expected - 1; `sentence` is for people."""

    ok: bool
    relative_error: float
    sentence: str


def expected_loaded_bytes(
    config: Mapping[str, Any],
    *,
    platform: Platform = "cuda",
    quantization_config: Mapping[str, Any] | None = FROM_CONFIG,
    **options: Any,
) -> ExpectedLoad:
    """What the engine should report for one rank.

    Args:
        platform: `cuda` for vLLM's model_memory_usage, which the allocator rounds; `cpu` for the sum over the
        storages
            of the model's parameters and buffers, before any kernel repacks them, which is exact.
        options: as in `weight_tensors`.
    """
    block = config.get("quantization_config") if quantization_config is FROM_CONFIG else quantization_config
    wanted = weight_bytes(config, quantization_config=block, platform=platform, **options)
    plain = weight_bytes(config, quantization_config=None, platform=platform, **options)
    rounded = platform == "cuda"
    size = wanted.allocator_rounded if rounded else wanted.total
    other = plain.allocator_rounded if rounded else plain.total
    tolerance = min(TOLERANCE, abs(other - size) / size / 2) if block else TOLERANCE
    label = str(block.get("quant_method")) if block else "unquantized"
    return ExpectedLoad(size, other, tolerance, label)


def check_loaded(measured_bytes: int, expected: ExpectedLoad) -> LoadedCheck:
    """Compare a rank's loaded weights with the expectation."""
    error = measured_bytes / expected.bytes - 1
    ok = abs(error) <= expected.tolerance
    figures = f"{_gib(measured_bytes)} loaded, {_gib(expected.bytes)} expected ({error:+.2%})"
    if ok:
        return LoadedCheck(True, error, f"the weights are {expected.label} as asked: {figures}")
    quantized = expected.unquantized_bytes != expected.bytes
    if quantized and abs(measured_bytes / expected.unquantized_bytes - 1) <= TOLERANCE:
        return LoadedCheck(
            False,
            error,
            f"{expected.label} was not applied, the weights are those of the unquantized model: {figures}",
        )
    return LoadedCheck(
        False,
        error,
        f"the weights are not {expected.label} as asked (tolerance {expected.tolerance:.2%}): {figures}",
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB // 10 else f"{size / 1024**2:.1f} MiB"
