"""What one rank moves and computes in a step, exactly, from config.json: bytes of weights and KV cache, FLOPs.

A step reads every weight that multiplies something. Of an embedding table it reads only the rows of its tokens, unless
the table is the head as well (tied). Of a mixture it reads the experts that the step's tokens chose: with n tokens that
each choose k of E experts, E (1 - (1 - k/E)^n) are expected to be distinct. Quantized weights count as the bytes that
are loaded, their multiplications in the model's 16 bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis import arithmetic
from analysis.arithmetic import models
from analysis.arithmetic.fields import Fields, head_dim
from analysis.arithmetic.kv_groups import KVLayer
from analysis.arithmetic.layout import Embedding, Experts, Linear
from analysis.arithmetic.parallel import Shard
from analysis.arithmetic.schemes import Platform

_NOT_TEXT = "vision"
"""Group of the parts that no text token passes."""
_ROUTED = ".experts."
"""In the name of every tensor of routed experts, and of none of the router's or the shared expert's."""
_NOT_MULTIPLIED = ("embed", "rope", "kv_scales", _NOT_TEXT)


@dataclass(frozen=True, slots=True)
class Layers:
    """Attention layers of one rank that remember alike; `bytes_per_token` is one layer's KV cache."""

    count: int
    window: int | None
    bytes_per_token: int

    def seen(self, context_tokens: float) -> float:
        """Tokens that one layer looks at from a position."""
        return context_tokens if self.window is None else min(context_tokens, self.window)


@dataclass(frozen=True, slots=True)
class Work:
    """One pipeline rank's share of the model. FLOPs count a multiplication and an addition as two."""

    dense_bytes: int
    """Weights that every step reads."""
    expert_bytes: int
    """Weights of all routed experts."""
    chosen_share: float
    """Share of the experts that one token chooses; 0 without experts."""
    token_flops: float
    """Per token, without attention and head."""
    head_flops: float
    """Per sampled token."""
    pair_flops: float
    """Per layer, token and token looked at, in prefill."""
    decode_pair_flops: float
    """The same in decoding: latent attention (MLA) then works on the latent vectors."""
    layers: tuple[Layers, ...]

    def weight_bytes(self, tokens: float) -> float:
        """Bytes of weights read in a step of so many tokens."""
        if not self.expert_bytes:
            return float(self.dense_bytes)
        return self.dense_bytes + self.expert_bytes * (1.0 - (1.0 - self.chosen_share) ** max(tokens, 0.0))

    def kv_bytes(self, context_tokens: float) -> float:
        """Bytes of KV cache that one sequence's next token reads."""
        return sum(one.count * one.bytes_per_token * one.seen(context_tokens) for one in self.layers)

    def decode_flops(self, context_tokens: float) -> float:
        """FLOPs of one sequence's next token."""
        looked = sum(one.count * one.seen(context_tokens) for one in self.layers)
        return self.token_flops + self.head_flops + self.decode_pair_flops * looked

    def prefill_flops(self, prompt_tokens: float) -> float:
        """FLOPs of a whole prompt and of its first output token; attention is causal."""
        pairs = 0.0
        for one in self.layers:
            reach = one.seen(prompt_tokens)
            pairs += one.count * (prompt_tokens * reach - reach * reach / 2)
        return self.token_flops * prompt_tokens + self.head_flops + self.pair_flops * pairs


def work_of(
    config: Mapping[str, Any],
    *,
    dtype: str | None = None,
    kv_cache_dtype: str = "auto",
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    pipeline_rank: int = 0,
    vllm_version: str = arithmetic.DEFAULT_VLLM_VERSION,
    platform: Platform = "cuda",
) -> Work:
    """Work of one rank. Raises ArithmeticRefusal where the arithmetic does not know the model."""
    options: dict[str, Any] = {
        "tensor_parallel_size": tensor_parallel_size, "pipeline_parallel_size": pipeline_parallel_size,
        "pipeline_rank": pipeline_rank,
    }  # fmt: skip
    read = read_of(config, dtype=dtype, vllm_version=vllm_version, platform=platform, **options)
    cache = arithmetic.kv_layers(config, kv_cache_dtype, dtype=dtype, **options)
    return together(shape_of(config, **options), read, cache)


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a rank's work depends on no dtype and no quantization; as in `Work`."""

    token_flops: float
    head_flops: float
    pair_flops: float
    decode_pair_flops: float
    chosen_share: float


