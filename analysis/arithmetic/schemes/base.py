"""How one layer's weights are stored: the interface of a format, and the unquantized one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from analysis.arithmetic.layout import Experts, Linear
from analysis.arithmetic.tensor import Tensor

Shape = tuple[int, ...]
Platform = Literal["cuda", "cpu"]


@dataclass(frozen=True, slots=True)
class Target:
    """The engine that will hold the tensors."""

    dtype: str
    """The model's dtype: of scales, biases and everything unquantized."""
    vllm_version: tuple[int, ...]
    tensor_parallel_size: int = 1
    platform: Platform = "cuda"


class Format(Protocol):
    """Tensors of a layer, biases excepted (no format quantizes them)."""

    def linear(self, layer: Linear, target: Target) -> Iterator[Tensor]:
        """The tensors of a fused linear layer on one rank, as vLLM's linear method creates them."""
        ...

    def experts(self, layer: Experts, target: Target) -> Iterator[Tensor]:
        """The tensors of a stack of experts on one rank."""
        ...

    def matrix(self, name: str, rows: int, columns: int, dtype: str) -> Iterator[Tensor]:
        """The tensors of one unfused [rows, columns] matrix in a checkpoint whose scales are `dtype`."""
        ...


def on(layer: Linear | Experts, suffix: str, shape: Shape, dtype: str) -> Tensor:
    """A parameter of `layer`; the stacks of experts take their suffix as a name (`w13_weight`)."""
    return Tensor(f"{layer.name}.{suffix}", shape, dtype, "parameter", layer.group)


@dataclass(frozen=True, slots=True)
class Plain:
    """Weights in the model's dtype."""

    def linear(self, layer: Linear, target: Target) -> Iterator[Tensor]:
        yield on(layer, "weight", (layer.rank_output, layer.rank_input), target.dtype)

    def experts(self, layer: Experts, target: Target) -> Iterator[Tensor]:
        inner = layer.rank_intermediate
        yield on(layer, "w13_weight", (layer.count, 2 * inner, layer.hidden_size), target.dtype)
        if layer.biases:
            yield on(layer, "w13_bias", (layer.count, 2 * inner), target.dtype)
        yield on(layer, "w2_weight", (layer.count, layer.hidden_size, inner), target.dtype)
        if layer.biases:
            yield on(layer, "w2_bias", (layer.count, layer.hidden_size), target.dtype)

    def matrix(self, name: str, rows: int, columns: int, dtype: str) -> Iterator[Tensor]:
        yield Tensor(f"{name}.weight", (rows, columns), dtype)


PLAIN = Plain()
