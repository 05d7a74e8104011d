"""Reading config.json: every field is checked where it is used, and the error names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.arithmetic.errors import MalformedConfig

_ABSENT = object()


class Fields:
    """config.json with typed, checked access."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        if not isinstance(config, Mapping):
            raise MalformedConfig("(whole file)", f"is {type(config).__name__}, not an object")
        self.config = config

    def integer(self, field: str, default: Any = _ABSENT, *, at_least: int = 1) -> int:
        """A whole number; null counts as absent, as in transformers."""
        value = self.config.get(field)
        if value is None:
            if default is _ABSENT:
                raise MalformedConfig(field, "is missing")
            value = default
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise MalformedConfig(field, f"is {value!r}, not a whole number")
        if value < at_least:
            raise MalformedConfig(field, f"is {value}; it must be {at_least} or more")
        return int(value)

    def flag(self, field: str, default: bool) -> bool:
        value = self.config.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise MalformedConfig(field, f"is {value!r}, not true or false")
        return value

    def rope(self) -> Mapping[str, Any]:
        """The scaling block: `rope_scaling`, or transformers 5's `rope_parameters`; empty when there is
        none."""
        for field in ("rope_parameters", "rope_scaling"):
            block = self.config.get(field)
            if block:
                if not isinstance(block, Mapping):
                    raise MalformedConfig(field, f"is {block!r}, not an object")
                return block
        return {}


def head_dim(fields: Fields, *, required: bool = False) -> int:
    """Width of one attention head: `head_dim`, or hidden_size / num_attention_heads."""
    if fields.config.get("head_dim") is not None:
        return fields.integer("head_dim")
    if required:
        raise MalformedConfig("head_dim", "is missing")
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if hidden % heads:
        raise MalformedConfig(
            "hidden_size", f"is {hidden}, which {heads} heads do not divide, and head_dim is missing"
        )
    return hidden // heads
