"""Bytes and FLOPs of a step, against numbers counted by hand."""

from __future__ import annotations

import pytest

from analysis import arithmetic, catalogue
from analysis.predict.models import resolve
from analysis.predict.request import Request
from analysis.throughput.work import Layers, Work, work_of


def config(name: str, quantization: str | None = None) -> dict:
    return dict(resolve(Request(model=name, quantization=quantization)).config)


def test_llama_8b_by_hand():
    """h 4096, 32 layers, 32 heads of 128, 8 KV heads, MLP 14336, vocabulary 128256, untied, bfloat16."""
    work = work_of(config("llama-3.1-8b"))
    layer = 4096 * (32 + 8 + 8) * 128 + 32 * 128 * 4096 + 3 * 4096 * 14336
    norms = 32 * 2 * 4096 + 4096
    assert work.token_flops == 2 * 32 * layer and work.head_flops == 2 * 128256 * 4096
    assert work.weight_bytes(1) == work.weight_bytes(500) == 2 * (32 * layer + norms + 128256 * 4096)
    assert work.kv_bytes(1) == 131072 and work.kv_bytes(1000) == 131072 * 1000
    assert work.decode_flops(100) == work.token_flops + work.head_flops + 4 * 32 * 128 * 32 * 100
    # Causal attention looks at half of the square.
    assert work.prefill_flops(1000) == pytest.approx(
        1000 * work.token_flops + work.head_flops + 32 * 4 * 32 * 128 * 1000**2 / 2
    )


def test_tensor_parallelism_splits_what_a_rank_reads_and_computes():
    one, two = (work_of(config("llama-3.1-8b"), tensor_parallel_size=tp) for tp in (1, 2))
    assert two.token_flops == one.token_flops / 2 and two.kv_bytes(9) == one.kv_bytes(9) / 2
    assert two.pair_flops == one.pair_flops / 2
    assert two.weight_bytes(1) == pytest.approx(one.weight_bytes(1) / 2, rel=1e-3)  # the norms are replicated


def test_quantized_weights_are_read_as_loaded_and_multiplied_in_full():
    plain, packed = work_of(config("mistral-7b")), work_of(config("mistral-7b", "awq"))
    assert packed.token_flops == plain.token_flops
    assert 0.25 < packed.weight_bytes(1) / plain.weight_bytes(1) < 0.30  # 4 bits, scales, a 16-bit head
    assert work_of(config("mistral-7b"), kv_cache_dtype="fp8").kv_bytes(1) == plain.kv_bytes(1) / 2


def test_a_tied_table_is_read_as_the_head_and_an_untied_one_by_rows():
    tied, untied = config("qwen2.5-0.5b"), config("qwen2.5-7b")
    for given, skipped in ((tied, 0), (untied, 152064 * 3584 * 2)):
        sizes = arithmetic.weight_bytes(given)
        expected = sizes.total - sizes.by_group["rope"] - sizes.by_group["kv_scales"] - skipped
        assert work_of(given).weight_bytes(1) == expected


def test_a_mixture_reads_the_experts_that_its_tokens_chose():
    work = work_of(config("mixtral-8x7b"))
    one = 3 * 4096 * 14336 * 2 * 32  # one expert of every layer
    assert work.expert_bytes == 8 * one and work.chosen_share == 0.25
    assert work.weight_bytes(1) - work.dense_bytes == pytest.approx(2 * one)
    assert work.weight_bytes(2) - work.dense_bytes == pytest.approx(8 * one * (1 - 0.75**2))
    assert work.weight_bytes(10**4) == pytest.approx(work.dense_bytes + 8 * one)
    assert work.token_flops == pytest.approx(2 * 12.75e9, rel=0.02)  # Mixtral's 12.9 billion active, less the embedding


def test_latent_attention_caches_one_vector():
    work = work_of(config("deepseek-v2-lite"))
    assert work.kv_bytes(1) == 27 * (512 + 64) * 2 == 31104
    assert work.decode_pair_flops == 2 * 16 * (2 * 512 + 64) and work.pair_flops == 2 * 16 * (128 + 64 + 128)


def test_a_sliding_layer_looks_no_further_than_its_window():
    work = work_of(config("gemma-2-9b"))
    per_layer = 2 * 8 * 256 * 2
    assert work.kv_bytes(1000) == 42 * per_layer * 1000
    assert work.kv_bytes(8192) == 21 * per_layer * (8192 + 4096)
    windowed = Work(0, 0, 0.0, 0.0, 0.0, 1.0, 1.0, (Layers(1, 10, 1),))
    assert windowed.prefill_flops(100) == 100 * 10 - 50


def test_the_small_models_are_known_to_the_cpu_engine_too():
    for name in ("tiny-llama", "tiny-qwen2", "tiny-qwen3-moe"):
        shape = catalogue.load_model(name).config
        assert work_of(shape, dtype="float32", platform="cpu").weight_bytes(4) > 10**7


def test_an_unknown_architecture_is_refused():
    with pytest.raises(arithmetic.UnknownArchitecture):
        work_of({"architectures": ["Nobody"]})
