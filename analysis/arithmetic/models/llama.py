"""Llama and Mistral (vLLM model_executor/models/llama.py, mistral.py)."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.arithmetic.fields import Fields
from analysis.arithmetic.layout import Part
from analysis.arithmetic.models.decoder import Traits, decoder
from analysis.arithmetic.parallel import Shard


def parts(fields: Fields, shard: Shard) -> Iterator[Part]:
    """`attention_bias` puts a bias on all four projections, `qkv_bias` overrides it for QKV alone."""
    bias = fields.flag("attention_bias", False) or fields.flag("bias", False)
    traits = Traits(
        qkv_bias=fields.flag("qkv_bias", bias),
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        kv_heads_default=True,
    )
    return decoder(fields, shard, traits)
