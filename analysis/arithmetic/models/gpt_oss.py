"""gpt-oss (vLLM model_executor/models/gpt_oss.py): biases everywhere, attention sinks, every other layer sliding."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.arithmetic import rope
from analysis.arithmetic.fields import Fields
from analysis.arithmetic.layout import Experts, Part
from analysis.arithmetic.models import windows
from analysis.arithmetic.models.decoder import Traits, decoder, router
from analysis.arithmetic.parallel import Shard


def parts(fields: Fields, shard: Shard) -> Iterator[Part]:
    size = windows.everywhere(fields, 128)(0)
    traits = Traits(
        qkv_bias=True,
        output_bias=True,
        sinks=True,
        head_dim_required=True,
        attention_name="attn",
        embedding_name="model.embedding",
        embedding_everywhere=True,
        norm_everywhere=True,
        head_everywhere=True,
        rope=table,
        # The even layers, whatever `layer_types` says: vLLM does not read it here.
        window=lambda layer: size if layer % 2 == 0 else None,
    )
    return decoder(fields, shard, traits, mlp)


def table(fields: Fields, size: int, layer: int) -> rope.Table:
    """In float32; always YaRN over the original length, whatever config.json calls it."""
    return rope.table(fields, size, {**fields.rope(), "rope_type": "yarn"}, dtype="float32")


def mlp(fields: Fields, shard: Shard, layer: int, prefix: str) -> Iterator[Part]:
    hidden, inner = fields.integer("hidden_size"), fields.integer("intermediate_size")
    count = fields.integer("num_local_experts")
    yield router(f"{prefix}.router", hidden, count, bias=True)
    yield Experts(
        name=f"{prefix}.experts.routed_experts",
        checkpoint=f"{prefix}.experts",
        count=count,
        hidden_size=hidden,
        intermediate_size=inner,
        rank_intermediate=-(-inner // shard.tensor_parallel_size),
        biases=True,
        stacked=("gate_up_proj", "down_proj"),
    )
