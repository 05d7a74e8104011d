"""Gemma 1, 2 and 3, text (vLLM model_executor/models/gemma.py, gemma2.py, gemma3.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from analysis.arithmetic import rope
from analysis.arithmetic.fields import Fields
from analysis.arithmetic.layout import Part
from analysis.arithmetic.models import windows
from analysis.arithmetic.models.decoder import Traits, decoder
from analysis.arithmetic.parallel import Shard

FOUR_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)

GEMMA3_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
    "sliding_window": 4096, "tie_word_embeddings": True,
}  # fmt: skip
"""What transformers' Gemma3TextConfig fills in: the published multimodal files leave most of it out."""


def gemma(fields: Fields, shard: Shard) -> Iterator[Part]:
    """Embedding and head are one table, always."""
    traits = Traits(
        head_dim_required=True, always_tied=True, scaled_embedding=True, embedding_everywhere=True, norm_everywhere=True
    )
    return decoder(fields, shard, traits)


def gemma2(fields: Fields, shard: Shard) -> Iterator[Part]:
    """Four norms a layer; the even layers look back 4096 tokens."""
    bias = fields.flag("attention_bias", False)
    traits = Traits(
        qkv_bias=bias,
        output_bias=bias,
        head_dim_required=True,
        always_tied=True,
        scaled_embedding=True,
        embedding_everywhere=True,
        norm_everywhere=True,
        norms=FOUR_NORMS,
        window=windows.by_type(fields, lambda layer: layer % 2 == 0, 4096),
    )
    return decoder(fields, shard, traits)


def with_defaults(text: Mapping[str, Any]) -> dict[str, Any]:
    """A Gemma 3 text configuration with what transformers fills in; null stays null."""
    return {**GEMMA3_DEFAULTS, **text}


def gemma3(fields: Fields, shard: Shard) -> Iterator[Part]:
    """Per-head norms; five sliding layers to one full one, each kind with a RoPE table of its own."""
    fields = Fields(with_defaults(fields.config))
    bias = fields.flag("attention_bias", False)
    pattern = fields.integer("sliding_window_pattern", fields.config.get("_sliding_window_pattern") or 6)
    slides = windows.by_type(fields, lambda layer: (layer + 1) % pattern != 0)

    def table(fields: Fields, size: int, layer: int) -> rope.Table:
        return rope.table(fields, size, rope_block(fields, sliding=slides(layer) is not None))

    traits = Traits(
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        head_dim_required=True,
        tied_by_default=True,
        scaled_embedding=True,
        embedding_everywhere=True,
        norm_everywhere=True,
        head_everywhere=True,
        norms=FOUR_NORMS,
        rope=table,
        window=slides,
    )
    return decoder(fields, shard, traits)


def rope_block(fields: Fields, *, sliding: bool) -> dict[str, Any]:
    """The RoPE parameters of one kind of layer: sliding layers rotate with a local base and are never scaled."""
    declared = fields.rope()
    own = declared.get("sliding_attention" if sliding else "full_attention")
    if isinstance(own, Mapping):  # transformers 5 writes one block per kind
        return dict(own)
    base = "rope_local_base_freq" if sliding else "rope_theta"
    theta = float(fields.config.get(base) or (10_000.0 if sliding else 1_000_000.0))
    scaled = {} if sliding else {name: value for name, value in declared.items() if name != "type"}
    kind = "default" if sliding else rope.kind(declared)
    return {**scaled, "rope_type": kind, "rope_theta": theta}
