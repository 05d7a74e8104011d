"""The decoder-only transformer that the Llama-like families share: embedding, layers, final norm, head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from analysis.arithmetic import rope
from analysis.arithmetic.errors import MalformedConfig
from analysis.arithmetic.fields import Fields, head_dim
from analysis.arithmetic.layout import (
    Array,
    Attention,
    Embedding,
    Linear,
    Output,
    Parallel,
    Part,
    RopeCache,
    Vector,
)
from analysis.arithmetic.parallel import Shard

VOCABULARY_PADDING = 64
"""vLLM pads the vocabulary to this multiple (vocab_parallel_embedding.py: DEFAULT_VOCAB_PADDING_SIZE)."""

Mlp = Callable[[Fields, Shard, int, str], Iterator[Part]]
Rope = Callable[[Fields, int, int], rope.Table]
Window = Callable[[int], int | None]


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
    embedding_everywhere: bool = False
    """Whether every pipeline rank builds the embedding."""
    norm_everywhere: bool = False
    head_everywhere: bool = False
    always_tied: bool = False
    tied_by_default: bool = False
    scaled_embedding: bool = False
    """Whether the model keeps the embedding's factor as a scalar buffer."""
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    attention_name: str = "self_attn"
    mlp_name: str = "mlp"
    embedding_name: str = "model.embed_tokens"
    fused_on_disk: bool = False
    """Whether the checkpoint stacks QKV and gate/up as the engine does."""
    sinks: bool = False
    """Whether every attention head has a learned sink."""
    rope: Rope | None = None
    """The rotary table of (fields, head size, layer); None for the one that config.json declares."""
    window: Window | None = None
    """Tokens that a layer looks back; None for all."""


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
    made = tuple(Output(key, size, rank(size) if parallel == "column" else size) for key, size in outputs.items())
    rank_input = shard.split(input_size, f"the input of {name}") if parallel == "row" else input_size
    return Linear(name, group, input_size, rank_input, made, parallel, bias)


class Tables:
    """The RoPE tables of one rank: equal ones are built once."""

    def __init__(self) -> None:
        self.built: set[rope.Table] = set()

    def of(self, table: rope.Table, prefix: str) -> Iterator[Part]:
        if table not in self.built:
            self.built.add(table)
            name = f"{prefix}.rotary_emb"
            yield RopeCache(name, table.positions, table.rotary_dim, table.buffer, table.dtype, table.cuda_dtype)


def attention(fields: Fields, shard: Shard, traits: Traits, prefix: str, layer: int, tables: Tables) -> Iterator[Part]:
    """Fused QKV, output projection, per-head norms, the operator; the first layer that needs a RoPE table owns it."""
    hidden = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    kv = kv_heads(fields, traits)
    size = head_dim(fields, required=traits.head_dim_required)
    if heads % kv:
        raise MalformedConfig("num_key_value_heads", f"is {kv}; {heads} attention heads cannot share them evenly")
    rank_heads = shard.split(heads, "num_attention_heads")
    rank_kv = shard.kv_heads(kv) * size
    outputs = (
        Output("q_proj", heads * size, rank_heads * size),
        Output("k_proj", kv * size, rank_kv),
        Output("v_proj", kv * size, rank_kv),
    )
    stored = ("qkv_proj",) if traits.fused_on_disk else ()
    if traits.sinks:
        yield Array(f"{prefix}.sinks", "attention", (rank_heads,), whole=(heads,))
    yield Linear(f"{prefix}.qkv_proj", "attention", hidden, hidden, outputs, "column", traits.qkv_bias, stored=stored)
    yield linear(f"{prefix}.o_proj", "attention", heads * size, {"o_proj": hidden}, shard, "row", traits.output_bias)
    yield from tables.of(traits.rope(fields, size, layer) if traits.rope else rope.table(fields, size), prefix)
    window = traits.window(layer) if traits.window else None
    yield Attention(f"{prefix}.attn", 2 * rank_kv, "full" if window is None else "sliding", window)
    if traits.qk_norm:
        yield Vector(f"{prefix}.q_norm.weight", "norm", size)
        yield Vector(f"{prefix}.k_norm.weight", "norm", size)


def dense_mlp(
    fields: Fields,
    shard: Shard,
    layer: int,
    prefix: str,
    *,
    bias: bool = False,
    fused_on_disk: bool = False,
    inner: int | None = None,
) -> Iterator[Part]:
    """Gated MLP: fused gate and up projection, down projection. `inner` is its width, intermediate_size if None."""
    hidden = fields.integer("hidden_size")
    inner = fields.integer("intermediate_size") if inner is None else inner
    gate_up = {"gate_proj": inner, "up_proj": inner}
    stored = ("gate_up_proj",) if fused_on_disk else ()
    made = linear(f"{prefix}.gate_up_proj", "mlp", hidden, gate_up, shard, "column", bias)
    yield replace(made, stored=stored) if stored else made
    yield linear(f"{prefix}.down_proj", "mlp", inner, {"down_proj": hidden}, shard, "row", bias)


def router(name: str, hidden: int, count: int, *, bias: bool = False) -> Linear:
    """A mixture's gate that no format quantizes."""
    return Linear(
        name, "experts", hidden, hidden, (Output(name.rpartition(".")[2], count, count),), "replicated", bias, False
    )


def kv_heads(fields: Fields, traits: Traits) -> int:
    if traits.kv_heads_default:
        return fields.integer("num_key_value_heads", fields.integer("num_attention_heads"))
    return fields.integer("num_key_value_heads")


def decoder(
    fields: Fields,
    shard: Shard,
    traits: Traits,
    mlp: Mlp | None = None,
    attend: Callable[[Fields, Shard, Traits, str, int, Tables], Iterator[Part]] = attention,
) -> Iterator[Part]:
    """All parts of one rank, in the order the engine registers them."""
    mlp = mlp or partial(dense_mlp, bias=traits.mlp_bias, fused_on_disk=traits.fused_on_disk)
    hidden, vocabulary = fields.integer("hidden_size"), fields.integer("vocab_size")
    tied = traits.always_tied or fields.flag("tie_word_embeddings", traits.tied_by_default)
    rows = padded_vocabulary(vocabulary)
    layers = shard.layers(fields.integer("num_hidden_layers"))
    everywhere = traits.ends_everywhere
    tables = Tables()

    # A tied head on the last pipeline rank needs the table again.
    if shard.first or (tied and shard.last) or everywhere or traits.embedding_everywhere:
        yield Embedding(
            f"{traits.embedding_name}.weight", "embed", vocabulary, shard.split(rows, "the vocabulary"), hidden
        )
    if traits.scaled_embedding:
        yield Array("model.normalizer", "embed", (), "buffer")
    for layer in layers:
        prefix = f"model.layers.{layer}"
        yield from attend(fields, shard, traits, f"{prefix}.{traits.attention_name}", layer, tables)
        yield from mlp(fields, shard, layer, f"{prefix}.{traits.mlp_name}")
        for norm in traits.norms:
            yield Vector(f"{prefix}.{norm}.weight", "norm", hidden)
    if shard.last or everywhere or traits.norm_everywhere:
        yield Vector("model.norm.weight", "norm", hidden)
    if not tied and (shard.last or everywhere or traits.head_everywhere):
        yield Embedding("lm_head.weight", "lm_head", vocabulary, shard.split(rows, "the vocabulary"), hidden)
