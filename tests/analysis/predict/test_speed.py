"""Throughput and latency in a prediction: table, JSON and batch; bad loads; what is said where nothing can be."""

from __future__ import annotations

import json

import pytest

from analysis import gpus
from analysis.predict import cli
from analysis.predict.answer import predict
from analysis.predict.batch import answers
from analysis.predict.command import parse_command
from analysis.predict.render import text
from analysis.predict.request import Request, RequestError

LOAD = {"concurrency": 32, "input_tokens": 1024, "output_tokens": 256}


def ask(**values):
    given = {"model": "llama-3.1-8b", "gpu": "h100-80gb", "max_model_len": 8192, **LOAD, **values}
    return predict(Request.of({name: value for name, value in given.items() if value is not None}))


def test_without_a_load_nothing_is_said_of_speed():
    found = ask(concurrency=None, input_tokens=None, output_tokens=None)
    assert found.speed is None and "tokens/s" not in text(found) and "ttft_s" not in found.fields()
    assert "load" not in found.details()


def test_a_load_adds_speed_and_changes_no_memory():
    plain, loaded = ask(concurrency=None, input_tokens=None, output_tokens=None).fields(), ask().fields()
    assert {name: loaded[name] for name in plain if name != "warnings"} == {
        name: value for name, value in plain.items() if name != "warnings"
    }  # fmt: skip
    for name in ("output_tokens_per_s", "ttft_s", "tpot_s"):
        assert 0 < loaded[f"{name}_low"] < loaded[name] < loaded[f"{name}_high"], name
    assert loaded["throughput_basis"] == "extrapolated"  # no calibration of ours is shipped for GPUs
    assert any("none measured by this project" in warning for warning in loaded["warnings"])


def test_the_formula_by_hand_on_the_public_coefficients():
    """One sequence of Llama-3.1-8B on one H100: 4.7 ms + 15.0 GB / 3.35 TB/s + 1152 tokens of KV + 64 us."""
    found = ask(concurrency=1)
    weights = 2 * (6979321856 + 128256 * 4096 + 65 * 4096)
    context = 1024 + 128
    by_hand = 0.0047 + weights / 3.35e12 + 1.235 * context * 131072 / 3.35e12 + 64e-6
    assert found.speed.tpot.value == pytest.approx(by_hand, rel=1e-4)


def test_intervals_widen_with_the_distance():
    def width(**values):
        tpot = ask(tensor_parallel_size=2, **values).speed.tpot
        return tpot.high / tpot.low

    near = width(vllm_version="0.12.0", model="qwen2.5-coder-32b")
    assert near == pytest.approx(2.718281828 ** (2 * 0.1), rel=1e-6)
    farther = [width(vllm_version="0.12.0", model="qwen2.5-coder-32b", **more) for more in (
        {"gpu": "a100-80gb"}, {"quantization": "awq"})]  # fmt: skip
    assert all(one > 1.2 * near for one in farther)
    assert width(vllm_version="0.32.0", model="qwen2.5-coder-32b") > 1.3 * near


