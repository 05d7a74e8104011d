"""MXFP4 as gpt-oss ships it: 4-bit floats in blocks of 32 with one shared exponent byte, experts only.

Shapes: vLLM model_executor/layers/quantization/mxfp4.py; padding: fused_moe/oracle/mxfp4.py
(`mxfp4_round_up_hidden_size_and_intermediate_size`).
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
runs on an H100 (the public starts there weigh as much); Triton's kernel, where it is chosen, pads less."""


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """Linear layers stay in the model's dtype: vLLM has no MXFP4 kernel for them."""

    def linear(self, layer: Linear, target: Target) -> Iterator[Tensor]:
        yield from PLAIN.linear(layer, target)

    def experts(self, layer: Experts, target: Target) -> Iterator[Tensor]:
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
