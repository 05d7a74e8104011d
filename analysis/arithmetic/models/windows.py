"""Which layers look back only so far, as transformers' configurations fill in what config.json leaves out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from analysis.arithmetic.errors import MalformedConfig
from analysis.arithmetic.fields import Fields

Window = Callable[[int], int | None]


def everywhere(fields: Fields, default: int | None = None) -> Window:
    """One window for all layers. Only an absent field takes the default: null and 0 mean none."""
    if "sliding_window" not in fields.config and default is not None:
        return lambda layer: default
    declared = fields.config.get("sliding_window")
    size = fields.integer("sliding_window", at_least=0) if declared is not None else 0
    return lambda layer: size or None


def by_type(fields: Fields, sliding: Callable[[int], bool], default: int | None = None) -> Window:
    """Alternating layers: `layer_types` says which, or `sliding` does where config.json does not."""
    size = everywhere(fields, default)(0)
    types = layer_types(fields)
    if size is None:
        return lambda layer: None
    return lambda layer: size if (types[layer] == "sliding_attention" if types else sliding(layer)) else None


def layer_types(fields: Fields) -> Sequence[str]:
    """`layer_types`, checked; empty when config.json has none."""
    types = fields.config.get("layer_types") or []
    layers = fields.integer("num_hidden_layers")
    if not isinstance(types, list | tuple) or (types and len(types) < layers):
        raise MalformedConfig("layer_types", f"is {types!r}; it must name the kind of each of {layers} layers")
    return types


def declared(fields: Fields, default: int | None = None) -> Window:
    """Where `layer_types` mixes kinds, by layer; otherwise one window for all, if all are said to slide or nothing is
    said."""
    types = layer_types(fields)
    if types and any(kind != "sliding_attention" for kind in types):
        return by_type(fields, lambda layer: False, default)
    return everywhere(fields, default)


def qwen(fields: Fields) -> Window:
    """Qwen's window counts only with `use_sliding_window` true, and vLLM applies it only if every layer slides."""
    if not fields.flag("use_sliding_window", False):
        return lambda layer: None
    types = layer_types(fields)
    first = fields.integer("max_window_layers", 28, at_least=0)
    slides = all(kind == "sliding_attention" for kind in types) if types else first == 0
    return everywhere(fields, 4096) if slides else lambda layer: None
