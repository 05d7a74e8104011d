"""Qwen1.5 and Qwen2 mixtures with a shared expert (vLLM model_executor/models/qwen2_moe.py)."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.arithmetic.fields import Fields
from analysis.arithmetic.layout import Experts, Part
from analysis.arithmetic.models.decoder import Traits, decoder, dense_mlp, router
from analysis.arithmetic.models.qwen3_moe import is_sparse
from analysis.arithmetic.parallel import Shard


def parts(fields: Fields, shard: Shard) -> Iterator[Part]:
    traits = Traits(qkv_bias=True, embedding_everywhere=True, norm_everywhere=True, head_everywhere=True)
    return decoder(fields, shard, traits, mlp)


def mlp(fields: Fields, shard: Shard, layer: int, prefix: str) -> Iterator[Part]:
    """A router, the routed experts, one shared expert behind its own gate; or a dense MLP where the config says so."""
    if not is_sparse(fields, layer):
        yield from dense_mlp(fields, shard, layer, prefix)
        return
    hidden, inner = fields.integer("hidden_size"), fields.integer("moe_intermediate_size")
    count = fields.integer("num_experts")
    shared = fields.integer("shared_expert_intermediate_size", at_least=0)
    yield router(f"{prefix}.gate", hidden, count)
    yield router(f"{prefix}.shared_expert_gate", hidden, 1)
    if shared:
        yield from dense_mlp(fields, shard, layer, f"{prefix}.shared_expert", inner=shared)
    yield Experts(
        name=f"{prefix}.experts.routed_experts",
        checkpoint=f"{prefix}.experts",
        count=count,
        hidden_size=hidden,
        intermediate_size=inner,
        rank_intermediate=shard.split(inner, "moe_intermediate_size"),
    )
