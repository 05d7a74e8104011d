"""Mixtral (vLLM model_executor/models/mixtral.py): every layer a mixture."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.arithmetic.fields import Fields
from analysis.arithmetic.layout import Experts, Part
from analysis.arithmetic.models import windows
from analysis.arithmetic.models.decoder import Traits, decoder, router
from analysis.arithmetic.parallel import Shard


def parts(fields: Fields, shard: Shard) -> Iterator[Part]:
    traits = Traits(
        mlp_name="block_sparse_moe",
        embedding_everywhere=True,
        norm_everywhere=True,
        head_everywhere=True,
        window=windows.everywhere(fields),
    )
    return decoder(fields, shard, traits, mlp)


def mlp(fields: Fields, shard: Shard, layer: int, prefix: str) -> Iterator[Part]:
    hidden, inner = fields.integer("hidden_size"), fields.integer("intermediate_size")
    count = fields.integer("num_local_experts")
    yield router(f"{prefix}.gate", hidden, count)
    yield Experts(
        name=f"{prefix}.experts.routed_experts",
        checkpoint=f"{prefix}.experts",
        count=count,
        hidden_size=hidden,
        intermediate_size=inner,
        rank_intermediate=shard.split(inner, "intermediate_size"),
        stored=("w1", "w3", "w2"),
    )
