"""MXFP4 as gpt-oss ships it: 4-bit floats in blocks of 32 with one shared exponent byte, experts only.

Shapes: vLLM model_executor/layers/quantization/mxfp4.py; padding: fused_moe/oracle/mxfp4.py
(`mxfp4_round_up_hidden_size_and_intermediate_size`). vLLM 0.19 on an H100 runs gpt-oss on Triton's kernel instead:
utils/mxfp4_utils.py (`_swizzle_mxfp4`) and third_party/triton_kernels/tensor_details/layout_details/hopper_*.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from analysis.arithmetic.layout import Experts, Linear
from analysis.arithmetic.schemes.base import PLAIN, Target, on
from analysis.arithmetic.tensor import Tensor

BLOCK = 32
_PADDING = {"cuda": (256, 128), "cpu": (32, 32)}
"""Multiples that the kernel wants of the hidden and of the intermediate size: Marlin's on CUDA, which is what vLLM
without `triton_kernels` (a pretended H100) chooses."""
WITHOUT_TRITON_LAYOUT = (0, 20)
"""Up to 0.19 the CUDA layout is that of the Triton kernel, read in 0.19.0 and seen in its H100 starts. Later CUDA
wheels were not measured; 0.32 frees the scales that 0.19 keeps."""


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """Linear layers stay in the model's dtype: vLLM has no MXFP4 kernel for them."""

    def linear(self, layer: Linear, target: Target) -> Iterator[Tensor]:
        yield from PLAIN.linear(layer, target)

    def experts(self, layer: Experts, target: Target) -> Iterator[Tensor]:
        if target.platform == "cuda" and layer.biases and target.vllm_version < WITHOUT_TRITON_LAYOUT:
            yield from _triton_hopper(layer)
            return
        by_hidden, by_inner = _PADDING[target.platform]
        count, hidden, inner = layer.count, _up(layer.hidden_size, by_hidden), _up(layer.rank_intermediate, by_inner)
        yield on(layer, "w13_weight", (count, 2 * inner, hidden // 2), "uint8")
        yield on(layer, "w13_weight_scale", (count, 2 * inner, hidden // BLOCK), "uint8")
        yield on(layer, "w2_weight", (count, hidden, inner // 2), "uint8")
        yield on(layer, "w2_weight_scale", (count, hidden, inner // BLOCK), "uint8")
        if layer.biases:
            yield on(layer, "w13_bias", (count, 2 * inner), "bfloat16")
            yield on(layer, "w2_bias", (count, hidden), "bfloat16")

    def matrix(self, name: str, rows: int, columns: int, dtype: str) -> Iterator[Tensor]:
        yield from PLAIN.matrix(name, rows, columns, dtype)

    def stack(self, name: str, count: int, rows: int, columns: int, dtype: str) -> Iterator[Tensor]:
        yield Tensor(f"{name}_blocks", (count, rows, columns // BLOCK, BLOCK // 2), "uint8")
        yield Tensor(f"{name}_scales", (count, rows, columns // BLOCK), "uint8")


def _triton_hopper(layer: Experts) -> Iterator[Tensor]:
    """Values padded to 64 bytes by 64 rows, scales to 256 rows by 2; the scales as created stay beside those."""
    count, hidden, inner = layer.count, layer.hidden_size, _up(layer.rank_intermediate, 64)
    for name, rows, columns in (("w13", 2 * inner, hidden), ("w2", hidden, inner)):
        yield on(layer, f"{name}_weight_scale", (count, rows, columns // BLOCK), "uint8")
        yield on(layer, f"{name}_weight", (count, _up(columns // 2, 64), _up(rows, 64)), "uint8")
        yield on(layer, f"{name}_swizzled_scale", (count, _up(columns // BLOCK, 2), _up(rows, 256)), "uint8")
        yield on(layer, f"{name}_bias", (count, rows), "float32")
