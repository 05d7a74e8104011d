"""Requests that once ended in a stack trace: each is one sentence now, and its neighbours in a batch are answered."""

import json

import pytest

from analysis.predict import batch

SHAPE = {"architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 2,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 4096,
         "torch_dtype": "bfloat16"}  # fmt: skip
GOOD = {"id": "good", "model": "qwen2.5-7b", "gpu": "h100-80gb"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": "q" * 5000},
        {"model": "qwen2.5-7b", "max_num_seqs": "9" * 5000},
        {"model": "qwen2.5-7b", "kv_cache_memory_bytes": "9" * 400 + ".5g"},
        {"model": "qwen2.5-7b", "gpu_total_gib": int("9" * 400)},
        {"config": SHAPE | {"hidden_size": 1e308}},
        {"config": SHAPE | {"num_key_value_heads": 5}},
    ],
)
def test_an_absurd_request_is_an_error_line_and_the_next_is_answered(wrong):
    lines = [json.dumps({"id": "wrong", "gpu": "h100-80gb"} | wrong), json.dumps(GOOD)]
    refused, answered = (json.loads(line) for line in batch.answers(lines))
    assert set(refused) == {"id", "error"} and "internal" not in refused["error"]
    assert answered["id"] == "good" and answered["verdict"] == "fits"
