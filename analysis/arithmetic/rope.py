"""Length of the rotary embedding's cos/sin table (vLLM model_executor/layers/rotary_embedding)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from analysis.arithmetic.errors import MalformedConfig
from analysis.arithmetic.fields import Fields

_AS_DECLARED = ("default", "llama3", "dynamic", "proportional")
LONG = ("longrope", "su")
"""Phi's scaling; `su` is its first name."""


@dataclass(frozen=True, slots=True)
class Table:
    """One cos/sin table. Layers whose tables are equal share one, so `settings` tells apart what sizes do not."""

    positions: int
    rotary_dim: int
    buffer: str = "cos_sin_cache"
    dtype: str | None = None
    cuda_dtype: str | None = None
    settings: tuple[tuple[str, str], ...] = ()


def table(fields: Fields, head_size: int, block: Mapping[str, Any] | None = None, *, dtype: str | None = None) -> Table:
    """The table of heads of `head_size`; `block` are the RoPE parameters, those of `fields` when left out."""
    block = fields.rope() if block is None else block
    settings = tuple(sorted((str(name), repr(value)) for name, value in block.items()))
    return Table(
        positions(fields, block),
        rotary_dim(fields, head_size, block),
        "long_short_cos_sin_cache" if kind(block) in LONG else "cos_sin_cache",
        dtype,
        settings=settings,
    )


def kind(block: Mapping[str, Any]) -> str:
    return block.get("rope_type") or block.get("type") or "default"


def positions(fields: Fields, block: Mapping[str, Any]) -> int:
    """Rows of the table. It does not depend on `--max-model-len`.

    Linear scaling stretches the declared length by its factor; YaRN the original one; Llama 3 and dynamic NTK
    scaling keep what config.json declares; LongRoPE holds a table for the original length and one for the declared.
    """
    declared = fields.integer("max_position_embeddings")
    scaling = kind(block)
    if scaling in _AS_DECLARED:
        return declared
    if scaling not in ("linear", "yarn", *LONG):
        raise MalformedConfig(
            "rope_scaling", f"has type {scaling!r}; known are {', '.join(_AS_DECLARED)}, linear, yarn, longrope"
        )
    inner = Fields(block)
    original = "original_max_position_embeddings"
    if scaling in LONG:
        return declared + inner.integer(original, fields.config.get(original) or declared)
    factor = block.get("factor")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or factor <= 0:
        raise MalformedConfig("rope_scaling.factor", f"is {factor!r}; {scaling} scaling needs a positive number")
    start = declared if scaling == "linear" else inner.integer(original, declared)
    return ceil(start * factor)


def rotary_dim(fields: Fields, head_size: int, block: Mapping[str, Any]) -> int:
    """Rotated channels of a head."""
    share = block.get("partial_rotary_factor") or fields.config.get("partial_rotary_factor") or 1.0
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise MalformedConfig("partial_rotary_factor", f"is {share!r}; it must be above 0 and at most 1")
    return int(head_size * share)
