"""What a vLLM worker decided, as plain dicts: kernels, configuration, memory budget. Bytes are ints.

Reads attributes only and never calls into kernels. Names that a version lacks are left out; they are all
optional.
"""

from __future__ import annotations

import sys
from typing import Any

_PROFILE: list[Any] = []  # the last MemoryProfilingResult, which vLLM goes on correcting after it was made

# Attributes under which a quantization method or scheme keeps the kernel it chose (0.25.1 to 0.33.0).
_KERNEL_ATTRIBUTES = (
    "kernel", "linear_kernel", "fp8_linear", "w8a8_block_fp8_linear",
    "moe_kernel", "experts_cls", "fused_experts",
)  # fmt: skip


def _kernel_name(value: Any) -> str | None:
    """A readable name of a kernel object, class, enum member or function."""
    if value is None or isinstance(value, (bool, int, float)):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, type):
        return value.__name__
    if hasattr(value, "value") and hasattr(value, "name"):  # an enum member
        return str(value.name)
    code = getattr(value, "__code__", None)
    if code is not None:
        # vLLM's CPU dispatch stores lambdas: the last global name they use is the operation (onednn_mm,
        # linear, ...).
        if code.co_name == "<lambda>" and code.co_names:
            return str(code.co_names[-1])
        return str(getattr(value, "__name__", code.co_name))
    if callable(value) and hasattr(value, "__name__"):
        return str(value.__name__)
    return type(value).__name__


def _holder_kernels(holder: Any) -> list[str]:
    """Kernels and backends an object (quantization method, scheme, kernel) names in its attributes."""
    names: list[str] = []
    for attribute, value in vars(holder).items() if hasattr(holder, "__dict__") else ():
        if attribute in _KERNEL_ATTRIBUTES or attribute.endswith("_backend"):
            name = _kernel_name(value)
            if name is not None:
                names.append(name)
            inner = getattr(value, "fused_experts", None) if attribute == "moe_kernel" else None
            if inner is not None:
                names.append(type(inner).__name__)
    return names


def kernels(runner: Any) -> dict[str, Any]:
    """Kernels as selected: per layer kind the quantization method, scheme and kernel, with the number of
    layers.

    `linear` and `moe` are lists of `{"layer", "method", "scheme", "kernels", "count"}`; `attention_backends`
    and `attention_impls` map a name to its number of layers.
    """
    model = runner.get_model() if hasattr(runner, "get_model") else runner.model
    groups: dict[tuple[Any, ...], int] = {}
    backends: dict[str, int] = {}
    impls: dict[str, int] = {}
    for module in model.modules():
        backend = getattr(module, "attn_backend", None)
        if backend is not None and hasattr(backend, "get_name"):
            backends[backend.get_name()] = backends.get(backend.get_name(), 0) + 1
            impl = type(getattr(module, "impl", None)).__name__
            impls[impl] = impls.get(impl, 0) + 1
        method = getattr(module, "quant_method", None)
        if method is None:
            continue
        scheme = getattr(module, "scheme", None)
        found = _holder_kernels(method) + (_holder_kernels(scheme) if scheme is not None else [])
        if getattr(module, "cpu_linear", None) is not None:
            found.append(str(_kernel_name(module.cpu_linear)))
        layer = type(module).__name__
        key = (layer, type(method).__name__, type(scheme).__name__ if scheme is not None else None)
        groups[key + (tuple(dict.fromkeys(found)),)] = groups.get(key + (tuple(dict.fromkeys(found)),), 0) + 1
    rows = [
        {"layer": layer, "method": method, "scheme": scheme, "kernels": list(names), "count": count}
        for (layer, method, scheme, names), count in groups.items()
    ]
    is_moe = [("moe" in row["method"].lower() or "expert" in row["layer"].lower()) for row in rows]
    return {
        "linear": [row for row, moe in zip(rows, is_moe, strict=True) if not moe],
        "moe": [row for row, moe in zip(rows, is_moe, strict=True) if moe],
        "attention_backends": backends,
        "attention_impls": impls,
    }


def runner(worker: Any) -> dict[str, Any]:
    """Which model runner was built: `version` is "v1" or "v2"."""
    built = getattr(worker, "model_runner", None)
    modules = [owner.__module__ for owner in type(built).__mro__] if built is not None else []
    version = None
    if built is not None:
        version = "v2" if "vllm.v1.worker.gpu.model_runner" in modules else "v1"
    kind = type(built)
    return {
        "version": version,
        "class": f"{kind.__module__}.{kind.__qualname__}" if built is not None else None,
        "worker_class": f"{type(worker).__module__}.{type(worker).__qualname__}",
    }


