"""Qwen3 mixture of experts (vLLM model_executor/models/qwen3_moe.py)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from analysis.arithmetic.errors import MalformedConfig
from analysis.arithmetic.fields import Fields
from analysis.arithmetic.layout import Experts, Part
from analysis.arithmetic.models.decoder import decoder, dense_mlp, linear
from analysis.arithmetic.models.qwen3 import traits
from analysis.arithmetic.parallel import Shard


def parts(fields: Fields, shard: Shard) -> Iterator[Part]:
    if fields.integer("shared_expert_intermediate_size", 0, at_least=0):
        raise MalformedConfig("shared_expert_intermediate_size", "is set; no layout for shared experts is known")
    return decoder(fields, shard, replace(traits(fields), ends_everywhere=True), mlp)


def mlp(fields: Fields, shard: Shard, layer: int, prefix: str) -> Iterator[Part]:
    """A router and the experts, or a dense MLP in the layers that the config excepts."""
    if not is_sparse(fields, layer):
        yield from dense_mlp(fields, shard, layer, prefix)
        return
    hidden, inner = fields.integer("hidden_size"), fields.integer("moe_intermediate_size")
    count = fields.integer("num_experts")
    yield linear(f"{prefix}.gate", "experts", hidden, {"gate": count}, shard, "replicated")
    yield Experts(
        name=f"{prefix}.experts.routed_experts",
        checkpoint=f"{prefix}.experts",
        count=count,
        hidden_size=hidden,
        intermediate_size=inner,
        rank_intermediate=shard.split(inner, "moe_intermediate_size"),
    )


def is_sparse(fields: Fields, layer: int) -> bool:
    dense_only = fields.config.get("mlp_only_layers") or []
    if not isinstance(dense_only, list | tuple):
        raise MalformedConfig("mlp_only_layers", f"is {dense_only!r}, not a list of layer numbers")
    step = fields.integer("decoder_sparse_step", 1)
    return layer not in dense_only and fields.integer("num_experts", at_least=0) > 0 and (layer + 1) % step == 0
