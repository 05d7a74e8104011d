"""Rows that the formula itself made: known coefficients, several models and loads, a little noise."""

from __future__ import annotations

import json
import random

from analysis import catalogue
from analysis.throughput.calibration import units
from analysis.throughput.observations import Observation, Origin, read
from analysis.throughput.roofline import COEFFICIENTS

MODELS = ("tiny-llama", "tiny-mistral", "tiny-qwen2", "tiny-qwen3")
GPU_MODELS = ("qwen2.5-0.5b", "qwen2.5-7b", "llama-3.1-8b", "qwen2.5-14b")
CPU_TRUTH = dict(zip(COEFFICIENTS, (2e-3, 0.08, 0.2, 5.0, 3.0, 2e-5, 4e-4), strict=True))
GPU_TRUTH = dict(zip(COEFFICIENTS, (3e-3, 1.2, 1.5, 1.6, 0.0, 5e-6, 5e-5), strict=True))
LOADS = tuple(
    (concurrency, input_tokens, output_tokens)
    for concurrency in (1, 2, 4, 8, 16) for input_tokens in (32, 128, 512) for output_tokens in (16, 64)
)  # fmt: skip


def engine(model: str, quantization: str = "fp32", seqs: int = 16, tokens: int = 1024, **values: object) -> dict:
    config = catalogue.compose(catalogue.load_model(model), catalogue.load_quantization(quantization))
    return {
        "run_id": f"{model}-{quantization}-{seqs}", "point_id": f"{model}-{quantization}-{seqs}",
        "environment_id": "e", "set_name": "mine", "repeat": 0, "status": "ok", "model": model,
        "dtype": catalogue.load_quantization(quantization).dtype, "device_kind": "cpu", "device_name": "Some CPU",
        "model_runner": "v1", "vllm_version": "0.32.0+cpu", "model_config_json": json.dumps(config),
        "enforce_eager": True, "tensor_parallel_size": 1, "pipeline_parallel_size": 1, "kv_cache_dtype": "auto",
        "effective_max_num_seqs": seqs, "effective_max_num_batched_tokens": tokens, "effective_max_model_len": 1024,
        "kv_cache_tokens": 32768, **values,
    }  # fmt: skip


def gpu(model: str, seqs: int = 64, tokens: int = 2048) -> dict:
    return engine(model, "bf16", seqs, tokens, device_kind="cuda", device_name="NVIDIA H100 80GB HBM3",
                  vllm_version="0.32.0", kv_cache_tokens=400_000)  # fmt: skip


def workload(start: dict, position: int, load: tuple[int, int, int], **values: object) -> dict:
    concurrency, input_tokens, output_tokens = load
    return {
        "run_id": start["run_id"], "position": position, "workload": f"w{position}", "pattern": "closed_loop",
        "status": "ok", "failed": 0, "flags": [], "concurrency": concurrency, "num_requests": 4 * concurrency,
        "completed": 4 * concurrency, "input_tokens": input_tokens, "output_tokens": output_tokens,
        "ttft_mean_s": 1.0, "tpot_mean_s": 1.0, "output_tokens_per_s": 1.0, **values,
    }  # fmt: skip


def observations(starts: list[dict], truth: dict[str, float], noise: float = 0.0) -> tuple[list[dict], Origin]:
    """Workload rows whose clock is the formula's, each figure off by a factor of exp(noise x a normal)."""
    draw = random.Random(7).gauss
    rows = [workload(start, place, load) for start in starts for place, load in enumerate(LOADS)]
    found = read(starts, rows).observations
    (origin,) = found
    by_id = {one.row_id: one for one in found[origin]}
    for row in rows:
        row |= clock(by_id[f"{row['run_id']}/{row['position']}"], truth, lambda: 2.718281828 ** (noise * draw(0, 1)))
    return rows, origin


def clock(one: Observation, truth: dict[str, float], factor=lambda: 1.0) -> dict[str, float]:
    reference = "sheet" if one.sheet else "absolute"
    rates = [truth[name] * by for name, by in zip(COEFFICIENTS, units(reference, one.sheet), strict=True)]
    times = {name: sum(r * v for r, v in zip(rates, vector, strict=True)) for name, vector in one.vectors.items()}
    return {
        "tpot_mean_s": times["tpot"] * factor(), "ttft_mean_s": times["ttft"] * factor(),
        "output_tokens_per_s": factor() / times["throughput"],
    }  # fmt: skip
