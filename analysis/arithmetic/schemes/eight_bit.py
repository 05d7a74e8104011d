"""One byte per weight with float32 scales: INT8 W8A8 and FP8 in their granularities.

Shapes: vLLM model_executor/layers/quantization: fp8.py, utils/fp8_utils.py and
compressed_tensors/schemes/compressed_tensors_w8a8_{int8,fp8}.py with their MoE counterparts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import Literal

from analysis.arithmetic.errors import UnsupportedPartition, UnsupportedQuantization
from analysis.arithmetic.layout import Experts, Linear
from analysis.arithmetic.schemes.base import Target, on
from analysis.arithmetic.tensor import Tensor

Granularity = Literal["tensor", "channel", "block"]


def _ceil_div(value: int, by: int) -> int:
    return -(-value // by)


@dataclass(frozen=True, slots=True)
class EightBit:
    """`element` is int8 or float8_e4m3fn; `scale_name` is what the format calls its weight scales."""

    element: str
    granularity: Granularity
    scale_name: str = "weight_scale"
    static_input: bool = False
    symmetric_input: bool = True
    block: tuple[int, int] = (128, 128)

    def linear(self, layer: Linear, target: Target) -> Iterator[Tensor]:
        inputs, outputs = layer.rank_input, layer.rank_output
        if self.granularity == "block":
            self._check_blocks(layer, target)
        yield on(layer, "weight", (outputs, inputs), self.element)
        scale: tuple[int, ...] = (len(layer.outputs),)
        if self.granularity == "channel":
            scale = (outputs, 1)
        elif self.granularity == "block":
            scale = (_ceil_div(outputs, self.block[0]), _ceil_div(inputs, self.block[1]))
        yield on(layer, self.scale_name, scale, "float32")
        if self.static_input:
            integer = self.element == "int8"
            yield on(layer, "input_scale", (1,) if integer else (len(layer.outputs),), "float32")
            if integer and not self.symmetric_input:
                yield on(layer, "input_zero_point", (1,), "int8")

    def _check_blocks(self, layer: Linear, target: Target) -> None:
        """Only a split input is held to whole blocks: stacked outputs may end inside one (linear.py:
        `_maybe_allow_fp8_block_shape_mismatch`)."""
        columns = self.block[1]
        if layer.parallel == "row" and target.tensor_parallel_size > 1 and layer.rank_input % columns:
            raise UnsupportedPartition(
                f"{layer.name} has {layer.rank_input} inputs per rank, "
                f"which blocks of {columns} do not divide"
            )

    def experts(self, layer: Experts, target: Target) -> Iterator[Tensor]:
        count, hidden, inner = layer.count, layer.hidden_size, layer.rank_intermediate
        if self.element == "int8" and self.granularity != "channel":
            raise UnsupportedQuantization(
                f"INT8 experts need one scale per channel, not per {self.granularity}"
            )
        scale13: tuple[int, ...] = (count, 2)
        scale2: tuple[int, ...] = (count,)
        if self.granularity == "channel":
            scale13, scale2 = (count, 2 * inner, 1), (count, hidden, 1)
        elif self.granularity == "block":
            rows, columns = self._expert_block(layer, target)
            scale13 = (count, 2 * _ceil_div(inner, rows), _ceil_div(hidden, columns))
            scale2 = (count, _ceil_div(hidden, rows), _ceil_div(inner, columns))
        yield on(layer, "w13_weight", (count, 2 * inner, hidden), self.element)
        yield on(layer, "w2_weight", (count, hidden, inner), self.element)
        yield on(layer, f"w13_{self.scale_name}", scale13, "float32")
        yield on(layer, f"w2_{self.scale_name}", scale2, "float32")
        if self.static_input:
            yield on(layer, "w13_input_scale", (count,), "float32")
            yield on(layer, "w2_input_scale", (count,), "float32")

    def _expert_block(self, layer: Experts, target: Target) -> tuple[int, int]:
        """Blocks refined until they divide the shard (fused_moe/oracle/fp8.py:
        `refine_fp8_moe_block_shape`)."""
        rows, columns = self.block
        inner = layer.rank_intermediate
        if inner % rows == 0 and (target.tensor_parallel_size == 1 or inner % columns == 0):
            return rows, columns
        refined = gcd(rows, columns, inner, layer.hidden_size)
        if refined < 32:
            raise UnsupportedPartition(
                f"{layer.name} has {inner} columns per rank, which blocks of {rows} x {columns} do not divide"
            )
        return refined, refined

    def matrix(self, name: str, rows: int, columns: int, dtype: str) -> Iterator[Tensor]:
        yield Tensor(f"{name}.weight", (rows, columns), self.element)
        scale: tuple[int, ...] = (1,)
        if self.granularity == "channel":
            scale = (rows, 1)
        elif self.granularity == "block":
            scale = (_ceil_div(rows, self.block[0]), _ceil_div(columns, self.block[1]))
        yield Tensor(f"{name}.{self.scale_name}", scale, dtype)
        if self.static_input:
            yield Tensor(f"{name}.input_scale", (1,), dtype)
