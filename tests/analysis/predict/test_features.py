from __future__ import annotations

import json

import pytest

from analysis import catalogue
from analysis.arithmetic import MalformedConfig, UnsupportedPartition
from analysis.predict.features import features_of, features_of_row, graph_count

SETTINGS = {"max_num_seqs": 64, "max_num_batched_tokens": 2048, "max_model_len": 4096}


def test_a_dense_model():
    f = features_of(catalogue.load_model("llama-3.1-8b").config, {**SETTINGS, "cudagraph_capture_sizes": [1, 64, 128]})
    assert (f.hidden_size, f.intermediate_size, f.layers, f.vocab_size) == (4096, 14336, 32, 128256)
    assert (f.attention_heads, f.kv_heads, f.head_dim, f.experts, f.dtype_bytes) == (32, 8, 128, 0, 2)
    assert (f.graph_count, f.graph_max_size, f.quantization) == (5, 128, "none")


def test_a_mixture_counts_the_experts_a_token_takes():
    f = features_of(catalogue.load_model("qwen3-30b-a3b").config, SETTINGS)
    assert (f.experts, f.intermediate_size) == (128, 8 * 768)


def test_latent_attention_and_shared_experts():
    config = {
        "architectures": ["DeepseekV2ForCausalLM"], "hidden_size": 2048, "intermediate_size": 10944,
        "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
        "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 102400,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "kv_lora_rank": 512,
    }  # fmt: skip
    f = features_of(config, SETTINGS)
    assert (f.intermediate_size, f.head_dim) == (8 * 1408, 192)


def test_a_multimodal_config_is_read_at_its_text_part():
    text = dict(catalogue.load_model("qwen2.5-7b").config)
    wrapped = {"architectures": ["SomethingForConditionalGeneration"], "text_config": text, "torch_dtype": "float32"}
    f = features_of(wrapped, {**SETTINGS, "dtype": "float32"})
    assert (f.architecture, f.hidden_size, f.dtype_bytes) == ("SomethingForConditionalGeneration", 3584, 4)


def test_a_pipeline_rank_has_its_own_layers():
    config = catalogue.load_model("llama-3.1-8b").config
    split = {**SETTINGS, "pipeline_parallel_size": 3}
    layers = [features_of(config, {**split, "pipeline_rank": rank}).layers for rank in range(3)]
    assert layers == [11, 11, 10]  # the last one carries the norm and the head
    with pytest.raises(UnsupportedPartition):
        features_of(config, {**split, "pipeline_rank": 3})


@pytest.mark.parametrize(
    ("mode", "count"),
    [("NONE", 0), ("PIECEWISE", 4), ("FULL", 4), ("FULL_DECODE_ONLY", 2), ("FULL_AND_PIECEWISE", 6)],
)
def test_graphs_by_mode(mode, count):
    assert graph_count(mode, [1, 8, 16, 32], 8) == count


def test_eager_has_no_graphs():
    eager = {**SETTINGS, "cudagraph_capture_sizes": [1, 2], "enforce_eager": True}
    f = features_of(catalogue.load_model("qwen2.5-7b").config, eager)
    assert (f.graph_count, f.graph_max_size) == (0, 0)


def test_what_the_engine_resolved_comes_before_what_was_asked():
    row = {
        "run_id": "r", "model_config_json": json.dumps(catalogue.load_model("tiny-llama").config),
        "effective_config_json": json.dumps({
            "max_num_seqs": 16, "cudagraph_mode": "CUDAGraphMode.PIECEWISE", "cudagraph_capture_sizes": [1, 2, 4],
            "quantization": "awq_marlin", "dtype": "torch.float16", "enforce_eager": False, "max_model_len": 1024,
        }),
        "max_num_seqs": 32, "max_num_batched_tokens": None, "effective_max_num_batched_tokens": 512,
        "max_model_len": None, "dtype": "auto", "enforce_eager": None, "tensor_parallel_size": None,
    }  # fmt: skip
    f = features_of_row(row)
    assert (f.max_num_seqs, f.max_num_batched_tokens, f.max_model_len) == (16, 512, 1024)
    assert (f.graph_count, f.graph_max_size, f.quantization, f.dtype_bytes) == (3, 4, "awq", 2)


def test_a_row_without_a_setting_names_it():
    row = {"run_id": "r7", "model_config_json": json.dumps(catalogue.load_model("tiny-llama").config)}
    with pytest.raises(KeyError, match="max_num_seqs of run r7"):
        features_of_row(row)


def test_a_malformed_config_names_the_field():
    with pytest.raises(MalformedConfig, match="num_attention_heads"):
        features_of({"architectures": ["X"], "hidden_size": 64}, SETTINGS)
