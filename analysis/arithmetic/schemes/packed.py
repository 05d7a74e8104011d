"""Low-bit integers packed into int32, with a scale per group of inputs: GPTQ, AWQ and compressed-tensors
WNA16.

Shapes: vLLM model_executor/layers/quantization: auto_gptq.py, auto_awq.py, moe_wna16.py and
compressed_tensors/schemes/compressed_tensors_wNa16.py,
.../compressed_tensors_moe/compressed_tensors_moe_wna16.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from analysis.arithmetic.errors import UnsupportedPartition
from analysis.arithmetic.layout import Experts, Linear
from analysis.arithmetic.schemes.base import Target, on
from analysis.arithmetic.tensor import Tensor

WITHOUT_ACTIVATION_ORDER = (0, 30)
"""vLLM dropped the g_idx tensors of GPTQ here (pull request 54809)."""
GPTQ_EXPERT_BIASES = (0, 26)
"""From here GPTQ experts carry biases, zero or not, and int32 zero points. First release seen with them:
0.27.1."""


def _groups(inputs: int, group_size: int) -> int:
    return 1 if group_size == -1 else inputs // group_size


def _aligned(inputs: int, group_size: int, name: str) -> None:
    if group_size != -1 and inputs % group_size:
        raise UnsupportedPartition(
            f"{name} has {inputs} inputs per rank, which groups of {group_size} do not divide"
        )


def _ceil_div(value: int, by: int) -> int:
    return -(-value // by)


@dataclass(frozen=True, slots=True)
class Gptq:
    """GPTQ: packed along the input; the zero points are stored even when the quantization is symmetric."""

    bits: int
    group_size: int
    symmetric: bool = True

    @property
    def pack(self) -> int:
        return 32 // self.bits

    def linear(self, layer: Linear, target: Target) -> Iterator[Tensor]:
        yield from self._one(layer, target, layer.rank_input, layer.rank_output)

    def _one(self, layer: Linear, target: Target, inputs: int, outputs: int) -> Iterator[Tensor]:
        groups = _groups(inputs, self.group_size)
        yield on(layer, "qweight", (inputs // self.pack, outputs), "int32")
        if target.vllm_version < WITHOUT_ACTIVATION_ORDER:
            yield on(layer, "g_idx", (inputs,), "int32")
        yield on(layer, "scales", (groups, outputs), target.dtype)
        yield on(layer, "qzeros", (groups, outputs // self.pack), "int32")

    def experts(self, layer: Experts, target: Target) -> Iterator[Tensor]:
        count, hidden, inner = layer.count, layer.hidden_size, layer.rank_intermediate
        if not _marlin_experts(hidden, inner, self.group_size):
            yield from _byte_packed_experts(
                layer, target, self.bits, self.group_size, zeros=not self.symmetric
            )
            if self.symmetric:
                yield on(layer, "w13_qzeros", (0,), "int32")
                yield on(layer, "w2_qzeros", (0,), "int32")
            return
        groups13, groups2 = _groups(hidden, self.group_size), _groups(inner, self.group_size)
        biases = target.vllm_version >= GPTQ_EXPERT_BIASES
        zeros = "int32" if biases else target.dtype
        yield on(layer, "w13_qweight", (count, hidden // self.pack, 2 * inner), "int32")
        yield on(layer, "w2_qweight", (count, inner // self.pack, hidden), "int32")
        yield on(layer, "w13_scales", (count, groups13, 2 * inner), target.dtype)
        yield on(layer, "w2_scales", (count, groups2, hidden), target.dtype)
        yield on(layer, "w13_qzeros", (count, groups13, 2 * inner // self.pack), zeros)
        yield on(layer, "w2_qzeros", (count, groups2, hidden // self.pack), zeros)
        if biases:
            yield on(layer, "w13_bias", (count, 2 * inner), target.dtype)
            yield on(layer, "w2_bias", (count, hidden), target.dtype)
        if target.vllm_version < WITHOUT_ACTIVATION_ORDER:
            yield from _expert_activation_order(layer, ("w13_g_idx", "w2_g_idx"))

    def matrix(self, name: str, rows: int, columns: int, dtype: str) -> Iterator[Tensor]:
        groups = _groups(columns, self.group_size)
        yield Tensor(f"{name}.qweight", (columns // self.pack, rows), "int32")
        yield Tensor(f"{name}.qzeros", (groups, rows // self.pack), "int32")
        yield Tensor(f"{name}.scales", (groups, rows), dtype)
        yield Tensor(f"{name}.g_idx", (columns,), "int32")


@dataclass(frozen=True, slots=True)
class Awq:
    """AWQ: packed along the output, with zero points."""

    bits: int
    group_size: int
    zero_point: bool = True

    @property
    def pack(self) -> int:
        return 32 // self.bits

    def linear(self, layer: Linear, target: Target) -> Iterator[Tensor]:
        inputs, outputs = layer.rank_input, layer.rank_output
        _aligned(inputs, self.group_size, layer.name)
        if outputs % self.pack:
            raise UnsupportedPartition(
                f"{layer.name} has {outputs} outputs per rank, not a multiple of {self.pack}"
            )
        groups = _groups(inputs, self.group_size)
        yield on(layer, "qweight", (inputs, outputs // self.pack), "int32")
        yield on(layer, "qzeros", (groups, outputs // self.pack), "int32")
        yield on(layer, "scales", (groups, outputs), target.dtype)

    def experts(self, layer: Experts, target: Target) -> Iterator[Tensor]:
        count, hidden, inner = layer.count, layer.hidden_size, layer.rank_intermediate
        if not _marlin_experts(hidden, inner, self.group_size):
            yield from _byte_packed_experts(layer, target, self.bits, self.group_size, zeros=self.zero_point)
            return
        groups13, groups2 = _groups(hidden, self.group_size), _groups(inner, self.group_size)
        yield on(layer, "w13_qweight", (count, hidden, 2 * inner // self.pack), "int32")
        yield on(layer, "w2_qweight", (count, inner, hidden // self.pack), "int32")
        yield on(layer, "w13_scales", (count, groups13, 2 * inner), target.dtype)
        yield on(layer, "w2_scales", (count, groups2, hidden), target.dtype)
        yield on(layer, "w13_qzeros", (count, groups13, 2 * inner // self.pack), "int32")
        yield on(layer, "w2_qzeros", (count, groups2, hidden // self.pack), "int32")

    def matrix(self, name: str, rows: int, columns: int, dtype: str) -> Iterator[Tensor]:
        groups = _groups(columns, self.group_size)
        yield Tensor(f"{name}.qweight", (columns, rows // self.pack), "int32")
        yield Tensor(f"{name}.qzeros", (groups, rows // self.pack), "int32")
        yield Tensor(f"{name}.scales", (groups, rows), dtype)


@dataclass(frozen=True, slots=True)
class PackQuantized:
    """compressed-tensors `pack-quantized`: packed along the input, zero points only when asymmetric."""

    bits: int
    group_size: int
    symmetric: bool = True

    def linear(self, layer: Linear, target: Target) -> Iterator[Tensor]:
        inputs, outputs = layer.rank_input, layer.rank_output
        _aligned(inputs, self.group_size, layer.name)
        groups = _groups(inputs, self.group_size)
        yield on(layer, "weight_packed", (outputs, _ceil_div(inputs * self.bits, 32)), "int32")
        yield on(layer, "weight_scale", (outputs, groups), target.dtype)
        yield on(layer, "weight_shape", (2,), "int64")
        if not self.symmetric:
            yield on(layer, "weight_zero_point", (_ceil_div(outputs * self.bits, 32), groups), "int32")

    def experts(self, layer: Experts, target: Target) -> Iterator[Tensor]:
        count, hidden, inner = layer.count, layer.hidden_size, layer.rank_intermediate
        _aligned(inner, self.group_size, layer.name)
        pack = 32 // self.bits
        groups13, groups2 = _groups(hidden, self.group_size), _groups(inner, self.group_size)
        # Kernels want these transposed or not; the bytes are the same.
        yield on(layer, "w13_weight_packed", (count, 2 * inner, hidden // pack), "int32")
        yield on(layer, "w2_weight_packed", (count, hidden, inner // pack), "int32")
        yield on(layer, "w13_weight_scale", (count, 2 * inner, groups13), target.dtype)
        yield on(layer, "w2_weight_scale", (count, hidden, groups2), target.dtype)
        if not self.symmetric:
            yield on(layer, "w13_weight_zero_point", (count, 2 * inner // pack, groups13), "int32")
            yield on(layer, "w2_weight_zero_point", (count, hidden // pack, groups2), "int32")
        yield on(layer, "w13_weight_shape", (count, 2), target.dtype)
        yield on(layer, "w2_weight_shape", (count, 2), target.dtype)
        if target.vllm_version < WITHOUT_ACTIVATION_ORDER:
            yield from _expert_activation_order(layer, ("w13_weight_g_idx", "w2_weight_g_idx"))

    def matrix(self, name: str, rows: int, columns: int, dtype: str) -> Iterator[Tensor]:
        groups = _groups(columns, self.group_size)
        yield Tensor(f"{name}.weight_packed", (rows, _ceil_div(columns * self.bits, 32)), "int32")
        yield Tensor(f"{name}.weight_scale", (rows, groups), dtype)
        yield Tensor(f"{name}.weight_shape", (2,), "int64")
        if not self.symmetric:
            yield Tensor(f"{name}.weight_zero_point", (_ceil_div(rows * self.bits, 32), groups), "int32")


def _marlin_experts(hidden: int, inner: int, group_size: int) -> bool:
    """Whether the fused Marlin kernel takes these experts (marlin_utils.py:
    `check_moe_marlin_supports_config`)."""
    fits = hidden % 128 == 0 and (group_size <= 0 or inner % group_size == 0)
    return fits and group_size in (-1, 32, 64, 128)


def _byte_packed_experts(
    layer: Experts, target: Target, bits: int, group_size: int, *, zeros: bool
) -> Iterator[Tensor]:
    """The fallback kernel's layout (moe_wna16.py): bytes, and groups halved until they divide the shard."""
    count, hidden, inner = layer.count, layer.hidden_size, layer.rank_intermediate
    pack = 8 // bits
    group = group_size
    while inner % group or hidden % group:
        group //= 2
        if group < 32:
            raise UnsupportedPartition(
                f"{layer.name} has {inner} columns per rank, which no group of 32 or more divides"
            )
    yield on(layer, "w13_qweight", (count, 2 * inner, hidden // pack), "uint8")
    yield on(layer, "w2_qweight", (count, hidden, inner // pack), "uint8")
    yield on(layer, "w13_scales", (count, 2 * inner, hidden // group), target.dtype)
    yield on(layer, "w2_scales", (count, hidden, inner // group), target.dtype)
    if zeros:
        yield on(layer, "w13_qzeros", (count, 2 * inner // pack, hidden // group), "uint8")
        yield on(layer, "w2_qzeros", (count, hidden // pack, inner // group), "uint8")


def _expert_activation_order(layer: Experts, names: tuple[str, str]) -> Iterator[Tensor]:
    """Order and sort indices of both stacks, which old versions keep even without activation order."""
    for name, size in ((names[0], layer.hidden_size), (names[1], layer.rank_intermediate)):
        yield on(layer, name, (layer.count, size), "int32")
    for name, size in (("w13", layer.hidden_size), ("w2", layer.rank_intermediate)):
        yield on(layer, f"{name}_g_idx_sort_indices", (layer.count, size), "int32")
