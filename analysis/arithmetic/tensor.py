"""A tensor as the engine holds it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from analysis.arithmetic.dtypes import SIZE_BYTES

Kind = Literal["parameter", "buffer"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """Name, shape and element type of one parameter or buffer; `bytes` is its own size, unrounded.

    `group` is what the tensor serves: embed, attention, mlp, experts, norm, lm_head, rope or kv_scales.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind = "parameter"
    group: str = ""

    @property
    def bytes(self) -> int:
        return prod(self.shape) * SIZE_BYTES[self.dtype]
