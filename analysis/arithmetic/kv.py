"""The KV cache: bytes per token and layer, blocks in a pool, blocks one request may hold.

Every layer keeps one key and one value vector per token and KV head: 2 x heads x head_dim x element bytes
(vLLM v1/kv_cache_interface.py: `AttentionSpec.page_size_bytes`). Tensor parallelism splits the heads while there are
enough. Multi-head latent attention (MLA) keeps one latent vector per token instead, kv_lora_rank + qk_rope_head_dim
numbers, on every rank the same. A sliding layer keeps a window of tokens (`kv_groups`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from analysis.arithmetic import models
from analysis.arithmetic.dtypes import kv_size_bytes, model_dtype
from analysis.arithmetic.errors import MalformedConfig
from analysis.arithmetic.kv_groups import KVLayer, KVPlan
from analysis.arithmetic.layout import Attention
from analysis.arithmetic.parallel import Shard

DEFAULT_BLOCK_TOKENS = 16
"""vLLM's block on CUDA; its CPU backend defaults to 128."""
DS_MLA_BYTES = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}
"""Bytes of one token's latent vector in the packed formats of FlashMLA, which only MLA layers take."""


def kv_layers(
    config: Mapping[str, Any],
    kv_dtype: str = "auto",
    tensor_parallel_size: int = 1,
    *,
    dtype: str | None = None,
    pipeline_parallel_size: int = 1,
    pipeline_rank: int = 0,
) -> list[KVLayer]:
    """What each layer of one rank keeps per token, in the order of the layers.

    `kv_dtype` is vLLM's --kv-cache-dtype; "auto" follows the model's dtype (`dtype`, or config.json's). With
    quantized weights the cache stays in the model's dtype.

    Raises UnknownArchitecture, MalformedConfig, UnsupportedPartition.
    """
    shard = Shard(tensor_parallel_size, pipeline_parallel_size, pipeline_rank)
    held = [part for part in models.parts(config, shard) if isinstance(part, Attention)]
    if kv_dtype in DS_MLA_BYTES:
        if any(part.kind != "mla" for part in held):
            raise MalformedConfig("kv_cache_dtype", f"is {kv_dtype!r}, which only layers with latent attention take")
        return [KVLayer(part.kind, part.window, DS_MLA_BYTES[kv_dtype]) for part in held]
    element_bytes = kv_size_bytes(kv_dtype, model_dtype(config, dtype))
    return [KVLayer(part.kind, part.window, part.kv_elements * element_bytes) for part in held]


def kv_bytes_per_token(
    config: Mapping[str, Any],
    kv_dtype: str = "auto",
    tensor_parallel_size: int = 1,
    *,
    dtype: str | None = None,
    pipeline_parallel_size: int = 1,
    pipeline_rank: int = 0,
) -> int:
    """Bytes that one token takes on one rank, over all its layers, while no window has dropped it.

    The arguments and errors of `kv_layers`.
    """
    layers = kv_layers(
        config,
        kv_dtype,
        tensor_parallel_size,
        dtype=dtype,
        pipeline_parallel_size=pipeline_parallel_size,
        pipeline_rank=pipeline_rank,
    )
    return sum(layer.bytes_per_token for layer in layers)


def kv_plan(
    config: Mapping[str, Any],
    block_tokens: int = DEFAULT_BLOCK_TOKENS,
    *,
    hybrid_manager: bool = True,
    pipeline_parallel_size: int = 1,
    pipeline_rank: int = 0,
    **options: Any,
) -> KVPlan:
    """How a pool of blocks serves this model on one rank; `options` as in `kv_layers`.

    vLLM groups the layers of the whole model, so that all pipeline ranks agree, and each rank holds its own of them.
    """
    Shard(options.get("tensor_parallel_size", 1), pipeline_parallel_size, pipeline_rank)  # a rank that exists
    if pipeline_parallel_size == 1:
        return KVPlan.of(kv_layers(config, **options), block_tokens, hybrid_manager=hybrid_manager)
    layers: list[KVLayer] = []
    held = range(0)
    for rank in range(pipeline_parallel_size):
        mine = kv_layers(config, pipeline_parallel_size=pipeline_parallel_size, pipeline_rank=rank, **options)
        if rank == pipeline_rank:
            held = range(len(layers), len(layers) + len(mine))
        layers += mine
    return KVPlan.of(layers, block_tokens, held=held, hybrid_manager=hybrid_manager)


