"""Phi-1, Phi-1.5 and Phi-2 (vLLM model_executor/models/phi.py, up to 0.2x): attention and MLP side by side, biases
everywhere, norms with a bias, a head with a bias."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from analysis.arithmetic.fields import Fields
from analysis.arithmetic.layout import Array, Part, Vector
from analysis.arithmetic.models.decoder import Tables, Traits, attention, decoder, linear
from analysis.arithmetic.parallel import Shard

_TRAITS = Traits(qkv_bias=True, output_bias=True, kv_heads_default=True, norms=("input_layernorm",))


def parts(fields: Fields, shard: Shard) -> Iterator[Part]:
    """The shared decoder with an ungated MLP, and the biases that only this family has."""
    hidden, vocabulary = fields.integer("hidden_size"), fields.integer("vocab_size")
    for part in decoder(fields, shard, _TRAITS, _mlp, _attention):
        if isinstance(part, Vector) and part.name == "model.norm.weight":
            part = replace(part, name="model.final_layernorm.weight")
        yield part
        if isinstance(part, Vector):
            yield Vector(part.name.removesuffix("weight") + "bias", "norm", hidden)
        elif part.name == "lm_head.weight":
            yield Array("lm_head.bias", "lm_head", (part.rank_rows,), whole=(vocabulary,))


def _attention(
    fields: Fields, shard: Shard, traits: Traits, prefix: str, layer: int, tables: Tables
) -> Iterator[Part]:
    for part in attention(fields, shard, traits, prefix, layer, tables):
        named = part.name == f"{prefix}.o_proj"
        yield replace(part, name=f"{prefix}.dense") if named else part


def _mlp(fields: Fields, shard: Shard, layer: int, prefix: str) -> Iterator[Part]:
    hidden, inner = fields.integer("hidden_size"), fields.integer("intermediate_size")
    yield linear(f"{prefix}.fc1", "mlp", hidden, {"fc1": inner}, shard, "column", bias=True)
    yield linear(f"{prefix}.fc2", "mlp", inner, {"fc2": hidden}, shard, "row", bias=True)
