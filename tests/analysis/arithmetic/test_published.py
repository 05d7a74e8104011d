"""Published shapes: parameter counts of model cards, transformers' own modules, public starts on an H100."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

import pytest

from analysis import catalogue
from analysis.arithmetic import (
    ARCHITECTURES,
    kv_bytes_per_token,
    kv_capacity,
    text_config,
    weight_bytes,
    weight_tensors,
)
from analysis.arithmetic.checkpoint import checkpoint_tensors

HERE = Path(__file__).parent
PUBLISHED = json.loads((HERE / "published.json").read_text())
TINY = json.loads((HERE / "tiny.json").read_text())
H100 = HERE.resolve().parents[2].parent / "shared" / "data" / "llmd_v0.19_h100_results_raw.csv"
GIB = 1024**3


def unquantized(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "quantization_config"}


def test_every_architecture_is_proven_by_a_published_model() -> None:
    shown = {entry["config"]["architectures"][0] for entry in PUBLISHED.values()}
    shown |= {catalogue.load_model(name).config["architectures"][0] for name in catalogue.model_names()}
    assert shown == set(ARCHITECTURES)


@pytest.mark.parametrize("model", PUBLISHED)
def test_parameter_counts_are_the_published_ones(model: str) -> None:
    """As a checkpoint holds them: unpadded, a tied head once. Prediction modules are no part of the served model."""
    counted = sum(prod(tensor.shape) for tensor in checkpoint_tensors(unquantized(PUBLISHED[model]["config"])))
    assert counted / 1e9 == pytest.approx(PUBLISHED[model]["parameters_e9"], rel=1e-4, abs=6e-4)


# From the papers and model cards: bytes that one token takes in 16 bits.
KV_BYTES_PER_TOKEN = {
    "google/gemma-2-9b-it": 42 * 2 * 8 * 256 * 2,
    "deepseek-ai/DeepSeek-V2-Lite-Chat": 27 * (512 + 64) * 2,
    "deepseek-ai/DeepSeek-V3": 61 * (512 + 64) * 2,
    "openai/gpt-oss-20b": 24 * 2 * 8 * 64 * 2,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 32 * 2 * 8 * 128 * 2,
}


@pytest.mark.parametrize("model", KV_BYTES_PER_TOKEN)
def test_kv_bytes_per_token(model: str) -> None:
    config = PUBLISHED[model]["config"]
    assert kv_bytes_per_token(config) == KV_BYTES_PER_TOKEN[model]
    assert kv_bytes_per_token(config, "fp8") * 2 == KV_BYTES_PER_TOKEN[model]
    split = kv_bytes_per_token(config, tensor_parallel_size=8)
    assert split == KV_BYTES_PER_TOKEN[model] // (1 if "deepseek" in model else 8)


def test_a_multimodal_file_leaves_its_text_shape_to_defaults() -> None:
    config = PUBLISHED["google/gemma-3-4b-it"]["config"]
    assert "num_attention_heads" not in config["text_config"]
    text = text_config(config)
    assert (text["num_attention_heads"], text["num_key_value_heads"], text["head_dim"]) == (8, 4, 256)
    assert (text["vocab_size"], text["max_position_embeddings"]) == (262208, 131072)
    tower = sum(tensor.bytes for tensor in weight_tensors(config) if tensor.group == "vision")
    assert 0.83e9 < tower < 0.84e9, "SigLIP so400m in 16 bits, and the projector"


def rows() -> list[dict[str, str]]:
    with H100.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["model"] in PUBLISHED and row["weights_memory_gib"]]


def options(row: dict[str, str]) -> dict[str, Any]:
    return {"dtype": row["dtype"], "tensor_parallel_size": int(row["tp"])}


needs_h100 = pytest.mark.skipif(not H100.exists(), reason="the public starts are not at hand")


@needs_h100
def test_weights_of_public_h100_starts(record_property: Any) -> None:
    """Logged to 0.01 GiB: dense, mixtures, latent attention and multimodal."""
    errors: dict[str, float] = {}
    for row in rows():
        made = weight_bytes(PUBLISHED[row["model"]]["config"], vllm_version="0.19.0", **options(row))
        errors[f"{row['model']} tp{row['tp']}"] = abs(
            made.allocator_rounded / (float(row["weights_memory_gib"]) * GIB) - 1
        )
    exact = list(errors.values())
    record_property("mean_relative_error", sum(exact) / len(exact))
    assert len(exact) >= 20
    assert sum(exact) / len(exact) <= 0.0005 and max(exact) <= 0.0015, errors
    assert {"openai/gpt-oss-20b tp1", "openai/gpt-oss-20b tp2"} <= errors.keys()


def test_mxfp4_experts_on_the_triton_kernel_of_0_19() -> None:
    """Two stacks padded to 64 bytes by 64 rows, scales twice (as created, and padded to 256 rows), float32 biases."""
    config = PUBLISHED["openai/gpt-oss-20b"]["config"]

    def experts(version: str, **options: Any) -> dict[str, int]:
        made = weight_tensors(config, vllm_version=version, tensor_parallel_size=2, **options)
        return {t.name.rpartition(".")[2]: t.bytes for t in made if ".layers.0.mlp.experts." in t.name}

    inner = 1472  # 1440 on a rank
    assert experts("0.19.0") == {
        "w13_weight": 32 * 1472 * 2 * inner, "w2_weight": 32 * 768 * 2880,
        "w13_weight_scale": 32 * 90 * 2 * inner, "w2_weight_scale": 32 * 46 * 2880,
        "w13_swizzled_scale": 32 * 90 * 3072, "w2_swizzled_scale": 32 * 46 * 3072,
        "w13_bias": 32 * 2 * inner * 4, "w2_bias": 32 * 2880 * 4,
    }  # fmt: skip
    assert "w13_swizzled_scale" not in experts("0.20.0").keys() | experts("0.19.0", platform="cpu").keys()


@needs_h100
def test_kv_blocks_and_tokens_of_public_h100_starts() -> None:
    """The pool is logged to 0.01 GiB: blocks and printed tokens must lie within it, hybrids' too."""
    hybrids = 0
    for row in rows():
        pool, config = float(row["kv_cache_memory_gib"]) * GIB, PUBLISHED[row["model"]]["config"]
        low, high = (
            kv_capacity(int(pool + off * GIB), config, kv_dtype=row["kv_cache_dtype"], **options(row))
            for off in (-0.005, 0.005)
        )
        if row["kv_cache_blocks"]:
            assert low.blocks <= int(row["kv_cache_blocks"]) <= high.blocks + 1, row["log_file"]
        assert low.tokens <= int(row["kv_cache_tokens"]) <= high.tokens + 16, row["log_file"]
        hybrids += "gemma-2" in row["model"] or "gemma-3" in row["model"] or "gpt-oss" in row["model"]
    assert hybrids >= 8


