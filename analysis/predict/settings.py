"""From what was asked to what the engine would run with: every default filled in as that version of vLLM does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from analysis import defaults, gpus
from analysis.arithmetic.errors import MalformedConfig
from analysis.arithmetic.fields import Fields
from analysis.predict.features import experts, quantization_method, text_config
from analysis.predict.models import PLAIN_DTYPES, Model
from analysis.predict.request import AUTO_LENGTH, Request, RequestError

DEFAULT_GPU = "h100-80gb"
MOST_LAYERS = 1000


@dataclass(frozen=True, slots=True)
class Device:
    """The GPU of a prediction. `total_bytes` is CUDA's total."""

    name: str
    title: str
    total_bytes: int
    nvml_bytes: int
    data_center_blackwell: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """Resolved settings of one start. `length_fits` is false where vLLM refuses max_model_len."""

    version: defaults.Version
    version_text: str
    device: Device
    dtype: str | None
    kv_cache_dtype: str
    tensor_parallel_size: int
    pipeline_parallel_size: int
    gpu_memory_utilization: float
    max_model_len: int
    length_limit: int
    auto_length: bool
    max_num_seqs: int
    max_num_batched_tokens: int
    in_flight_tokens: int
    enforce_eager: bool
    block_size: int
    cudagraph_mode: str
    capture_sizes: tuple[int, ...]
    runner: str
    estimate_in_budget: bool
    quantization: str
    hybrid_kv_cache_manager: bool

    def features(self, pipeline_rank: int) -> dict[str, Any]:
        """The settings `features_of` needs, for one pipeline rank."""
        return {
            "tensor_parallel_size": self.tensor_parallel_size, "pipeline_parallel_size": self.pipeline_parallel_size,
            "pipeline_rank": pipeline_rank, "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens, "max_model_len": self.max_model_len,
            "enforce_eager": self.enforce_eager, "cudagraph_mode": self.cudagraph_mode,
            "cudagraph_capture_sizes": self.capture_sizes, "dtype": self.dtype, "quantization": self.quantization,
        }  # fmt: skip


def resolve(request: Request, model: Model) -> tuple[Settings, tuple[str, ...]]:
    """The settings in force, and warnings about them. Raises RequestError, and MalformedConfig for config.json."""
    notes: list[str] = []
    _sane(model)
    version = defaults.parsed(request.vllm_version)
    if note := defaults.version_note(version):
        notes.append(note)
    device = _device(request, notes)
    text = text_config(model.config)
    limit = defaults.length_limit(version, text)
    auto = request.max_model_len == AUTO_LENGTH
    length = limit.default if request.max_model_len is None or auto else request.max_model_len
    if request.disable_sliding_window and isinstance(window := text.get("sliding_window"), int):
        length = min(length, window) if request.max_model_len is None else length
    batch = defaults.resolve_batch(
        version, defaults.batch_defaults(version, device.nvml_bytes, device.title),
        request.max_num_seqs, request.max_num_batched_tokens, length,
        chunked_prefill=request.chunked_prefill, throughput_mode=request.performance_mode == "throughput",
    )  # fmt: skip
    architecture, mixture = _kind(model)
    mode = request.cudagraph_mode or defaults.cudagraph_mode(version, optimization_level=request.optimization_level)
    mode = "NONE" if request.enforce_eager else mode
    runner = defaults.model_runner(
        version, architecture, mixture=mixture, forced=request.v2_model_runner,
        quantized=bool(model.config.get("quantization_config")),
    )  # fmt: skip
    most = request.max_cudagraph_capture_size
    if most is None and request.cudagraph_capture_sizes is None and architecture == "GptOssForCausalLM":
        most = 1024  # vLLM's own exception for this model (model_executor/models/config.py)
    sizes = defaults.capture_sizes(
        version, batch, data_center_blackwell=device.data_center_blackwell, sizes=request.cudagraph_capture_sizes,
        max_size=most, interactive=request.performance_mode == "interactivity",
    )  # fmt: skip
    utilization = request.gpu_memory_utilization
    settings = Settings(
        version=version,
        version_text=request.vllm_version,
        device=device,
        dtype=request.dtype or PLAIN_DTYPES.get((request.quantization or "").lower()),
        kv_cache_dtype=request.kv_cache_dtype or "auto",
        tensor_parallel_size=request.tensor_parallel_size,
        pipeline_parallel_size=request.pipeline_parallel_size,
        gpu_memory_utilization=defaults.gpu_memory_utilization(version) if utilization is None else utilization,
        max_model_len=length,
        length_limit=max(limit.most, length) if request.allow_long_max_model_len else limit.most,
        auto_length=auto,
        max_num_seqs=batch.max_num_seqs,
        max_num_batched_tokens=batch.max_num_batched_tokens,
        in_flight_tokens=defaults.in_flight_tokens(
            version, runner, batch.max_num_batched_tokens, request.pipeline_parallel_size
        ),
        enforce_eager=request.enforce_eager,
        block_size=request.block_size or defaults.BLOCK_TOKENS,
        cudagraph_mode=mode,
        capture_sizes=() if mode == "NONE" else sizes,
        runner=runner,
        estimate_in_budget=mode != "NONE"
        and defaults.graph_estimate_in_budget(version, runner, request.estimate_cudagraphs),
        quantization=quantization_method(model.config),
        hybrid_kv_cache_manager=request.hybrid_kv_cache_manager,
    )
    return settings, tuple(notes)


@lru_cache(maxsize=4096)
def _sane(model: Model) -> None:
    """A mistyped depth must be a sentence, not an hour of counting. Raises MalformedConfig."""
    for name in ("quantization_config", "text_config"):
        if not isinstance(model.config.get(name) or {}, Mapping):
            raise MalformedConfig(name, f"is {model.config[name]!r}, not an object")
    layers = Fields(text_config(model.config)).integer("num_hidden_layers", 1)
    if layers > MOST_LAYERS:
        raise MalformedConfig("num_hidden_layers", f"is {layers}; more than {MOST_LAYERS} is taken for a mistake")


@lru_cache(maxsize=4096)
def _kind(model: Model) -> tuple[str, bool]:
    """The model class, and whether it is a mixture of experts."""
    named = model.config.get("architectures")
    first = named[0] if isinstance(named, list | tuple) and named else ""
    return str(first), experts(Fields(text_config(model.config))) > 0


def _device(request: Request, notes: list[str]) -> Device:
    own = None if request.gpu_total_gib is None else round(request.gpu_total_gib * gpus.GIB)
    if request.gpu is None and own is not None:
        return Device("unknown", "unknown", own, own, False)
    if request.gpu is None:
        notes.append(f"no gpu is given: {DEFAULT_GPU} is assumed")
    if (request.gpu or "").lower() == "cpu":
        raise RequestError("gpu is 'cpu': predictions are for GPUs; vLLM's CPU backend accounts otherwise")
    try:
        found = gpus.find(request.gpu or DEFAULT_GPU)
    except gpus.UnknownGpu as unknown:
        if own is None:
            raise RequestError(str(unknown)) from None
        return Device(gpus.normalised(request.gpu or ""), request.gpu or "", own, own, False)
    total = found.total_bytes if own is None else own
    return Device(found.name, found.title, total, found.nvml_bytes if own is None else own, found.data_center_blackwell)
