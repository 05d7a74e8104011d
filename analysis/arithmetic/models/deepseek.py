"""DeepSeek V2, V2-Lite, V3 and R1 (vLLM model_executor/models/deepseek_v2.py).

Multi-head latent attention (MLA) caches one latent vector per token, whatever the number of heads, so tensor
parallelism does not split it. The prediction modules (MTP) of V3 belong to the checkpoint, not to the served model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from analysis.arithmetic import rope
from analysis.arithmetic.errors import MalformedConfig
from analysis.arithmetic.fields import Fields
from analysis.arithmetic.layout import Array, Attention, Experts, Linear, Output, Part, Vector
from analysis.arithmetic.models.decoder import Tables, Traits, decoder, dense_mlp, linear, router
from analysis.arithmetic.parallel import Shard


def parts(fields: Fields, shard: Shard) -> Iterator[Part]:
    if fields.config.get("index_topk") is not None:
        raise MalformedConfig("index_topk", "is set; no layout for DeepSeek's sparse attention indexer is known here")
    traits = Traits(norm_everywhere=False)
    return decoder(fields, shard, traits, mlp, attention)


def attention(fields: Fields, shard: Shard, traits: Traits, prefix: str, layer: int, tables: Tables) -> Iterator[Part]:
    """Compressed queries where q_lora_rank is given, the latent down-projection, its expansion, the output."""
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    latent, rotated = fields.integer("kv_lora_rank"), fields.integer("qk_rope_head_dim")
    plain, value = fields.integer("qk_nope_head_dim"), fields.integer("v_head_dim")
    compressed = fields.integer("q_lora_rank", 0, at_least=0)
    down = Output("kv_a_proj_with_mqa", latent + rotated, latent + rotated)
    query = heads * (plain + rotated)
    if compressed:
        both = (Output("q_a_proj", compressed, compressed), down)
        yield Linear(f"{prefix}.fused_qkv_a_proj", "attention", hidden, hidden, both, "replicated")
        yield Vector(f"{prefix}.q_a_layernorm.weight", "norm", compressed)
        yield linear(f"{prefix}.q_b_proj", "attention", compressed, {"q_b_proj": query}, shard, "column")
    else:
        yield Linear(f"{prefix}.kv_a_proj_with_mqa", "attention", hidden, hidden, (down,), "replicated")
        yield linear(f"{prefix}.q_proj", "attention", hidden, {"q_proj": query}, shard, "column")
    yield Vector(f"{prefix}.kv_a_layernorm.weight", "norm", latent)
    expanded = {"kv_b_proj": heads * (plain + value)}
    yield linear(f"{prefix}.kv_b_proj", "attention", latent, expanded, shard, "column")
    yield linear(f"{prefix}.o_proj", "attention", heads * value, {"o_proj": hidden}, shard, "row")
    yield from tables.of(table(fields, rotated), prefix)
    local = shard.split(heads, "num_attention_heads")
    derived = ((local, plain, latent), (local, latent, value))
    yield Attention(f"{prefix}.mla_attn.mla_attn", latent + rotated, "mla", derived=derived)


def table(fields: Fields, size: int) -> rope.Table:
    """FlashInfer's kernel, which comes with vLLM's CUDA builds, takes the scaled table in float32
    (rotary_embedding/deepseek_scaling_rope.py)."""
    made = rope.table(fields, size)
    scaled = rope.kind(fields.rope()) != "default" and size in (64, 128, 256, 512)
    return replace(made, cuda_dtype="float32") if scaled else made


def mlp(fields: Fields, shard: Shard, layer: int, prefix: str) -> Iterator[Part]:
    """Dense in the first layers, then a router, shared experts as one MLP, and the routed experts."""
    count = fields.integer("n_routed_experts", 0, at_least=0)
    first, step = fields.integer("first_k_dense_replace", 0, at_least=0), fields.integer("moe_layer_freq", 1)
    if not count or layer < first or layer % step:
        yield from dense_mlp(fields, shard, layer, prefix)
        return
    hidden, inner = fields.integer("hidden_size"), fields.integer("moe_intermediate_size")
    yield router(f"{prefix}.gate", hidden, count)
    if fields.config.get("topk_method") == "noaux_tc":
        yield Array(f"{prefix}.gate.e_score_correction_bias", "experts", (count,), dtype="float32")
    shared = fields.integer("n_shared_experts", 0, at_least=0)
    if shared:
        yield from dense_mlp(fields, shard, layer, f"{prefix}.shared_experts", inner=shared * inner)
    yield Experts(
        name=f"{prefix}.experts.routed_experts",
        checkpoint=f"{prefix}.experts",
        count=count,
        hidden_size=hidden,
        intermediate_size=inner,
        rank_intermediate=shard.split(inner, "moe_intermediate_size"),
    )
