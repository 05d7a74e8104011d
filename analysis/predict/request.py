"""One question: which model, which settings, which GPU. Every field is checked here, and the error names it."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from analysis.arithmetic.weights import DEFAULT_VLLM_VERSION, parse_version


class RequestError(ValueError):
    """The request cannot be answered as written: one sentence, naming the field, the value and the fix."""


AUTO_LENGTH = -1
"""max_model_len that vLLM fits to the memory it finds (`--max-model-len auto`)."""

MOST_DIGITS = 100
"""Of a number as text; what is longer is a mistake, and neither int() nor float() takes any length."""

_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def human_integer(field: str, text: str) -> int:
    """`4096`, `1k` (1000), `1K` (1024), `25.6k`: as vLLM reads such a flag (utils/argparse_utils.py:
    `human_readable_int`). Raises RequestError."""
    stripped = text.strip()
    if len(stripped) > MOST_DIGITS:
        raise RequestError(f"{field} is {stripped[:12]}... of {len(stripped)} characters; no real number has as many")
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgGtT])", stripped)
    if found is None:
        if re.fullmatch(r"[+-]?\d+", stripped):
            return int(stripped)
        raise RequestError(f"{field} is {text!r}, not a whole number such as 4096, 4k (4000) or 4K (4096)")
    number, unit = found.groups()
    if unit in _DECIMAL:
        return int(float(number) * _DECIMAL[unit])
    if "." in number:
        raise RequestError(f"{field} is {text!r}: vLLM takes no decimals before {unit}; write {number}{unit.lower()}")
    return int(number) * _BINARY[unit]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked. None stands for vLLM's own default. `notes` become warnings of the answer; `ignored` are flags
    that vLLM knows and that do not touch GPU memory."""

    model: str | None = None
    config: Mapping[str, Any] | None = None
    quantization: str | None = None
    dtype: str | None = None
    kv_cache_dtype: str | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    gpu: str | None = None
    gpu_total_gib: float | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enforce_eager: bool = False
    block_size: int | None = None
    vllm_version: str = DEFAULT_VLLM_VERSION

    # A load, for throughput and latency: a closed loop of so many clients, or an open one of so many requests/s.
    concurrency: int | None = None
    rate: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None

    # What only a command line says.
    revision: str | None = None
    num_gpu_blocks_override: int | None = None
    cpu_offload_gib: float | None = None
    cudagraph_mode: str | None = None
    cudagraph_capture_sizes: tuple[int, ...] | None = None
    max_cudagraph_capture_size: int | None = None
    optimization_level: int | None = None
    performance_mode: str | None = None
    chunked_prefill: bool = True
    disable_sliding_window: bool = False
    hybrid_kv_cache_manager: bool = True
    hf_overrides: Mapping[str, Any] | None = None
    v2_model_runner: bool | None = None
    estimate_cudagraphs: bool | None = None
    allow_long_max_model_len: bool = False
    notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Request:
        """A request from named fields; null counts as absent.

        An unknown field is refused where it looks like a misspelt one, otherwise it is a warning. Raises
        RequestError.
        """
        given: dict[str, Any] = {}
        strange: list[str] = []
        for name, value in values.items():
            if value is None or name == "id":
                continue
            check = _CHECKS.get(name)
            if check is None:
                if near := difflib.get_close_matches(name, _CHECKS, n=1, cutoff=0.8):
                    raise RequestError(f"field {name!r} is not known; did you mean {near[0]!r}?")
                strange.append(name)
                continue
            given[name] = check(name, value)
        request = cls(**given)
        if request.model is None and request.config is None:
            raise RequestError("there is no model: give model (a catalogue entry, hub id or path) or config")
        if strange:
            plural = "s" if len(strange) > 1 else ""
            note = f"field{plural} {', '.join(strange)} not known and ignored"
            request = replace(request, notes=(*request.notes, note))
        _check_load(request)
        return request


def _check_load(request: Request) -> None:
    """A load is whole or absent. Raises RequestError."""
    lengths = {"input_tokens": request.input_tokens, "output_tokens": request.output_tokens}
    missing = [name for name, value in lengths.items() if value is None]
    if request.concurrency is not None and request.rate is not None:
        raise RequestError("concurrency and rate are two loads, a closed and an open loop; give one of them")
    if request.concurrency is None and request.rate is None:
        if len(missing) < len(lengths):
            raise RequestError("input_tokens and output_tokens make a load only with concurrency or rate; give one")
    elif missing:
        raise RequestError(f"a load needs its lengths: {' and '.join(missing)} missing (tokens)")


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RequestError(f"{field} is {value!r}, not a name")
    return value.strip()


