"""vLLM's own classes as an oracle: what it answers, for architectures nobody wrote down here, and how it refuses."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis import catalogue
from analysis.arithmetic import KVLayer, KVPlan, UnknownArchitecture, kv_layers, weight_bytes, weight_tensors
from analysis.oracle import ROOT, OracleRefusal, OracleResult, ask, vllm_oracle

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
LLAMA = {**catalogue.load_model("tiny-llama").config, "torch_dtype": "bfloat16"}
# No layout is registered for these.
OLMOE = {
    "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "torch_dtype": "bfloat16", "hidden_size": 512,
    "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4,
    "vocab_size": 2048, "max_position_embeddings": 2048, "num_experts": 8, "num_experts_per_tok": 2,
    "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip
MAMBA = {
    "architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "torch_dtype": "bfloat16", "hidden_size": 256,
    "num_hidden_layers": 2, "num_heads": 8, "head_dim": 64, "state_size": 64, "n_groups": 1, "conv_kernel": 4,
    "expand": 2, "chunk_size": 64, "vocab_size": 2048, "hidden_act": "silu", "layer_norm_epsilon": 1e-5,
    "use_bias": False, "use_conv_bias": True, "rms_norm": True, "tie_word_embeddings": False,
}  # fmt: skip
REQUESTS: dict[str, dict[str, Any]] = {
    "llama": {"config": LLAMA},
    "llama tp2": {"config": LLAMA, "tensor_parallel_size": 2},
    "llama last of two": {"config": LLAMA, "pipeline_parallel_size": 2, "pipeline_rank": 1},
    "llama fp8 while loading": {"config": LLAMA, "quantization": "fp8"},
    "llama in float32": {"config": LLAMA, "dtype": "float32", "max_model_len": 512},
    "olmoe": {"config": OLMOE},
    "olmoe tp2": {"config": OLMOE, "tensor_parallel_size": 2},
    "mamba": {"config": MAMBA},
    "nobody": {"config": {**LLAMA, "architectures": ["NobodyForCausalLM"], "model_type": "nobody"}},
    "unsplittable": {"config": LLAMA, "tensor_parallel_size": 3},
}


@pytest.fixture(scope="module")
def answers() -> dict[str, OracleResult | OracleRefusal]:
    """All questions in one process."""
    return dict(zip(REQUESTS, ask(list(REQUESTS.values())), strict=True))


@needs_vllm
@pytest.mark.parametrize("name", ["llama", "llama tp2", "llama last of two", "llama in float32"])
def test_the_oracle_agrees_with_the_arithmetic(answers: dict[str, Any], name: str) -> None:
    request, answer = dict(REQUESTS[name]), answers[name]
    options = {key: value for key, value in request.items() if key not in ("config", "max_model_len")}
    made = weight_bytes(LLAMA, platform="cpu", **options)
    assert isinstance(answer, OracleResult) and answer.architecture == "LlamaForCausalLM"
    assert (answer.parameter_bytes, answer.buffer_bytes) == (made.parameters, made.buffers)
    assert answer.allocator_rounded_bytes >= made.total
    assert answer.kv_layers == kv_layers(LLAMA, **options)
    assert answer.kv_bytes_per_token == sum(layer.bytes_per_token for layer in answer.kv_layers)
    assert answer.vllm_version and not answer.other_caches


@needs_vllm
def test_an_architecture_without_a_layout_is_answered(answers: dict[str, Any]) -> None:
    with pytest.raises(UnknownArchitecture, match="OlmoeForCausalLM.*--oracle vllm"):
        weight_tensors(OLMOE)
    whole, half = answers["olmoe"], answers["olmoe tp2"]
    experts = 2 * 8 * 3 * 512 * 256 * 2
    assert experts < whole.parameter_bytes < 1.8 * experts
    assert 0.45 * whole.parameter_bytes < half.parameter_bytes < 0.6 * whole.parameter_bytes
    assert whole.kv_layers == [KVLayer("full", None, 2 * 4 * 64 * 2)] * 2
    assert half.kv_bytes_per_token * 2 == whole.kv_bytes_per_token
    assert KVPlan.of(whole.kv_layers, 16).bytes_per_block == 2 * 16 * 1024


@needs_vllm
def test_quantizing_while_loading_is_the_engine_s_decision(answers: dict[str, Any]) -> None:
    answer = answers["llama fp8 while loading"]
    if isinstance(answer, OracleRefusal):
        pytest.skip(str(answer))
    assert answer.parameter_bytes <= answers["llama"].parameter_bytes


@needs_vllm
def test_a_state_is_no_token(answers: dict[str, Any]) -> None:
    answer = answers["mamba"]
    if isinstance(answer, OracleRefusal):
        pytest.skip(str(answer))
    assert answer.kv_layers == [] and answer.kv_bytes_per_token == 0
    assert len(answer.other_caches) == 2 and all(c.kind == "state" and c.page_bytes for c in answer.other_caches)


@needs_vllm
@pytest.mark.parametrize(("name", "named"), [("nobody", "NobodyForCausalLM"), ("unsplittable", "LlamaForCausalLM")])
def test_what_vllm_refuses_is_refused_in_one_sentence(answers: dict[str, Any], name: str, named: str) -> None:
    answer = answers[name]
    assert isinstance(answer, OracleRefusal)
    assert named in str(answer) and "\n" not in str(answer) and len(str(answer)) < 500


def test_a_python_that_does_not_run() -> None:
    with pytest.raises(OracleRefusal, match="--oracle-python, /nowhere/python, does not run"):
        vllm_oracle(LLAMA, python="/nowhere/python")


def test_a_python_without_vllm(tmp_path: Path) -> None:
    """A real interpreter whose site-packages are left out."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(OracleRefusal, match="vLLM is not installed for .*--oracle-python"):
        vllm_oracle(LLAMA, python=str(bare))


@needs_vllm
def test_an_oracle_that_takes_too_long() -> None:
    with pytest.raises(OracleRefusal, match="within 0.01 s"):
        vllm_oracle(LLAMA, timeout_s=0.01)


def test_importing_needs_the_standard_library_only() -> None:
    code = (
        "import sys; import analysis.oracle; "
        "own = {n.split('.')[0] for n in sys.modules} - set(sys.stdlib_module_names); print(sorted(own))"
    )
    shown = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(json.loads(shown.stdout.replace("'", '"'))) <= {"__main__", "analysis"}