AS_PUBLISHED = ("google/gemma-3-4b-it", "microsoft/Phi-4-mini-instruct", "microsoft/phi-2", "openai/gpt-oss-20b")
"""A few whole shapes beside the small ones: transformers takes seconds for each of the large mixtures."""

COUNT = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch, transformers
transformers.logging.set_verbosity_error()
for name, config in json.load(open(sys.argv[1])).items():
    kind = dict(config).pop("model_type")
    made = transformers.AutoConfig.for_model(kind, **{k: v for k, v in config.items() if k != "model_type"})
    with torch.device("meta"):
        model = getattr(transformers, config["architectures"][0])(made)
    print(json.dumps([name, sum(p.numel() for p in model.parameters())]), flush=True)
"""


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="transformers is not installed")
def test_transformers_own_modules_have_as_many_parameters(tmp_path: Path) -> None:
    """Every architecture, small and as published, built on the meta device by the library that defines it."""
    wanted = {name: unquantized(config) for name, config in TINY.items()}
    wanted |= {name: unquantized(PUBLISHED[name]["config"]) for name in AS_PUBLISHED}
    small = [name for name in catalogue.model_names() if name.startswith("tiny-")]
    wanted |= {name: catalogue.load_model(name).config for name in small}
    (tmp_path / "configs.json").write_text(json.dumps(wanted))
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(tmp_path / "configs.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counted = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    assert counted.keys() == wanted.keys()
    ours = {
        name: sum(prod(t.shape) for t in checkpoint_tensors({"torch_dtype": "bfloat16", **config}) if routing(t.name))
        for name, config in wanted.items()
    }
    assert {name: (ours[name], counted[name]) for name in wanted if ours[name] != counted[name]} == {}
    assert {config["architectures"][0] for config in wanted.values()} == set(ARCHITECTURES)


def routing(name: str) -> bool:
    """DeepSeek V3's correction bias is a buffer in transformers."""
    return not name.endswith("e_score_correction_bias")
