"""What logs before 0.25 say in their own words, and the settings that every log prints.

`bench.engine.logs` reads the memory lines of 0.25 and later; the two together cover 0.8 to 0.33. Formats were read in
logs of vLLM 0.7.2, 0.8.3, 0.8.5, 0.10.2, 0.11.0 and 0.19 and in the sources named beside the patterns.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

GIB = 2**30
_NUMBER = r"(-?\d[\d,]*(?:\.\d+)?)"

# worker/worker.py: `determine_num_available_blocks` (the V0 engine)
_BUDGET = re.compile(
    rf"the current vLLM instance can use total_gpu_memory \({_NUMBER} ?GiB\) x gpu_memory_utilization "
    rf"\({_NUMBER}\) = {_NUMBER} ?GiB"
)
_TERMS = re.compile(
    rf"model weights take {_NUMBER} ?GiB; non_torch_memory takes {_NUMBER} ?GiB; PyTorch activation peak memory takes "
    rf"{_NUMBER} ?GiB; the rest of the memory reserved for KV Cache is {_NUMBER} ?GiB"
)
# The line says GB and divides by 2**30.
_WEIGHTS = re.compile(rf"(?:Loading model weights|Model loading) took {_NUMBER} GB")
_BLOCKS = re.compile(r"# (?:GPU|CUDA) blocks: (\d+)", re.IGNORECASE)
_BLOCKS_LATER = re.compile(r"cache_config_info with initialization after num_gpu_blocks is: (\d+)")
_ENGINE = re.compile(r"Initializing a (V[01]) LLM engine \(v([^)\s]+)\) with config: (.*)")
_SERVER = re.compile(r"vLLM API server version (\d+\.\d+\S*)")
_CHUNKED = re.compile(r"Chunked prefill is enabled with max_num_batched_tokens=(\d+)")
_ARCHITECTURE = re.compile(r"Resolved architecture: (\w+)")
_LATER_ARGS = re.compile(r"non-default args: (\{.*\})")
_SIZES = re.compile(r"""["']?cudagraph_capture_sizes["']?\s*[:=]\s*\[([\d,\s]*)\]""")
_MODE = re.compile(r"""["']?cudagraph_mode["']?\s*[:=]\s*(?:<?CUDAGraphMode\.)?["']?(\w+)""")
_MODES_BY_NUMBER = {"0": "NONE", "1": "PIECEWISE", "2": "FULL"}
_SETTINGS_OF_ARGS = (
    "max_num_seqs", "max_num_batched_tokens", "max_model_len", "gpu_memory_utilization", "block_size",
    "kv_cache_memory_bytes",
)  # fmt: skip


@dataclass
class Told:
    """What a log says in these lines. Bytes come from GiB with two decimals; None: it does not say."""

    engine: str | None = None
    vllm_version: str | None = None
    model: str | None = None
    architecture: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    weights_bytes: int | None = None
    non_torch_bytes: int | None = None
    activation_peak_bytes: int | None = None
    available_kv_cache_bytes: int | None = None
    init_total_bytes: int | None = None
    requested_bytes: int | None = None
    kv_cache_blocks: int | None = None


def read(lines: Iterable[str]) -> Told:
    """Reads lines freed of colours and prefixes. With several ranks the largest weights and terms, the least pool."""
    told = Told()
    for line in lines:
        if found := _ENGINE.search(line):
            _engine(told, found)
        elif found := _BUDGET.search(line):
            told.init_total_bytes, told.requested_bytes = _bytes(found[1]), _bytes(found[3])
            told.settings.setdefault("gpu_memory_utilization", float(found[2]))
        elif found := _TERMS.search(line):
            told.weights_bytes = _most(told.weights_bytes, _bytes(found[1]))
            told.non_torch_bytes = _most(told.non_torch_bytes, _bytes(found[2]))
            told.activation_peak_bytes = _most(told.activation_peak_bytes, _bytes(found[3]))
            pool = _bytes(found[4])
            known = told.available_kv_cache_bytes
            told.available_kv_cache_bytes = pool if known is None else min(known, pool)
        elif found := _WEIGHTS.search(line):
            told.weights_bytes = _most(told.weights_bytes, _bytes(found[1]))
        elif found := _BLOCKS.search(line) or _BLOCKS_LATER.search(line):
            told.kv_cache_blocks = int(found[1])
        elif found := _SERVER.search(line):
            told.vllm_version = told.vllm_version or found[1]
        elif found := _CHUNKED.search(line):
            told.settings["max_num_batched_tokens"] = int(found[1])
        elif found := _ARCHITECTURE.search(line):
            told.architecture = told.architecture or found[1]
        elif found := _LATER_ARGS.search(line):
            _given(told, _literal(found[1]))
        elif "args: Namespace(" in line:
            _given(told, _namespace(line))
    return told


def _engine(told: Told, found: re.Match[str]) -> None:
    told.engine, told.vllm_version, config = found[1].lower(), found[2].rstrip(","), found[3]

    def one(name: str) -> str | None:
        hit = re.search(rf"(?<![\w.]){name}=('[^']*'|[^,\s)]+)", config)
        return hit[1].strip("'") if hit else None

    told.model = one("model") or told.model
    settings = told.settings
    for name, key in (("max_seq_len", "max_model_len"), ("tensor_parallel_size",) * 2, ("pipeline_parallel_size",) * 2):
        if (value := one(name)) and value.isdigit():
            settings[key] = int(value)
    if dtype := one("dtype"):
        settings["dtype"] = dtype.removeprefix("torch.")
    if (quantization := one("quantization")) and quantization != "None":
        settings["quantization"] = quantization
    if eager := one("enforce_eager"):
        settings["enforce_eager"] = eager == "True"
    if cache := one("kv_cache_dtype"):
        settings["kv_cache_dtype"] = cache
    if device := one("device_config"):
        settings["device"] = device.partition(":")[0]
    if sizes := _SIZES.search(config):
        settings["cudagraph_capture_sizes"] = sorted(int(size) for size in sizes[1].split(",") if size.strip())
    if mode := _MODE.search(config):
        settings["cudagraph_mode"] = _MODES_BY_NUMBER.get(mode[1], mode[1])


def _given(told: Told, args: dict[str, Any]) -> None:
    for name in _SETTINGS_OF_ARGS:
        if args.get(name) is not None and not isinstance(args[name], bool):
            told.settings[name] = args[name]
    told.model = told.model or args.get("model")


def _literal(text: str) -> dict[str, Any]:
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {}  # an argument that is no literal, such as an enumeration: the engine's line has the rest
    return found if isinstance(found, dict) else {}


def _namespace(line: str) -> dict[str, Any]:
    """The numbers of `args: Namespace(max_num_seqs=256, ...)`, as 0.8 and 0.9 print all arguments."""
    found = {}
    for name in _SETTINGS_OF_ARGS:
        if hit := re.search(rf"(?<!\w){name}=(\d+(?:\.\d+)?)(?=[,)])", line):
            found[name] = float(hit[1]) if "." in hit[1] else int(hit[1])
    return found


def _bytes(gib: str) -> int:
    return round(float(gib.replace(",", "")) * GIB)


def _most(known: int | None, value: int) -> int:
    return value if known is None else max(known, value)
