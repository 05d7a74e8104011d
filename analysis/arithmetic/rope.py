"""Length of the rotary embedding's cos/sin table (vLLM model_executor/layers/rotary_embedding)."""

from __future__ import annotations

from math import ceil

from analysis.arithmetic.errors import MalformedConfig
from analysis.arithmetic.fields import Fields

_AS_DECLARED = ("default", "llama3", "dynamic", "proportional")


def positions(fields: Fields) -> int:
    """Rows of the table. It does not depend on `--max-model-len`.

    Linear scaling stretches the declared length by its factor; YaRN the original one; Llama 3 and dynamic NTK
    scaling keep what config.json declares.
    """
    declared = fields.integer("max_position_embeddings")
    block = fields.rope()
    kind = block.get("rope_type") or block.get("type") or "default"
    if kind in _AS_DECLARED:
        return declared
    if kind not in ("linear", "yarn"):
        raise MalformedConfig(
            "rope_scaling", f"has type {kind!r}; known are {', '.join(_AS_DECLARED)}, linear, yarn"
        )
    inner = Fields(block)
    factor = block.get("factor")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or factor <= 0:
        raise MalformedConfig("rope_scaling.factor", f"is {factor!r}; {kind} scaling needs a positive number")
    start = declared if kind == "linear" else inner.integer("original_max_position_embeddings", declared)
    return ceil(start * factor)


def rotary_dim(fields: Fields, head_size: int) -> int:
    """Rotated channels of a head."""
    share = fields.rope().get("partial_rotary_factor") or fields.config.get("partial_rotary_factor") or 1.0
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise MalformedConfig("partial_rotary_factor", f"is {share!r}; it must be above 0 and at most 1")
    return int(head_size * share)
