"""vLLM's own defaults, by version: what a setting is when nobody gives it.

Read in the sources of the releases 0.8.0 to 0.33.0 (engine/arg_utils.py, config/, v1/worker/); a boundary names the
first release that has the new rule. The V1 engine on CUDA is meant throughout, started as an API server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.arithmetic.errors import MalformedConfig
from analysis.arithmetic.fields import Fields
from analysis.arithmetic.weights import parse_version
from analysis.gpus import GIB

Version = tuple[int, ...]

OLDEST: Version = (0, 8)
NEWEST: Version = (0, 33)
"""The releases whose sources these rules were read in."""

BLOCK_TOKENS = 16
"""Tokens per KV block on CUDA. Some attention backends ask for more (FlashMLA and CUTLASS MLA); the pool holds the same
tokens then, but for one block's rounding."""


def version_note(version: Version) -> str | None:
    """A warning for a version outside those the rules were read in."""
    if OLDEST <= version[:2] <= NEWEST:
        return None
    which = "older" if version[:2] < OLDEST else "newer"
    near = OLDEST if version[:2] < OLDEST else NEWEST
    return (
        f"vLLM {'.'.join(map(str, version))} is {which} than the releases whose defaults are known "
        f"(0.8 to 0.33); those of {'.'.join(map(str, near))} are applied"
    )


def gpu_memory_utilization(version: Version) -> float:
    """0.92 since 0.20.0 (config/cache.py)."""
    return 0.92 if version >= (0, 20) else 0.9


def batch_defaults(version: Version, device_total_bytes: int, device_name: str, gb10: bool = False) -> tuple[int, int]:
    """(max_num_seqs, max_num_batched_tokens) of an API server, before they are fitted to each other.

    engine/arg_utils.py: `get_batch_defaults` (`_set_default_args` before 0.11). `device_total_bytes` is NVML's
    figure. An A100 counts as small since 0.9.0; the tier of 160 GiB exists since 0.28.0, GB10's exception since 0.33.
    """
    if version >= (0, 28) and device_total_bytes >= 160 * GIB:
        return 1024, 16384
    small = version >= (0, 9) and "a100" in device_name.lower()
    small = small or (version >= (0, 33) and gb10)
    if device_total_bytes >= 70 * GIB and not small:
        return 1024, 8192
    return 256, 2048


@dataclass(frozen=True, slots=True)
class Batch:
    """The two limits of a step: sequences and tokens."""

    max_num_seqs: int
    max_num_batched_tokens: int


def resolve_batch(
    version: Version,
    defaults: tuple[int, int],
    max_num_seqs: int | None,
    max_num_batched_tokens: int | None,
    max_model_len: int,
    *,
    chunked_prefill: bool = True,
    throughput_mode: bool = False,
) -> Batch:
    """Both limits as the engine ends up with them (engine/arg_utils.py:
    `_set_default_max_num_seqs_and_batched_tokens_args`)."""
    seqs, tokens = defaults
    if throughput_mode and version >= (0, 17):
        seqs, tokens = 2 * seqs, 2 * tokens
    seqs = max_num_seqs if max_num_seqs is not None else seqs
    if max_num_batched_tokens is not None:
        tokens = max_num_batched_tokens
    else:
        if not chunked_prefill:
            tokens = max(tokens, max_model_len) if version >= (0, 11, 1) else max_model_len
        if version >= (0, 11, 1):
            tokens = min(tokens, seqs * max_model_len)
    if max_num_seqs is None and version >= (0, 10, 1):
        seqs = min(seqs, tokens)
    return Batch(seqs, tokens)


def cudagraph_mode(version: Version, *, optimization_level: int | None = None) -> str:
    """Which graphs are captured: full ones for decoding came as the default with 0.11.0 (config/compilation.py)."""
    if optimization_level is not None:
        if optimization_level == 0:
            return "NONE"
        if optimization_level == 1 and version >= (0, 12):
            return "PIECEWISE"
    return "FULL_AND_PIECEWISE" if version >= (0, 11) else "PIECEWISE"


def capture_sizes(
    version: Version,
    batch: Batch,
    *,
    data_center_blackwell: bool = False,
    sizes: Sequence[int] | None = None,
    max_size: int | None = None,
    interactive: bool = False,
) -> tuple[int, ...]:
    """Batch sizes captured as CUDA graphs, ascending, tokens (config/vllm.py: `_set_cudagraph_sizes`).

    `sizes` and `max_size` are what the user gave. Without speculative decoding.
    """
    limit = batch.max_num_batched_tokens
    if sizes is not None:
        return tuple(sorted({size for size in sizes if size <= limit}))
    if version < (0, 10, 1):
        top = max_size or 512
        return tuple(size for size in (1, 2, 4, *range(8, top + 1, 8)) if size <= limit)
    ceiling = 1024 if data_center_blackwell and version >= (0, 28) else 512
    top = min(2 * batch.max_num_seqs, ceiling) if max_size is None else max_size
    if version < (0, 11, 1):
        return tuple(size for size in (1, 2, 4, *range(8, top + 1, 8)) if size <= limit)
    # Since 0.29 the largest decode batch gets a size of its own, unless the user chose the range.
    decode = [batch.max_num_seqs] if version >= (0, 29) and max_size is None and batch.max_num_seqs <= top else []
    top = min(top, limit)
    if interactive and version >= (0, 17):
        found = list(range(1, min(top, 32) + 1))
    else:
        found = [size for size in (1, 2, 4) if size <= top]
    found += range(8, min(top + 1, 256), 8)
    found += range(256, top + 1, 16)
    if version >= (0, 20, 1) and limit <= top:
        found.append(limit)
    found += [size for size in decode if size <= limit]
    return tuple(sorted(set(found)))


