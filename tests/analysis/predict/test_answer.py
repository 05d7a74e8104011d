"""vLLM's accounting, with terms that are set here: every figure below can be added up by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from analysis import catalogue
from analysis.estimate import Estimate
from analysis.predict import answer, terms
from analysis.predict.facts import Facts, of_arithmetic
from analysis.predict.prediction import GIB, total
from analysis.predict.request import Request, RequestError

TERMS = {
    "activation": (1.89, 1.79, 1.99), "non_torch": (0.25, 0.25, 0.25), "cuda_graph": (0.9, 0.8, 1.1),
    "cuda_graph_estimate": (0.7, 0.5, 0.8), "context": (0.51, 0.51, 0.51), "runtime": (0.0, 0.0, 0.0),
}  # fmt: skip


@pytest.fixture
def measured(monkeypatch):
    """Terms in GiB: (value, low, high)."""
    known = dict(TERMS)

    def estimate(term, features):
        value, low, high = (one * GIB for one in known[term])
        return Estimate(value, low, high, "calibrated")

    calibration = SimpleNamespace(estimate=estimate, name="test")
    monkeypatch.setattr(terms, "select", lambda *_: SimpleNamespace(calibration=calibration, notes=("a note",)))
    return known


def ask(**fields):
    return answer.predict(Request.of({"model": "llama-3.1-8b", "gpu": "h100", "vllm_version": "0.19.0"} | fields))


def gib(size):
    return size / GIB


def test_llama_8b_on_an_h100_as_vllm_0_19_logged_it(measured):
    # 0.95 x 79.19 = 75.23; 75.23 - 14.99 - 1.89 - 0.25 = 58.1; the log: 58.11 GiB, 476,016 tokens in 29,751 blocks.
    p = ask(gpu_memory_utilization=0.95)
    assert gib(p.weights_bytes) == pytest.approx(14.99, abs=0.01)
    assert gib(p.kv_pool.value) == pytest.approx(58.11, abs=0.015)
    assert p.kv_bytes_per_token == 131072
    assert p.kv_cache_tokens.value == pytest.approx(476016, rel=3e-4)
    assert p.kv_cache_blocks * 16 == p.kv_cache_tokens.value
    assert p.full_length_requests.value == p.kv_cache_blocks / (131072 / 16)
    assert (p.verdict, p.basis) == ("fits", "calibrated")
    assert p.warnings == ("a note",)


def test_exactly_the_blocks_that_fit(measured):
    p = ask(kv_cache_memory_bytes=29751 * 16 * 131072 + 100, max_model_len=8192)
    assert (p.kv_cache_blocks, p.kv_cache_tokens.value) == (29751, 476016)
    assert p.kv_pool.low == p.kv_pool.high == p.kv_pool.value
    assert p.full_length_requests.value == pytest.approx(58.11, abs=0.005)


def test_the_pools_interval_follows_from_the_terms(measured):
    measured["non_torch"] = (0.25, 0.21, 0.55)
    p = ask()
    assert gib(p.kv_pool.value - p.kv_pool.low) == pytest.approx((0.1**2 + 0.3**2) ** 0.5)
    assert gib(p.kv_pool.high - p.kv_pool.value) == pytest.approx((0.1**2 + 0.04**2) ** 0.5)


def test_independent_errors_add_in_quadrature():
    made = total([Estimate(5, 2, 6, "calibrated")], [Estimate(1, 0.5, 5, "extrapolated")], exact=10)
    assert (made.value, made.low, made.high, made.basis) == (14, 9, 14 + 1.25**0.5, "extrapolated")


def test_graphs_come_out_of_the_budget_since_0_20(measured):
    old = ask(gpu_memory_utilization=0.9)
    new = ask(gpu_memory_utilization=0.9, vllm_version="0.20.0")
    assert gib(old.kv_pool.value - new.kv_pool.value) == pytest.approx(0.7)
    # The peak: budget, context and graphs, less what was set aside for them.
    assert gib(old.device_peak.value) == pytest.approx(0.9 * 79.19 + 0.51 + 0.9, abs=1e-6)
    assert gib(new.device_peak.value) == pytest.approx(0.9 * 79.19 + 0.51 + 0.9 - 0.7, abs=1e-6)


def test_eager_reserves_nothing(measured):
    assert ask(vllm_version="0.32.0", enforce_eager=True).cuda_graph_estimate.value == 0


def test_the_v2_runner_of_0_25_reserves_nothing_for_graphs(measured):
    assert ask(vllm_version="0.25.1").cuda_graph_estimate.value == 0
    assert ask(vllm_version="0.25.1", model="qwen3-30b-a3b").cuda_graph_estimate.value > 0


def test_a_pool_in_bytes_makes_the_peak_the_sum_of_its_parts(measured):
    p = ask(kv_cache_memory_bytes="4G", max_model_len=8192)
    assert gib(p.kv_pool.value) == 4
    assert gib(p.device_peak.value) == pytest.approx(gib(p.weights_bytes) + 4 + 0.25 + 1.89 + 0.9 + 0.51)


def test_fp8_cache_doubles_the_tokens(measured):
    assert ask(kv_cache_dtype="fp8").kv_bytes_per_token == 65536


def test_tensor_parallel_figures_are_those_of_one_gpu(measured):
    one, two = ask(), ask(tensor_parallel_size=2)
    assert two.kv_bytes_per_token * 2 == one.kv_bytes_per_token
    assert 0.5 < two.weights_bytes / one.weights_bytes < 0.51


def test_the_pipeline_rank_with_the_fewest_blocks_counts(measured):
    p = ask(model="qwen2.5-7b", pipeline_parallel_size=2)
    assert any("pipeline rank 1" in warning for warning in p.warnings)  # the head and as many layers
    assert p.kv_bytes_per_token == 14 * 2 * 4 * 128 * 2


@pytest.mark.parametrize(
    ("fields", "phase"),
    [
        ({"max_model_len": 200000}, "config"),
        ({"max_num_seqs": 64, "max_num_batched_tokens": 32}, "config"),
        ({"gpu_memory_utilization": 0.999}, "init_device"),
        ({"model": "qwen2.5-72b"}, "load"),
        ({"model": "llama-3.1-8b", "gpu_total_gib": 17.0}, "profile"),
        ({"model": "llama-3.1-8b", "gpu_total_gib": 18.0}, "kv_allocation"),
        ({"gpu": "rtx-4090", "max_model_len": 131072}, "kv_allocation"),
        ({"kv_cache_memory_bytes": "2G"}, "kv_allocation"),
        ({"kv_cache_memory_bytes": "70G", "gpu_memory_utilization": 0.5}, "kv_allocation"),
        ({"gpu_memory_utilization": 0.99}, "graph_capture"),
    ],
)
def test_what_keeps_it_from_starting(measured, fields, phase):
    p = ask(**fields)
    assert (p.verdict, p.obstacle and p.obstacle.phase) == ("does_not_start", phase)
    assert f"at {phase}" in p.reason
    assert p.all_warnings()[0].startswith("does not start: ")


def test_the_shortfall_is_what_is_missing(measured):
    p = ask(kv_cache_memory_bytes="2G")  # one request of 131,072 tokens needs 16 GiB
    assert gib(p.obstacle.shortfall_bytes) == pytest.approx(14)
    assert "about 16384 tokens would fit" in p.reason
    p = ask(gpu_memory_utilization=0.999)
    assert gib(p.obstacle.shortfall_bytes) == pytest.approx(0.51 - 0.001 * 79.19, abs=1e-6)


def test_one_block_is_set_aside_since_0_29(measured):
    pool = {"kv_cache_memory_bytes": 8192 * 131072, "max_model_len": 8192}
    assert ask(**pool, vllm_version="0.28.0").verdict == "tight"  # starts, with one request at once
    assert ask(**pool, vllm_version="0.29.0").verdict == "does_not_start"


def test_tight_where_the_interval_crosses(measured):
    # Pool of 1.1 GiB +- 0.2 for a request of 1 GiB.
    total_gib = (14.99 + 1.89 + 0.25 + 1.1) / 0.9
    measured["activation"] = (1.89, 1.69, 2.09)
    p = ask(gpu_total_gib=total_gib, gpu_memory_utilization=0.9, max_model_len=8192)
    assert p.verdict == "tight" and "at the end of the interval" in p.reason and p.obstacle is None
    p = ask(gpu_total_gib=total_gib - 0.25, gpu_memory_utilization=0.9, max_model_len=8192)
    assert p.verdict == "tight" and "within the error" in p.reason and p.obstacle.phase == "kv_allocation"
    p = ask(gpu_total_gib=total_gib - 0.5, gpu_memory_utilization=0.9, max_model_len=8192)
    assert p.verdict == "does_not_start"


def test_tight_where_fewer_than_two_full_requests_fit(measured):
    assert ask(kv_cache_memory_bytes="17G").verdict == "tight"
    assert ask(kv_cache_memory_bytes="32G").verdict == "fits"


def test_a_start_that_fails_still_says_what_it_would_have_needed(measured):
    p = ask(model="qwen2.5-72b")
    assert p.kv_pool.value < 0 and p.kv_cache_tokens.value == 0
    assert gib(p.device_peak.value) > 135


def test_auto_length_starts_with_what_fits(measured):
    p = ask(gpu="rtx-4090", max_model_len=-1)
    assert p.verdict == "fits"
    assert any("max_model_len auto becomes" in warning for warning in p.warnings)


def test_a_long_request_can_be_forced(measured):
    request = Request(model="llama-3.1-8b", gpu="h100", max_model_len=200000, allow_long_max_model_len=True)
    assert answer.predict(request).obstacle is None


def test_offloaded_weights_leave_the_gpu(measured):
    request = Request(model="llama-3.1-8b", gpu="h100", cpu_offload_gib=10.0)
    p = answer.predict(request)
    assert gib(p.weights_bytes) == pytest.approx(4.99, abs=0.01) and p.warnings


def test_blocks_can_be_given(measured):
    p = answer.predict(Request(model="llama-3.1-8b", gpu="h100", num_gpu_blocks_override=1000, max_model_len=8000))
    assert p.kv_cache_blocks == 1000


def test_a_hybrid_model_counts_its_windows(measured):
    p = ask(model="gemma-2-2b", max_model_len=8192)
    # 26 layers in two groups of 13: a block serves one group, so tokens are half of blocks x 16.
    assert p.kv_cache_tokens.value == p.kv_cache_blocks // 2 * 16
    assert p.settings.runner == "v1"


def test_no_gpu_is_an_assumption_that_is_said(measured):
    p = answer.predict(Request(model="qwen2.5-7b"))
    assert p.settings.device.name == "h100-80gb" and "no gpu is given" in p.warnings[0]


def test_a_gpu_of_ones_own(measured):
    p = ask(gpu=None, gpu_total_gib=96)
    assert (p.settings.device.name, p.settings.max_num_seqs) == ("unknown", 1024)
    p = ask(gpu="my-card", gpu_total_gib=24)
    assert (p.settings.device.name, p.settings.max_num_seqs) == ("my-card", 256)


def test_other_sources_of_facts(measured):
    doubled = []

    def facts(model, settings, rank):
        found = of_arithmetic(model, settings, rank)
        doubled.append(rank)
        return Facts(2 * found.weights_bytes, found.kv_bytes_per_token, found.plan)

    p = answer.predict(Request(model="llama-3.1-8b", gpu="h100"), facts)
    assert gib(p.weights_bytes) == pytest.approx(29.98, abs=0.02) and doubled == [0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gpu": "a770"}, "gpu 'a770' is not in the table"),
        ({"gpu": "cpu"}, "predictions are for GPUs"),
        ({"tensor_parallel_size": 3}, "tensor_parallel_size=3"),
        ({"model": None, "config": {"architectures": ["NobodyKnowsThis"], "hidden_size": 1, "num_attention_heads": 1,
          "num_hidden_layers": 1, "vocab_size": 1, "intermediate_size": 1}}, "NobodyKnowsThis"),
        ({"model": None, "config": {"architectures": ["LlamaForCausalLM"]}}, "is missing"),
        ({"model": None, "config": {}}, "architectures"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_one_sentence(measured, fields, said):
    with pytest.raises(RequestError) as refused:
        ask(**fields)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"vocab_size": None}, "vocab_size"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"quantization_config": 3}, "quantization_config"),
        ({"quantization_config": {"quant_method": "nobody"}}, "nobody"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": 7}}, "inline"),
        ({"rope_scaling": {"type": "linear", "factor": "x"}}, "rope_scaling"),
        ({"architectures": 5}, "architectures"),
        ({"torch_dtype": "int3"}, "int3"),
    ],
)
def test_a_malformed_config_is_one_sentence(measured, change, said):
    config = {**catalogue.load_model("llama-3.1-8b").config, **change}
    with pytest.raises(RequestError) as refused:
        ask(model=None, config=config)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_the_fields_of_an_answer(measured):
    names = ["weights_gib", "kv_bytes_per_token"]
    for term in ("activation_gib", "non_torch_gib", "cuda_graph_gib", "kv_pool_gib", "kv_cache_tokens",
                 "device_peak_gib"):  # fmt: skip
        names += [term, f"{term}_low", f"{term}_high"]
    fields = ask().fields()
    assert list(fields) == [*names, "verdict", "basis", "warnings"]
    assert json.loads(json.dumps(fields)) == fields
    assert fields["kv_pool_gib_low"] < fields["kv_pool_gib"] < fields["kv_pool_gib_high"]


def test_a_pool_that_is_too_small_is_not_divided_by(measured):
    config = {**catalogue.load_model("tiny-llama").config}
    p = answer.predict(Request(config=config, gpu_total_gib=0.5))
    assert p.verdict == "does_not_start" and p.full_length_requests.value == 0
