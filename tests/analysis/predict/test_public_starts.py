"""Predictions beside the public vLLM 0.19 starts on an H100 that the shipped calibration was fitted to."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from analysis.predict.answer import predict
from analysis.predict.prediction import GIB
from analysis.predict.request import Request

STARTS = Path(__file__).resolve().parents[4] / "shared" / "data" / "llmd_v0.19_h100_results_raw.csv"
pytestmark = pytest.mark.skipif(not STARTS.exists(), reason="the public data set is not at hand")

DENSE = ("Llama", "Qwen2.5", "Qwen3-8B", "gemma-2", "gemma-7b", "granite-3.", "phi-4", "Kimi-Dev", "CodeLlama")


def starts():
    with STARTS.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["status"] == "ok" and row["pp"] == "1" and any(name in row["model"] for name in DENSE):
                yield row


def predicted(row):
    return predict(Request.of({
        "model": row["model"], "vllm_version": "0.19.0", "gpu": "h100-80gb", "tensor_parallel_size": int(row["tp"]),
        "gpu_memory_utilization": float(row["gpu_memory_utilization"]), "max_model_len": int(row["max_model_len"]),
        "dtype": row["dtype"], "kv_cache_dtype": row["kv_cache_dtype"],
        "quantization": "fp8" if row["quantization"] == "fp8" else None,
    }))  # fmt: skip


def test_pools_tokens_and_intervals():
    found = [(row, predicted(row)) for row in starts()]
    assert len(found) >= 30
    errors = [p.kv_pool.value / GIB / float(row["kv_cache_memory_gib"]) - 1 for row, p in found]
    assert sum(map(abs, errors)) / len(errors) < 0.003 and max(map(abs, errors)) < 0.015
    tokens = [p.kv_cache_tokens.value / int(row["kv_cache_tokens"]) - 1 for row, p in found]
    assert sum(map(abs, tokens)) / len(tokens) < 0.003 and max(map(abs, tokens)) < 0.015
    # The log rounds to 0.01 GiB.
    inside = [
        p.kv_pool.low / GIB - 0.005 <= float(row["kv_cache_memory_gib"]) <= p.kv_pool.high / GIB + 0.005
        for row, p in found
    ]
    assert sum(inside) / len(inside) >= 0.85
    assert all(p.verdict != "does_not_start" and p.basis == "calibrated" for _, p in found)


def test_concurrency_is_what_the_log_says():
    for row in starts():
        p = predicted(row)
        assert p.full_length_requests.value == pytest.approx(float(row["max_concurrency"]), rel=0.015, abs=0.01)
