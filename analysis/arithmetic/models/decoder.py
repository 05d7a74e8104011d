"""The decoder-only transformer that the Llama-like families share: embedding, layers, final norm, head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from analysis.arithmetic import rope
from analysis.arithmetic.fields import Fields, head_dim
from analysis.arithmetic.layout import Attention, Embedding, Linear, Output, Parallel, Part, RopeCache, Vector
from analysis.arithmetic.parallel import Shard

VOCABULARY_PADDING = 64
"""vLLM pads the vocabulary to this multiple (vocab_parallel_embedding.py: DEFAULT_VOCAB_PADDING_SIZE)."""

Mlp = Callable[[Fields, Shard, int, str], Iterator[Part]]


@dataclass(frozen=True, slots=True)
class Traits:
    """What tells one of these families from another."""

    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    head_dim_required: bool = False
    kv_heads_default: bool = False
    """Whether a missing num_key_value_heads means one per attention head."""
    ends_everywhere: bool = False
    """Whether every pipeline rank builds embedding, final norm and head, although only one uses each."""


def padded_vocabulary(size: int) -> int:
    return -(-size // VOCABULARY_PADDING) * VOCABULARY_PADDING


def linear(
    name: str,
    group: str,
    input_size: int,
    outputs: dict[str, int],
    shard: Shard,
    parallel: Parallel,
    bias: bool = False,
) -> Linear:
    """A linear layer whose stacked matrices all split evenly."""
    rank = partial(shard.split, what=f"the output of {name}")
    made = tuple(
        Output(key, size, rank(size) if parallel == "column" else size) for key, size in outputs.items()
    )
    rank_input = shard.split(input_size, f"the input of {name}") if parallel == "row" else input_size
    return Linear(name, group, input_size, rank_input, made, parallel, bias)


def attention(
    fields: Fields, shard: Shard, traits: Traits, prefix: str, *, rope_here: bool
) -> Iterator[Part]:
    """Fused QKV, output projection, per-head norms, the operator; the first layer of a rank owns the RoPE
    table."""
    hidden = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    kv = kv_heads(fields, traits)
    size = head_dim(fields, required=traits.head_dim_required)
    query = shard.split(heads, "num_attention_heads") * size
    rank_kv = shard.kv_heads(kv) * size
    outputs = (
        Output("q_proj", heads * size, query),
        Output("k_proj", kv * size, rank_kv),
        Output("v_proj", kv * size, rank_kv),
    )
    yield Linear(f"{prefix}.qkv_proj", "attention", hidden, hidden, outputs, "column", traits.qkv_bias)
    yield linear(
        f"{prefix}.o_proj", "attention", heads * size, {"o_proj": hidden}, shard, "row", traits.output_bias
    )
    if rope_here:
        yield RopeCache(f"{prefix}.rotary_emb", rope.positions(fields), rope.rotary_dim(fields, size))
    yield Attention(f"{prefix}.attn", kv_elements=2 * rank_kv)
    if traits.qk_norm:
        yield Vector(f"{prefix}.q_norm.weight", "norm", size)
        yield Vector(f"{prefix}.k_norm.weight", "norm", size)


def dense_mlp(fields: Fields, shard: Shard, layer: int, prefix: str, *, bias: bool = False) -> Iterator[Part]:
    """Gated MLP: fused gate and up projection, down projection."""
    hidden, inner = fields.integer("hidden_size"), fields.integer("intermediate_size")
    gate_up = {"gate_proj": inner, "up_proj": inner}
    yield linear(f"{prefix}.gate_up_proj", "mlp", hidden, gate_up, shard, "column", bias)
    yield linear(f"{prefix}.down_proj", "mlp", inner, {"down_proj": hidden}, shard, "row", bias)


def kv_heads(fields: Fields, traits: Traits) -> int:
    if traits.kv_heads_default:
        return fields.integer("num_key_value_heads", fields.integer("num_attention_heads"))
    return fields.integer("num_key_value_heads")


def decoder(fields: Fields, shard: Shard, traits: Traits, mlp: Mlp | None = None) -> Iterator[Part]:
    """All parts of one rank, in the order the engine registers them."""
    mlp = mlp or partial(dense_mlp, bias=traits.mlp_bias)
    hidden, vocabulary = fields.integer("hidden_size"), fields.integer("vocab_size")
    tied = fields.flag("tie_word_embeddings", False)
    rows = padded_vocabulary(vocabulary)
    layers = shard.layers(fields.integer("num_hidden_layers"))

    # A tied head on the last pipeline rank needs the table again.
    if shard.first or (tied and shard.last) or traits.ends_everywhere:
        yield Embedding(
            "model.embed_tokens.weight", "embed", vocabulary, shard.split(rows, "the vocabulary"), hidden
        )
    for layer in layers:
        prefix = f"model.layers.{layer}"
        yield from attention(fields, shard, traits, f"{prefix}.self_attn", rope_here=layer == layers.start)
        yield from mlp(fields, shard, layer, f"{prefix}.mlp")
        yield Vector(f"{prefix}.input_layernorm.weight", "norm", hidden)
        yield Vector(f"{prefix}.post_attention_layernorm.weight", "norm", hidden)
    if shard.last or traits.ends_everywhere:
        yield Vector("model.norm.weight", "norm", hidden)
        if not tied:
            yield Embedding(
                "lm_head.weight", "lm_head", vocabulary, shard.split(rows, "the vocabulary"), hidden
            )