def plain_value(value: Any) -> Any:
    """A configuration value as JSON: enum members by name, dtypes by their string, lists of numbers as they
    are.
    """
    if value is None or isinstance(value, (bool, float, str)):
        return value
    if hasattr(value, "name") and hasattr(value, "value"):
        return value.name
    if isinstance(value, int):
        return int(value)
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    return str(value).removeprefix("torch.")


_CONFIG_FIELDS: dict[str, tuple[str, ...]] = {
    "model_config": ("dtype", "quantization", "max_model_len", "enforce_eager", "seed"),
    "cache_config": (
        "block_size", "cache_dtype", "num_gpu_blocks", "num_gpu_blocks_override", "gpu_memory_utilization",
        "kv_cache_memory_bytes", "enable_prefix_caching", "kv_cache_size_tokens", "kv_cache_max_concurrency",
        "sliding_window",
    ),
    "scheduler_config": (
        "max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill", "async_scheduling",
    ),
    "compilation_config": (
        "mode", "cudagraph_mode", "cudagraph_capture_sizes", "max_cudagraph_capture_size", "backend",
    ),
    "parallel_config": (
        "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel",
    ),
    "load_config": ("load_format",),
}  # fmt: skip


def config(vllm_config: Any) -> dict[str, Any] | None:
    """The effective engine configuration, the fields a measurement depends on."""
    if vllm_config is None:
        return None
    values: dict[str, Any] = {}
    for section, names in _CONFIG_FIELDS.items():
        part = getattr(vllm_config, section, None)
        values.update({name: plain_value(getattr(part, name)) for name in names if hasattr(part, name)})
    return values


def versions() -> dict[str, Any]:
    """vLLM, torch, CUDA (or None) and Python."""
    torch, vllm = sys.modules.get("torch"), sys.modules.get("vllm")
    return {
        "vllm": str(getattr(vllm, "__version__", "")) or None,
        "torch": str(getattr(torch, "__version__", "")) or None,
        "cuda": getattr(getattr(torch, "version", None), "cuda", None),
        "hip": getattr(getattr(torch, "version", None), "hip", None),
        "python": sys.version.split()[0],
    }


def device(worker: Any) -> dict[str, Any]:
    """The worker's device; name, total memory and capability on CUDA only."""
    torch = sys.modules["torch"]
    values: dict[str, Any] = {"device": str(getattr(worker, "device", None))}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        values.update(
            name=properties.name,
            total_bytes=int(properties.total_memory),
            capability=f"{properties.major}.{properties.minor}",
            multiprocessors=int(properties.multi_processor_count),
        )
    return values


def remember_profile(result: Any) -> None:
    """Keep vLLM's memory-profiling result for `budget`."""
    _PROFILE[:] = [result]


def _integers(holder: Any) -> dict[str, int]:
    return {
        name: int(value)
        for name, value in vars(holder).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "timestamp"
    }


def budget(worker: Any) -> dict[str, Any]:
    """The terms of vLLM's own memory budget, in bytes, under vLLM's attribute names; absent on the CPU
    backend.

    `peak_activation_memory` means different things: in 0.25 and 0.26 the torch peak increase alone, in 0.32
    and later the transient headroom plus the CUDA-graph estimate. The pure one, where it exists, is
    `profile.transient_peak_headroom`.
    """
    names = (
        "requested_memory", "available_kv_cache_memory_bytes", "peak_activation_memory", "non_torch_memory",
        "total_consumed", "cudagraph_memory_estimate", "requested_cpu_memory",
    )  # fmt: skip
    values: dict[str, Any] = {
        name: int(value) for name in names if isinstance(value := getattr(worker, name, None), (int, float))
    }
    weights = getattr(getattr(worker, "model_runner", None), "model_memory_usage", None)
    if isinstance(weights, (int, float)):
        values["model_memory_usage"] = int(weights)
    snapshot = getattr(worker, "init_snapshot", None)
    if snapshot is not None:
        values["init_snapshot"] = _integers(snapshot)
    if _PROFILE:
        profile: dict[str, Any] = _integers(_PROFILE[0])
        profile["profile_time_s"] = float(getattr(_PROFILE[0], "profile_time", 0.0))
        for name in ("before_create", "before_profile", "after_profile"):
            if hasattr(_PROFILE[0], name):
                profile[name] = _integers(getattr(_PROFILE[0], name))
        values["profile"] = profile
    return values