def _whole(at_least: int = 1, at_most: int | None = None, special: Iterable[int] = ()) -> Callable[[str, Any], int]:
    def check(field: str, value: Any) -> int:
        if isinstance(value, str):
            value = human_integer(field, value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise RequestError(f"{field} is {value!r}, not a whole number")
        if value != int(value):
            raise RequestError(f"{field} is {value!r}, not a whole number")
        if int(value) in special:
            return int(value)
        if value < at_least:
            raise RequestError(f"{field} is {int(value)}; it must be {at_least} or more")
        if at_most is not None and value > at_most:
            raise RequestError(f"{field} is {int(value)}; it must be {at_most} or less")
        return int(value)

    return check


def _length(field: str, value: Any) -> int:
    if isinstance(value, str) and value.strip().lower() == "auto":
        return AUTO_LENGTH
    return _whole(special=(AUTO_LENGTH,))(field, value)


def _real(above: float, at_most: float | None = None, *, zero: bool = False) -> Callable[[str, Any], float]:
    def check(field: str, value: Any) -> float:
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise RequestError(f"{field} is {value!r}, not a number") from None
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise RequestError(f"{field} is {value!r}, not a number")
        try:
            value = float(value)
        except OverflowError:  # a whole number of more than 308 digits
            raise RequestError(f"{field} is too large") from None
        if not (value > above or (zero and value == above)) or value == float("inf"):
            raise RequestError(f"{field} is {value:g}; it must be {'at least' if zero else 'above'} {above:g}")
        if at_most is not None and value > at_most:
            raise RequestError(f"{field} is {value:g}; it must be at most {at_most:g}")
        return float(value)

    return check


def _flag(field: str, value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false", "1", "0"):
        return value.lower() in ("true", "1")
    if not isinstance(value, bool):
        raise RequestError(f"{field} is {value!r}, not true or false")
    return value


def _object(field: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RequestError(f"{field} is {type(value).__name__}, not an object such as config.json holds")
    return value


def _sizes(field: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise RequestError(f"{field} is {value!r}, not a list of batch sizes")
    return tuple(_whole()(field, one) for one in value)


def _chosen(*known: str) -> Callable[[str, Any], str]:
    def check(field: str, value: Any) -> str:
        named = _text(field, value)
        if named not in known:
            raise RequestError(f"{field} is {named!r}; known are {', '.join(known)}")
        return named

    return check


def _dtype(field: str, value: Any) -> str:
    named = _text(field, value).removeprefix("torch.")
    known = ("auto", "half", "float16", "fp16", "bfloat16", "bf16", "float", "float32", "fp32")
    if named.lower() not in known:
        raise RequestError(f"{field} is {value!r}; known are auto, bfloat16, float16, half, float32, float")
    return named.lower()


def _kv_dtype(field: str, value: Any) -> str:
    from analysis.arithmetic.dtypes import kv_size_bytes
    from analysis.arithmetic.errors import MalformedConfig

    named = _text(field, value)
    try:
        kv_size_bytes(named, "bfloat16")
    except MalformedConfig as unknown:
        raise RequestError(str(unknown).removeprefix("config.json: field ")) from None
    return named


def _version(field: str, value: Any) -> str:
    named = _text(field, value).removeprefix("v")
    try:
        parse_version(named)
    except ValueError:
        raise RequestError(f"{field} is {value!r}, not a version such as {DEFAULT_VLLM_VERSION}") from None
    return named


_MODES = ("NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")

_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "model": _text,
    "config": _object,
    "quantization": _text,
    "dtype": _dtype,
    "kv_cache_dtype": _kv_dtype,
    "tensor_parallel_size": _whole(at_most=1024),
    "pipeline_parallel_size": _whole(at_most=256),
    "gpu": _text,
    "gpu_total_gib": _real(0.0, 4096.0),
    "gpu_memory_utilization": _real(0.0, 1.0),
    "kv_cache_memory_bytes": _whole(),
    "max_model_len": _length,
    "max_num_seqs": _whole(),
    "max_num_batched_tokens": _whole(),
    "enforce_eager": _flag,
    "block_size": _whole(),
    "vllm_version": _version,
    "concurrency": _whole(at_most=10**6),
    "rate": _real(0.0, 1e6),
    "input_tokens": _whole(at_most=10**8),
    "output_tokens": _whole(at_most=10**8),
}
BATCH_FIELDS = ("id", *_CHECKS)
"""Fields of one line of a batch, and of nothing else."""

_COMMAND_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **_CHECKS,
    "revision": _text,
    "num_gpu_blocks_override": _whole(),
    "cpu_offload_gib": _real(0.0, 2.0**20, zero=True),
    "cudagraph_mode": lambda field, value: _chosen(*_MODES)(field, str(value).upper()),
    "cudagraph_capture_sizes": _sizes,
    "max_cudagraph_capture_size": _whole(at_most=2**16),
    "optimization_level": _whole(at_least=0, at_most=3),
    "performance_mode": _chosen("balanced", "interactivity", "throughput"),
    "chunked_prefill": _flag,
    "disable_sliding_window": _flag,
    "hybrid_kv_cache_manager": _flag,
    "hf_overrides": _object,
    "v2_model_runner": _flag,
    "estimate_cudagraphs": _flag,
    "allow_long_max_model_len": _flag,
}


def request_of_command(values: Mapping[str, Any], notes: Iterable[str] = (), ignored: Iterable[str] = ()) -> Request:
    """A request from a command line's settings, already named as the fields of Request. Raises RequestError."""
    known = {one.name for one in fields(Request)}
    given = {}
    for name, value in values.items():
        assert name in known, name
        if value is not None:
            given[name] = _COMMAND_CHECKS[name](name, value)
    request = Request(**given, notes=tuple(notes), ignored=tuple(ignored))
    if request.model is None and request.config is None:
        raise RequestError("there is no model: name one after `vllm serve` or with --model")
    _check_load(request)
    return request
