"""vLLM's own classes as the source of what is exact, with a stand-in for its process."""

from __future__ import annotations

import pytest

from analysis import oracle
from analysis.arithmetic.kv_groups import KVLayer
from analysis.predict.answer import predict
from analysis.predict.facts import Oracle, _asked
from analysis.predict.request import Request, RequestError

CONFIG = {
    "architectures": ["KnownToTheOracleAlone"], "hidden_size": 1024, "intermediate_size": 4096,
    "num_hidden_layers": 4, "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 32000,
    "max_position_embeddings": 4096,
}  # fmt: skip


def result(layers):
    tensor = oracle.OracleTensor("weight", (2**29,), "bfloat16", "parameter", 2**30)
    return oracle.OracleResult("X", "0.32.0", [tensor] * layers, [KVLayer("full", None, 2048)] * layers, [])


@pytest.fixture
def asked(monkeypatch):
    seen = []

    def ask(requests, *, platform="installed", python=None, **_):
        seen.append((platform, python, [request["pipeline_rank"] for request in requests]))
        if platform == "h100":
            return [oracle.OracleRefusal("no CUDA here")] * len(requests)
        return [result(4 // len(requests)) for _ in requests]

    _asked.cache_clear()
    monkeypatch.setattr(oracle, "ask", ask)
    return seen


def test_an_architecture_that_only_vllm_knows(asked):
    request = Request(config=CONFIG, gpu="l4")
    with pytest.raises(RequestError, match="KnownToTheOracleAlone"):
        predict(request)
    p = predict(request, Oracle("/opt/python"))
    assert p.weights_bytes == 4 * 2**30 and p.kv_bytes_per_token == 4 * 2048
    assert p.kv_cache_blocks == int(p.kv_pool.value) // (4 * 2048 * 16)
    assert asked == [("h100", "/opt/python", [0]), ("installed", "/opt/python", [0])]
    predict(request, Oracle("/opt/python"))
    assert len(asked) == 2  # remembered


def test_every_pipeline_rank_is_asked(asked):
    p = predict(Request(config=CONFIG, gpu="l4", pipeline_parallel_size=2), Oracle())
    assert p.weights_bytes == 2 * 2**30 and p.kv_bytes_per_token == 2 * 2048
    assert asked[-1] == ("installed", None, [0, 1])


def test_a_refusal_is_one_sentence(asked, monkeypatch):
    monkeypatch.setattr(oracle, "ask", lambda requests, **_: [oracle.OracleRefusal("vLLM says no")])
    with pytest.raises(RequestError, match="^vLLM says no$"):
        predict(Request(config=CONFIG, gpu="l4"), Oracle())