_V2_DENSE: dict[Version, set[str]] = {
    (0, 22): {"Qwen3ForCausalLM"},
    (0, 23): {"Qwen3ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM"},
}
_V2_LISTED_24 = {
    "Qwen3ForCausalLM", "DeepseekV2ForCausalLM", "Qwen2MoeForCausalLM", "GraniteMoeForCausalLM", "LlamaForCausalLM",
    "MistralForCausalLM",
}  # fmt: skip
_V2_MIXTURES = {"DeepseekV2ForCausalLM", "Qwen2MoeForCausalLM", "GraniteMoeForCausalLM"}


def model_runner(
    version: Version, architecture: str, *, mixture: bool, quantized: bool, forced: bool | None = None
) -> str:
    """`v1` or `v2`, the model runner that serves this model (config/vllm.py: `use_v2_model_runner`).

    `forced` is VLLM_USE_V2_MODEL_RUNNER. Before 0.22 it had to be asked for; then came single architectures, with 0.25
    all dense ones and a few mixtures, with 0.29 everything that it supports.
    """
    if forced is not None and version >= (0, 12):
        return "v2" if forced else "v1"
    if version >= (0, 29):
        chosen = True
    elif version >= (0, 25):
        chosen = not mixture or architecture in _V2_MIXTURES
    elif version >= (0, 24):
        chosen = architecture in _V2_LISTED_24
    elif version >= (0, 22):
        chosen = architecture in _V2_DENSE[version[:2]] and not mixture and not quantized
    else:
        chosen = False
    return "v2" if chosen else "v1"


def graph_estimate_in_budget(version: Version, runner: str, setting: bool | None = None) -> bool:
    """Whether the engine reserves an estimate for CUDA graphs before it sizes the KV pool.

    VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS (`setting`) exists since 0.18 and is on since 0.20.0. Until 0.28 the V2
    runner's estimate is always 0 (v1/worker/gpu/model_runner.py: `profile_cudagraph_memory`).
    """
    if version < (0, 18) or (runner == "v2" and version < (0, 29)):
        return False
    return version >= (0, 20) if setting is None else setting


def in_flight_tokens(version: Version, runner: str, max_num_batched_tokens: int, pipeline_parallel_size: int) -> int:
    """Tokens that a sliding window's cache must hold beyond the window (config/vllm.py: `max_in_flight_tokens`).

    Since 0.26 every step that asynchronous scheduling keeps in flight counts, before it was one.
    """
    if version < (0, 26):
        return max_num_batched_tokens
    steps = pipeline_parallel_size + 1 if runner == "v2" else max(2, pipeline_parallel_size)
    return steps * max_num_batched_tokens


def null_block_reserved(version: Version) -> bool:
    """Whether the check for one full-length request sets a block aside, since 0.29 (v1/core/kv_cache_utils.py)."""
    return version >= (0, 29)


def capacity_is_derived(version: Version) -> bool:
    """Whether the printed "KV cache size" is full-length requests x max_model_len (since 0.22) instead of blocks x
    block size."""
    return version >= (0, 22)


def context_in_budget(version: Version) -> bool:
    """Until 0.8 the CUDA context counted as memory the engine uses (v1/worker/gpu_worker.py)."""
    return version < (0, 9)


_LENGTH_KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_target_positions",
    "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
_UNSCALED = ("su", "longrope", "llama3")


@dataclass(frozen=True, slots=True)
class LengthLimit:
    """What config.json says of the longest request: the default, and the most that vLLM accepts."""

    default: int
    most: int


def length_limit(version: Version, config: Mapping[str, Any]) -> LengthLimit:
    """Tokens, as `_get_and_verify_max_len` derives them from config.json (config/model.py).

    RoPE scaling multiplies, except for the kinds that are already scaled; YaRN counted from its original length until
    0.29 and is taken as already scaled since 0.30. 2048 where config.json names no length. tokenizer_config.json can
    lower the limit in reality; it is not read here.
    """
    fields = Fields(config)
    lengths = [fields.integer(key) for key in _LENGTH_KEYS if config.get(key) is not None]
    length = float(min(lengths)) if lengths else 2048.0
    rope = fields.rope()
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if rope and "gemma3" not in str(config.get("model_type", "")):
        scaled = kind in _UNSCALED or (version >= (0, 30) and "yarn" in str(kind))
        factor = rope.get("factor")
        if not scaled and factor is not None:
            if isinstance(factor, bool) or not isinstance(factor, int | float) or factor <= 0:
                raise MalformedConfig("rope_scaling.factor", f"is {factor!r}, not a positive number")
            if kind == "yarn":
                original = rope.get("original_max_position_embeddings")
                length = float(original) if isinstance(original, int) else length
            length *= factor
    default = length
    if kind == "longrope":
        default = config.get("original_max_position_embeddings") or rope.get(
            "original_max_position_embeddings"
        ) or length  # fmt: skip
    return LengthLimit(int(default), int(length))


def parsed(version: str) -> Version:
    """`0.32.0+cpu` is (0, 32, 0). Raises ValueError naming the value."""
    return parse_version(version)