def kv_bytes_per_block(config: Mapping[str, Any], block_tokens: int = DEFAULT_BLOCK_TOKENS, **options: Any) -> int:
    """Bytes of one block of the pool on a rank; `options` as in `kv_plan`.

    Over all layers of a rank where all remember alike, over one group of them in a hybrid model.
    """
    return kv_plan(config, block_tokens, **options).bytes_per_block


class KVCapacity(NamedTuple):
    """What a pool holds. One of the blocks is vLLM's null block, which serves no request."""

    blocks: int
    tokens: int


def kv_capacity(
    pool_bytes: int,
    config: Mapping[str, Any],
    *,
    block_tokens: int = DEFAULT_BLOCK_TOKENS,
    max_model_len: int | None = None,
    max_num_batched_tokens: int | None = None,
    batches_in_flight: int = 1,
    **options: Any,
) -> KVCapacity:
    """Whole blocks in `pool_bytes` on one rank, and the tokens they hold.

    Without `max_model_len`, tokens are those that all layers can hold at once: blocks / groups x block size, which is
    what vLLM up to 0.19 prints. With it, they are what newer versions print: the requests of that length that fit at
    once (`KVPlan.full_length_requests`) x their length. Where all layers keep all tokens, the two differ by less than
    a block per request; for a hybrid model the second is larger, and needs `max_num_batched_tokens`.

    vLLM floors per layer (v1/core/kv_cache_utils.py: `get_num_blocks`), which is the same number here because all
    layers have the same page. With pipeline parallelism every rank takes the fewest blocks of any rank.

    Args:
        batches_in_flight: steps scheduled but not settled: 2 with async scheduling, which vLLM 0.32 defaults to; see
            `kv_blocks_per_request`.
        options: as in `kv_plan`.
    """
    plan = kv_plan(config, block_tokens, **options)
    blocks = plan.blocks(pool_bytes)
    if max_model_len is None:
        return KVCapacity(blocks, blocks // max(len(plan.groups), 1) * block_tokens)
    in_flight = None if max_num_batched_tokens is None else max_num_batched_tokens * batches_in_flight
    return KVCapacity(blocks, int(plan.full_length_requests(pool_bytes, max_model_len, in_flight) * max_model_len))


def sliding_window(config: Mapping[str, Any]) -> int | None:
    """Tokens an attention layer looks back, where the whole model has one window; None without.

    Qwen's `sliding_window` counts only with `use_sliding_window` true.
    """
    windows = {layer.window for layer in kv_layers(config)}
    return windows.pop() if len(windows) == 1 else None


def kv_blocks_per_request(
    config: Mapping[str, Any],
    max_model_len: int,
    *,
    block_tokens: int = DEFAULT_BLOCK_TOKENS,
    max_num_batched_tokens: int | None = None,
    batches_in_flight: int = 1,
    **options: Any,
) -> int:
    """Blocks of the pool that one request of `max_model_len` tokens may hold at once, over all groups of layers.

    A sliding layer holds its window and the tokens in flight, so that the number depends on the step's token budget
    (`KVGroup.blocks_per_request`); without `max_num_batched_tokens` it counts as if it held all.
    """
    in_flight = None if max_num_batched_tokens is None else max_num_batched_tokens * batches_in_flight
    return kv_plan(config, block_tokens, **options).blocks_per_request(max_model_len, in_flight)
