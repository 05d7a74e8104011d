"""One engine start as the fit sees it: what drove it, and what every term measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from analysis import gpus
from analysis.arithmetic import ArithmeticRefusal, weight_bytes
from analysis.calibration import ANY
from analysis.estimate import Features
from analysis.predict.features import features_of_row
from analysis.rows import STARTED

GIB: Final = 2**30
ROUNDING_BYTES: Final = 0.005 * GIB
"""vLLM's log has two decimals of a GiB: no figure read from it is better than this."""


@dataclass(frozen=True)
class Start:
    """A successful start. Sizes in bytes, per rank.

    `model` is what whole-model holdouts leave out: two formats of one model are one model. `setting` is what
    leave-one-setting-out leaves out. `weights` is measured, `expected_weights` computed (None: not computable).
    """

    row_id: str
    model: str
    setting: str
    features: Features
    measured: Mapping[str, float]
    weights: float | None = None
    expected_weights: float | None = None
    parameters: int | None = None
    """Of the unquantized model."""
    weight_bits: int = 16
    """Nominal bits of a weight."""
    requested: float | None = None
    kv_pool: float | None = None
    kind: str = "dense"
    refusal: str | None = None
    """Why the weights cannot be computed."""


@dataclass(frozen=True)
class Origin:
    """Rows that may be fitted together."""

    vllm_version: str
    runner: str
    gpu: str
    on_cpu: bool = False


def setting_of(features: Features) -> str:
    """What a user chose, in one word: the model is not part of it."""
    return (
        f"S{features.max_num_seqs} T{features.max_num_batched_tokens} tp{features.tensor_parallel_size}"
        f" pp{features.pipeline_parallel_size}{' eager' if features.enforce_eager else ''} {features.quantization}"
    )


def kind_of(config: Mapping[str, Any], features: Features) -> str:
    """dense, experts, mla or multimodal: kinds differ in what the profiling run does."""
    if "vision_config" in config or "audio_config" in config:
        return "multimodal"
    if config.get("kv_lora_rank"):
        return "mla"
    return "experts" if features.experts else "dense"


def weights_of(config: Mapping[str, Any], **options: Any) -> tuple[float | None, str | None]:
    """Weights as torch's allocator counts them, or why they cannot be computed."""
    try:
        return float(weight_bytes(config, **options).allocator_rounded), None
    except ArithmeticRefusal as refusal:
        return None, str(refusal)


def weight_bits(config: Mapping[str, Any], dtype_bytes: int) -> int:
    """Nominal bits of a weight, as a person would name the format."""
    block = config.get("quantization_config")
    if not isinstance(block, Mapping):
        return 8 * dtype_bytes
    method = str(block.get("quant_method"))
    if method == "compressed-tensors":
        groups = block.get("config_groups") or {}
        weights = [group.get("weights") or {} for group in groups.values() if isinstance(group, Mapping)]
        found = [one.get("num_bits") for one in weights]
        return int(next((bits for bits in found if bits), 8 * dtype_bytes))
    if "fp8" in method:
        return 8
    return 4 if "4" in method else int(block.get("bits") or 8 * dtype_bytes)


def origin_of(row: Mapping[str, Any]) -> Origin:
    """What a row of an engines table may be pooled with."""
    on_cpu = row.get("device_kind") == "cpu"
    gpu = "cpu" if on_cpu else gpus.of_device(row.get("device_name"), row.get("device_memory_total_bytes"))
    return Origin(
        str(row.get("vllm_version") or "unknown").split("+")[0], str(row.get("model_runner") or ANY), gpu, on_cpu
    )


def from_rows(rows: Iterable[Mapping[str, Any]]) -> dict[Origin, list[Start]]:
    """Starts of an engines table by what may be pooled. Rows that did not start, ran beside others on the device, or
    lack their settings, are left out.
    """
    grouped: dict[Origin, list[Start]] = {}
    for row in rows:
        beside = row.get("colocation_id") is not None
        if row.get("status") not in STARTED or beside or not row.get("model_config_json"):
            continue
        try:
            features = features_of_row(row)
            config = json.loads(row["model_config_json"])
        except (KeyError, ValueError):
            continue
        origin = origin_of(row)
        measured = measured_on_cpu(row) if origin.on_cpu else measured_on_gpu(row)
        grouped.setdefault(origin, []).append(
            Start(
                row_id=str(row.get("run_id")), model=str(row.get("model") or row.get("model_hub_id")),
                setting=setting_of(features), features=features,
                measured={term: float(value) for term, value in measured.items() if value is not None},
                weights=row.get("weights_bytes"), expected_weights=row.get("expected_weights_bytes"),
                requested=row.get("requested_bytes"), kv_pool=row.get("available_kv_cache_bytes"),
                weight_bits=int(row.get("weight_bits") or weight_bits(config, features.dtype_bytes)),
                kind=kind_of(config, features),
            )
        )  # fmt: skip
    return grouped


def measured_on_gpu(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Terms of a CUDA row; a term that the row cannot give is None.

    From vLLM 0.32 on, non-torch memory is what was consumed beyond the weights. The context is what was in use on the
    device when the engine looked first, less what was there before it came.
    """
    non_torch = row.get("non_torch_bytes")
    if non_torch is None:
        non_torch = _difference(row, "total_consumed_bytes", "weights_bytes")
    context = _difference(row, "init_total_bytes", "init_free_bytes")
    baseline = row.get("device_memory_baseline_bytes")
    if context is not None and baseline is not None and context >= baseline:
        context -= baseline
    eager = bool(row.get("enforce_eager"))
    terms: dict[str, float | None] = {
        "activation": row.get("activation_peak_bytes"),
        "cuda_graph": 0 if eager else row.get("cuda_graph_bytes"),
        "cuda_graph_estimate": 0 if eager else row.get("cuda_graph_estimate_bytes"),
        "non_torch": non_torch,
        "context": context,
        "runtime": None,
    }
    loaded, profiled = _under_load(row), terms["activation"]
    if loaded is not None and profiled is not None:
        terms["runtime"] = max(float(loaded) - float(profiled), 0.0)
    return terms


def measured_on_cpu(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Terms of a CPU row, from the worker's resident memory.

    There is no profiling run and there are no graphs. `context` is the worker before the model, `non_torch` what it
    holds when ready beyond that, its tensors and the pool (repacked copies, allocator), `runtime` its growth under
    load.
    """
    start = row.get("worker_rss_start_bytes")
    held = _difference(row, "worker_rss_ready_bytes", "worker_rss_start_bytes", "weights_bytes", "kv_cache_bytes")
    if held is not None and held < 0:
        held = None  # some of its memory was reclaimed meanwhile: the sum says nothing
    return {"context": start, "non_torch": held, "runtime": _under_load(row)}


def _under_load(row: Mapping[str, Any]) -> float | None:
    """The peak under load; None where the engine started but could not generate, so that there was no load."""
    return row.get("runtime_activation_peak_bytes") if row.get("status") == "ok" else None


def _difference(row: Mapping[str, Any], whole: str, *parts: str) -> float | None:
    if any(row.get(name) is None for name in (whole, *parts)):
        return None
    return float(row[whole]) - sum(float(row[part]) for part in parts)