def test_the_kv_pool_caps_the_requests_in_service():
    found = ask(gpu="l4", concurrency=64, input_tokens=4000)
    assert found.speed.limited_by == "kv_capacity" and found.speed.bound == "KV capacity"
    blocks = found.kv_cache_blocks - 1
    assert found.speed.in_service == pytest.approx(blocks / -(-(4000 + 128) // 16), rel=1e-6)
    shown = text(found)
    assert "all that the KV pool holds" in shown and "bound by KV capacity" in shown
    assert ask(max_num_seqs=8).speed.limited_by == "max_num_seqs" and "max-num-seqs admits" in text(ask(max_num_seqs=8))
    # fp8 halves the cache: more fit, and each step reads less.
    half = ask(gpu="l4", concurrency=64, input_tokens=4000, kv_cache_dtype="fp8")
    assert half.speed.in_service > 1.9 * found.speed.in_service
    assert half.speed.tokens_per_s.value > found.speed.tokens_per_s.value


def test_an_open_loop_delivers_its_rate_or_says_that_it_cannot():
    found = ask(concurrency=None, rate=2.0)
    assert found.speed.tokens_per_s.value == pytest.approx(512) and not found.speed.saturated
    shown = text(found)
    assert "at 2 requests/s, 1,024 tokens in, 256 out" in shown and "saturates at, requests/s" in shown
    flooded = ask(concurrency=None, rate=900.0)
    assert flooded.speed.saturated and flooded.fields()["ttft_s"] is None and "grows without end" in text(flooded)
    assert any(warning.startswith("saturated: 900 requests/s are asked") for warning in flooded.warnings)
    json.dumps({**flooded.fields(), **flooded.details()}, allow_nan=False)


def test_an_interval_that_reaches_saturation_has_no_upper_end():
    most = ask(concurrency=None, rate=1.0).speed.most_requests_per_s
    found = ask(concurrency=None, rate=0.8 * most)
    assert not found.speed.saturated and found.fields()["ttft_s_high"] is None and "no end" in text(found)
    assert found.fields()["output_tokens_per_s_low"] < found.fields()["output_tokens_per_s"]


@pytest.mark.parametrize(("values", "sentence"), [
    ({"output_tokens": None}, "a load needs its lengths: output_tokens missing"),
    ({"input_tokens": None, "output_tokens": None}, "input_tokens and output_tokens missing"),
    ({"rate": 1.0}, "concurrency and rate are two loads"),
    ({"concurrency": None}, "make a load only with concurrency or rate"),
    ({"concurrency": 0}, "concurrency is 0; it must be 1 or more"),
    ({"concurrency": 1.5}, "concurrency is 1.5, not a whole number"),
    ({"concurrency": None, "rate": 0}, "rate is 0; it must be above 0"),
    ({"concurrency": None, "rate": "fast"}, "rate is 'fast', not a number"),
    ({"input_tokens": 8000}, "input_tokens 8000 and output_tokens 256 are 8256 tokens, more than max_model_len 8192"),
    ({"input_tokens": True}, "input_tokens is True, not a whole number"),
])  # fmt: skip
def test_a_bad_load_is_one_sentence(values, sentence):
    with pytest.raises(RequestError, match=sentence) as refused:
        ask(**values)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("values", "reason"), [
    ({"model": "qwen2.5-72b", "gpu": "l4"}, "no throughput: the engine does not start"),
    ({"gpu": "mystery", "gpu_total_gib": 80}, "no throughput: the peak bandwidth and FLOPs of mystery are not known"),
    ({"kv_cache_memory_bytes": 2**20 * 130}, "no throughput: "),
])  # fmt: skip
def test_where_nothing_can_be_said_it_says_why(values, reason):
    found = ask(**values)
    assert found.speed is None and any(warning.startswith(reason) for warning in found.warnings)


def test_every_gpu_of_the_table_has_peaks_with_a_source():
    for gpu in gpus.GPUS:
        assert gpu.sheet is not None and gpu.sheet.source.startswith("NVIDIA"), gpu.name
        assert 3e11 <= gpu.sheet.bandwidth_bytes_per_s <= 8e12 and 6e13 <= gpu.sheet.flops_16bit_per_s <= 2.3e15


def test_experts_latent_attention_pipelines_and_offloading():
    for model in ("qwen3-30b-a3b", "deepseek-v2-lite", "gpt-oss-20b", "gemma-3-4b"):
        assert ask(model=model).speed.tokens_per_s.value > 100, model
    split = ask(pipeline_parallel_size=2)
    assert split.speed.tpot.value > 0 and any("pipeline parallelism" in warning for warning in split.warnings)
    command = "vllm serve llama-3.1-8b --cpu-offload-gb 4 --max-model-len 8192"
    offloaded = predict(parse_command(command, {"gpu": "h100", **LOAD}))
    assert any("cross the bus" in warning for warning in offloaded.warnings)


def test_a_load_beside_a_command_line_quoted_or_not(capsys):
    words = ["vllm", "serve", "llama-3.1-8b", "--concurrency", "32", "--gpu", "h100", "--input-tokens=1024",
             "--max-num-seqs", "16", "--output-tokens", "256", "--json"]  # fmt: skip
    import argparse

    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    assert cli.run(parser.parse_args(cli.rearranged(words))) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["load"] == {"concurrency": 32, "rate_per_s": None, "input_tokens": 1024, "output_tokens": 256}
    assert found["requests_in_service"] == 16 and found["in_service_limited_by"] == "max_num_seqs"
    assert sum(found["time_shares"].values()) == pytest.approx(1, abs=1e-3)


def test_a_batch_answers_loads_line_by_line():
    base = {"model": "llama-3.1-8b", "gpu": "h100", "max_model_len": 8192}
    lines = [
        {"id": 1, **base}, {"id": 2, **base, **LOAD}, {"id": 3, **base, "concurrency": 4},
        {"id": 4, **base, **LOAD, "concurrency": None, "rate": 1},
    ]  # fmt: skip
    plain, loaded, bad, open_loop = map(json.loads, answers(map(json.dumps, lines)))
    assert "tpot_s" not in plain and loaded["tpot_s"] > 0 and loaded["bound"]
    assert open_loop["output_tokens_per_s"] == 256
    assert set(bad) == {"id", "error"} and "lengths" in bad["error"]
