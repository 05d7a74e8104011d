"""The KV cache: bytes per token, blocks in a pool, blocks one request may hold.

Every layer keeps one key and one value vector per token and KV head: 2 x heads x head_dim x element bytes
(vLLM v1/kv_cache_interface.py: `AttentionSpec.page_size_bytes`). Tensor parallelism splits the heads while
there are enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from analysis.arithmetic import models
from analysis.arithmetic.dtypes import kv_size_bytes, model_dtype
from analysis.arithmetic.errors import MalformedConfig
from analysis.arithmetic.fields import Fields
from analysis.arithmetic.layout import Attention
from analysis.arithmetic.parallel import Shard

DEFAULT_BLOCK_TOKENS = 16
"""vLLM's block on CUDA; its CPU backend defaults to 128."""


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

    `kv_dtype` is vLLM's --kv-cache-dtype; "auto" follows the model's dtype (`dtype`, or config.json's). With
    quantized weights the cache stays in the model's dtype.
    """
    element_bytes = kv_size_bytes(kv_dtype, model_dtype(config, dtype))
    shard = Shard(tensor_parallel_size, pipeline_parallel_size, pipeline_rank)
    elements = sum(part.kv_elements for part in models.parts(config, shard) if isinstance(part, Attention))
    return elements * element_bytes


def kv_bytes_per_block(
    config: Mapping[str, Any], block_tokens: int = DEFAULT_BLOCK_TOKENS, **options: Any
) -> int:
    """Bytes of one block over all layers of a rank; `options` as in `kv_bytes_per_token`."""
    if block_tokens < 1:
        raise MalformedConfig("block_size", f"is {block_tokens}; it must be 1 or more")
    return block_tokens * kv_bytes_per_token(config, **options)


class KVCapacity(NamedTuple):
    """What a pool holds. One of the blocks is vLLM's null block, which serves no request."""

    blocks: int
    tokens: int


def kv_capacity(
    pool_bytes: int, config: Mapping[str, Any], *, block_tokens: int = DEFAULT_BLOCK_TOKENS, **options: Any
) -> KVCapacity:
    """Whole blocks in `pool_bytes` on one rank, and the tokens they hold (blocks x block size).

    vLLM floors per layer (v1/core/kv_cache_utils.py: `get_num_blocks`), which is the same number here because
    all layers have the same page. Its printed "KV cache size" is derived from the longest request and may
    differ by less than one block per request.
    """
    if pool_bytes < 0:
        raise MalformedConfig("pool_bytes", f"is {pool_bytes}; it must be 0 or more")
    blocks = pool_bytes // kv_bytes_per_block(config, block_tokens, **options)
    return KVCapacity(blocks, blocks * block_tokens)


def sliding_window(config: Mapping[str, Any]) -> int | None:
    """Tokens an attention layer looks back, where the whole model has one window; None without.

    Qwen's `sliding_window` counts only with `use_sliding_window` true.
    """
    fields = Fields(config)
    if config.get("sliding_window") is None or not fields.flag("use_sliding_window", True):
        return None
    return fields.integer("sliding_window")


def kv_blocks_per_request(
    config: Mapping[str, Any],
    max_model_len: int,
    *,
    block_tokens: int = DEFAULT_BLOCK_TOKENS,
    max_num_batched_tokens: int | None = None,
) -> int:
    """Blocks that one request of `max_model_len` tokens may hold at once.

    With a sliding window it is cdiv(min(window - 1 + max_num_batched_tokens, max_model_len), block) + 1
    (v1/kv_cache_interface.py: `SlidingWindowSpec`), so it depends on the step's token budget.
    """
    if max_model_len < 1:
        raise MalformedConfig("max_model_len", f"is {max_model_len}; it must be 1 or more")
    window = sliding_window(config)
    if window is None or max_num_batched_tokens is None:
        return -(-max_model_len // block_tokens)
    held = min(window - 1 + max_num_batched_tokens, max_model_len)
    return -(-held // block_tokens) + 1
