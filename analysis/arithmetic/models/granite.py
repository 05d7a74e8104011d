"""IBM Granite 3, dense and mixture (vLLM model_executor/models/granite.py, granitemoe.py)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from analysis.arithmetic.errors import MalformedConfig
from analysis.arithmetic.fields import Fields
from analysis.arithmetic.layout import Experts, Part
from analysis.arithmetic.models.decoder import Traits, decoder, router
from analysis.arithmetic.models.llama import traits as llama_traits
from analysis.arithmetic.parallel import Shard


def parts(fields: Fields, shard: Shard) -> Iterator[Part]:
    """A Llama whose multipliers weigh nothing."""
    refuse_layer_types(fields)
    bias = fields.flag("attention_bias", False) or fields.flag("bias", False)
    return decoder(fields, shard, replace(llama_traits(fields), qkv_bias=bias))


def mixture(fields: Fields, shard: Shard) -> Iterator[Part]:
    refuse_layer_types(fields)
    traits = Traits(mlp_name="block_sparse_moe", embedding_everywhere=True, norm_everywhere=True, head_everywhere=True)
    return decoder(fields, shard, traits, mlp)


def refuse_layer_types(fields: Fields) -> None:
    """Later Granites alternate windows, drop RoPE per layer and add sinks: another layout."""
    for field in ("layer_types", "layer_rope_theta", "attention_sinks"):
        if fields.config.get(field):
            raise MalformedConfig(field, "is set; no layout for Granite with per-layer attention is known here")


def mlp(fields: Fields, shard: Shard, layer: int, prefix: str) -> Iterator[Part]:
    hidden, inner = fields.integer("hidden_size"), fields.integer("intermediate_size")
    count = fields.integer("num_local_experts")
    yield router(f"{prefix}.gate", hidden, count)
    yield Experts(
        name=f"{prefix}.experts.routed_experts",
        checkpoint=prefix,
        count=count,
        hidden_size=hidden,
        intermediate_size=inner,
        rank_intermediate=shard.split(inner, "intermediate_size"),
        stacked=("input_linear.weight", "output_linear.weight"),
    )
