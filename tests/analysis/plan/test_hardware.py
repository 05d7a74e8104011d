"""What a card can run under vLLM at all: by format, type and compute capability, and as vLLM's own source has it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from analysis import catalogue, gpus
from analysis.plan import hardware
from analysis.predict import models
from analysis.predict.request import Request


def request(gpu: str | None, quantization: str | None, model: str = "qwen2.5-7b", **fields) -> Request:
    return Request.of({"model": model, "quantization": quantization, "gpu": gpu, **fields})


@pytest.mark.parametrize(("gpu", "quantization", "runs"), [
    ("96gb", "int8-w8a8", False), ("rtx-5090", "int8-w8a8", False), ("b200", "int8-w8a8", False),
    ("h100", "int8-w8a8", True), ("a100-80gb", "int8-w8a8", True), ("t4", "int8-w8a8", True),
    ("v100-32gb", "int8-w8a8", False), ("v100-32gb", "awq", False), ("v100-32gb", "w4a16", False),
    ("v100-32gb", "gptq", True), ("v100-32gb", "fp8", False), ("v100-32gb", "bf16", True), ("t4", "awq", True),
    ("t4", "fp8", True), ("t4", "fp8-dynamic", True), ("a100-80gb", "fp8", True), ("96gb", "fp8", True),
    ("96gb", "fp8-block", True), ("96gb", "awq", True), ("96gb", "w4a16", True), ("96gb", None, True),
])  # fmt: skip
def test_what_runs_on_a_card_follows_its_compute_capability(gpu, quantization, runs):
    why = hardware.lacking(request(gpu, quantization))
    assert (why == "") == runs, why
    if not runs:
        card = gpus.find(gpu)
        assert card.title in why and f"{card.capability[0]}.{card.capability[1]}" in why and quantization in why


def test_a_checkpoint_is_known_by_its_own_config_and_not_only_by_the_name_of_a_format():
    composed = catalogue.compose(catalogue.load_model("qwen2.5-7b").config, catalogue.load_quantization("int8-w8a8"))
    found = Request.of({"config": composed, "gpu": "96gb"})
    assert hardware.format_of(models.resolve(found).config) == "int8-w8a8"
    assert hardware.lacking(found).startswith("int8-w8a8 does not run on")


def test_every_format_of_the_catalogue_is_judged():
    plain = set(models.PLAIN_DTYPES)
    for name in set(catalogue.quantization_names()) - plain:
        config = models.resolve(request("h100", name)).config
        assert hardware.format_of(config) in hardware.RULES, name


def test_of_a_card_that_is_not_in_the_table_nothing_is_said():
    assert hardware.lacking(request(None, "int8-w8a8", gpu_total_gib=96.0)) == ""
    assert hardware.lacking(request("some-card", "int8-w8a8", gpu_total_gib=96.0)) == ""


def test_the_nearest_format_that_runs_is_named():
    assert hardware.nearest(request("96gb", "int8-w8a8")) == "fp8"
    assert hardware.nearest(request("v100-32gb", "int8-w8a8")) == "gptq-int8"
    assert hardware.nearest(request("v100-32gb", "awq")) == "gptq"
    assert hardware.nearest(request("h100", "int8-w8a8")) is None


def test_types_that_a_card_lacks():
    assert hardware.dtype_flag("bf16", "t4") == "half" and "no bfloat16" in hardware.half_note("bf16", "t4")
    assert hardware.dtype_flag("bf16", "a100-80gb") == "bfloat16" and not hardware.half_note("bf16", "a100-80gb")
    assert hardware.dtype_flag("fp16", "t4") == "float16" and hardware.dtype_flag("awq", "t4") is None
    assert "gemma2 models do not run in 16 bits" in hardware.lacking(request("t4", "bf16", "gemma-2-9b"))
    assert "fp8 KV cache" in hardware.lacking(request("t4", "awq", kv_cache_dtype="fp8"))
    assert hardware.lacking(request("a100-80gb", "awq", kv_cache_dtype="fp8")) == ""
    assert "16 bits" in hardware.slower_note("fp8", "a100-80gb") and not hardware.slower_note("fp8", "l4")


SPEC = importlib.util.find_spec("vllm")


@pytest.mark.skipif(SPEC is None, reason="vLLM is not installed")
@pytest.mark.parametrize(("file", "format_name"), [
    ("auto_awq.py", "awq"), ("auto_gptq.py", "gptq"), ("fp8.py", "fp8"), ("mxfp4.py", "mxfp4"),
    ("compressed_tensors/schemes/compressed_tensors_w8a8_int8.py", "int8-w8a8"),
    ("compressed_tensors/schemes/compressed_tensors_w8a16_fp8.py", "fp8"),
    ("compressed_tensors/schemes/compressed_tensors_wNa16.py", "w4a16"),
])  # fmt: skip
def test_the_least_capability_is_vllms_own(file, format_name):
    assert SPEC is not None and SPEC.origin is not None
    source = (Path(SPEC.origin).parent / "model_executor/layers/quantization" / file).read_text(encoding="utf-8")
    found = re.search(r"def get_min_capability\(cls\)[^\n]*:\n(?:\s*#[^\n]*\n)*\s*return (\d+)", source)
    assert found is not None
    major, minor = hardware.RULES[format_name].least
    assert int(found[1]) == 10 * major + minor
