"""The KV cache against figures that anyone can check by hand or on a model card."""

from __future__ import annotations

from typing import Any

import pytest

from analysis import catalogue
from analysis.arithmetic import (
    MalformedConfig,
    UnknownArchitecture,
    UnsupportedPartition,
    kv_blocks_per_request,
    kv_bytes_per_block,
    kv_bytes_per_token,
    kv_capacity,
    sliding_window,
)

BF16_BYTES_PER_TOKEN = {
    "qwen2.5-0.5b": 12288, "qwen2.5-1.5b": 28672, "qwen2.5-7b": 57344, "qwen2.5-14b": 196608,
    "qwen2.5-coder-32b": 262144, "deepseek-coder-33b": 253952, "mistral-7b": 131072, "llama-3.1-8b": 131072,
    "qwen3-8b": 147456, "qwen3-30b-a3b": 98304,
}  # fmt: skip
LLAMA = catalogue.load_model("llama-3.1-8b").config
QWEN = catalogue.load_model("qwen2.5-7b").config


@pytest.mark.parametrize("name", BF16_BYTES_PER_TOKEN)
def test_bytes_per_token(name: str) -> None:
    config = catalogue.load_model(name).config
    assert kv_bytes_per_token(config, dtype="bfloat16") == BF16_BYTES_PER_TOKEN[name]
    assert kv_bytes_per_token(config, "fp8", dtype="bfloat16") * 2 == BF16_BYTES_PER_TOKEN[name]
    assert kv_bytes_per_token(config, dtype="float32") == 2 * BF16_BYTES_PER_TOKEN[name]


def test_quantized_weights_leave_the_cache_alone() -> None:
    for name in catalogue.quantization_names():
        node = catalogue.load_quantization(name)
        expected = 131072 * (2 if node.dtype == "float32" else 1)
        assert kv_bytes_per_token(
            catalogue.compose(catalogue.load_model("llama-3.1-8b"), node), dtype=node.dtype
        ) == (expected)


def test_heads_are_split_then_replicated() -> None:
    per_rank = [kv_bytes_per_token(QWEN, "auto", tp, dtype="bfloat16") for tp in (1, 2, 4)]
    assert per_rank == [57344, 28672, 14336]
    # 28 attention heads forbid 8 ranks; on a shape that allows them, 4 KV heads serve 8 ranks as they serve
    # 4.
    wide = {**QWEN, "num_attention_heads": 32, "hidden_size": 4096}
    assert kv_bytes_per_token(wide, "auto", 8, dtype="bfloat16") == kv_bytes_per_token(
        wide, "auto", 4, dtype="bfloat16"
    )
    with pytest.raises(UnsupportedPartition):
        kv_bytes_per_token(QWEN, "auto", 8)


def test_pipeline_ranks_share_the_layers() -> None:
    ranks = [
        kv_bytes_per_token(LLAMA, dtype="bfloat16", pipeline_parallel_size=5, pipeline_rank=rank)
        for rank in range(5)
    ]
    assert sum(ranks) == 131072 and max(ranks) - min(ranks) == 4096


def test_a_pool_in_blocks() -> None:
    block = kv_bytes_per_block(LLAMA, dtype="bfloat16")
    assert block == 16 * 131072
    assert kv_capacity(block * 10 - 1, LLAMA, dtype="bfloat16") == (9, 144)
    assert kv_capacity(block * 10, LLAMA, dtype="bfloat16") == (10, 160)
    assert kv_capacity(0, LLAMA) == (0, 0)
    blocks, tokens = kv_capacity(1 << 30, LLAMA, block_tokens=128, dtype="bfloat16")
    assert (blocks, tokens) == (64, 8192)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: kv_capacity(-1, LLAMA), "pool_bytes"),
        (lambda: kv_capacity(1, LLAMA, block_tokens=0), "block_size"),
        (lambda: kv_bytes_per_token(LLAMA, "int3"), "kv_cache_dtype"),
        (lambda: kv_blocks_per_request(LLAMA, 0), "max_model_len"),
    ],
)
def test_impossible_requests(call: Any, field: str) -> None:
    with pytest.raises(MalformedConfig) as refusal:
        call()
    assert refusal.value.field == field


def test_an_unknown_architecture() -> None:
    with pytest.raises(UnknownArchitecture):
        kv_bytes_per_token({**LLAMA, "architectures": ["MambaForCausalLM"]})


def test_a_window_caps_what_a_request_holds() -> None:
    windowed = {**catalogue.load_model("mistral-7b").config, "sliding_window": 4096}
    assert sliding_window(windowed) == 4096
    assert (
        kv_blocks_per_request(windowed, 32768, max_num_batched_tokens=2048)
        == (4096 - 1 + 2048 + 15) // 16 + 1
    )
    assert kv_blocks_per_request(windowed, 1000, max_num_batched_tokens=2048) == 64
    # Qwen2.5 declares a window and does not use it; Mistral v0.3 declares none.
    assert sliding_window(QWEN) is None and sliding_window(catalogue.load_model("mistral-7b").config) is None
    assert kv_blocks_per_request(QWEN, 32768, max_num_batched_tokens=2048) == 2048