def shape_of(config: Mapping[str, Any], **parallel: int) -> Shape:
    """The FLOPs of one rank; `parallel` as in `work_of`."""
    shard = Shard(*(parallel.get(name, default) for name, default in _PARALLEL))
    parts = [part for part in models.parts(config, shard) if getattr(part, "group", "") != _NOT_TEXT]
    text = Fields(arithmetic.text_config(config))
    mixtures = [part for part in parts if isinstance(part, Experts)]
    chosen = _chosen(text) if mixtures else 0
    active = sum(part.rank_input * part.rank_output for part in parts if isinstance(part, Linear))
    active += sum(min(chosen, one.count) * 3 * one.hidden_size * one.rank_intermediate for one in mixtures)
    tables = [part for part in parts if isinstance(part, Embedding)]
    head = tables[-1].rank_rows * tables[-1].columns if shard.last and tables else 0
    return Shape(
        2.0 * active, 2.0 * head, *_pair_flops(text, shard.tensor_parallel_size),
        min(chosen / mixtures[0].count, 1.0) if mixtures else 0.0,
    )  # fmt: skip


_PARALLEL = (("tensor_parallel_size", 1), ("pipeline_parallel_size", 1), ("pipeline_rank", 0))


def read_of(config: Mapping[str, Any], **options: Any) -> tuple[int, int]:
    """Bytes of weights that a rank's steps read: by all of them, and of all routed experts. Options as `work_of`."""
    tensors = arithmetic.weight_tensors(config, **options)
    last = options.get("pipeline_rank", 0) == options.get("pipeline_parallel_size", 1) - 1
    separate_head = any(tensor.group == "lm_head" for tensor in tensors)
    skipped = _NOT_MULTIPLIED if separate_head or not last else _NOT_MULTIPLIED[1:]
    experts = sum(tensor.bytes for tensor in tensors if tensor.group == "experts" and _ROUTED in tensor.name)
    return sum(tensor.bytes for tensor in tensors if tensor.group not in skipped) - experts, experts


def together(shape: Shape, read_bytes: tuple[int, int], cache: Sequence[KVLayer]) -> Work:
    """The work of a rank from its parts."""
    alike = Counter((layer.window, layer.bytes_per_token) for layer in cache)
    return Work(
        dense_bytes=read_bytes[0], expert_bytes=read_bytes[1], chosen_share=shape.chosen_share,
        token_flops=shape.token_flops, head_flops=shape.head_flops, pair_flops=shape.pair_flops,
        decode_pair_flops=shape.decode_pair_flops,
        layers=tuple(Layers(count, window, size) for (window, size), count in alike.items()),
    )  # fmt: skip


def _chosen(text: Fields) -> int:
    for name in ("num_experts_per_tok", "experts_per_token", "moe_topk"):
        if text.config.get(name) is not None:
            return text.integer(name)
    return 1


def _pair_flops(text: Fields, tensor_parallel_size: int) -> tuple[float, float]:
    """FLOPs of one query position looking at one other, all heads of a rank: in prefill, in decoding."""
    heads = text.integer("num_attention_heads") / tensor_parallel_size
    if text.config.get("kv_lora_rank"):
        latent, rotated = text.integer("kv_lora_rank"), text.integer("qk_rope_head_dim", at_least=0)
        wide = text.integer("qk_nope_head_dim") + rotated + text.integer("v_head_dim")
        return 2.0 * heads * wide, 2.0 * heads * (2 * latent + rotated)
    return 4.0 * heads * head_dim(text), 4.0 * heads * head_dim(text)
