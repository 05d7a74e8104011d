"""The options of `vllm serve`: which there are, which size memory, which may move it without being modelled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FLAGS = Path(__file__).with_name("vllm_flags.txt")


@dataclass(frozen=True, slots=True)
class Flag:
    """One option: its destination in vLLM's arguments and how many values follow (0, 1, ? or +)."""

    destination: str
    values: str


@cache
def flags() -> dict[str, Flag]:
    """Every spelling vLLM knows, of any release from 0.8 on."""
    found: dict[str, Flag] = {}
    for line in _FLAGS.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            destination, values, *spellings = line.split()
            for spelling in spellings:
                found.setdefault(spelling, Flag(destination, values))
    return found


SAME_NAME = (
    "quantization", "dtype", "kv_cache_dtype", "tensor_parallel_size", "pipeline_parallel_size",
    "gpu_memory_utilization", "kv_cache_memory_bytes", "max_model_len", "max_num_seqs", "max_num_batched_tokens",
    "block_size", "num_gpu_blocks_override", "cudagraph_capture_sizes", "max_cudagraph_capture_size",
    "performance_mode", "revision",
)  # fmt: skip
"""Options whose destination is the Request's field of the same name."""
SWITCHES = {
    "enforce_eager": "enforce_eager", "enable_chunked_prefill": "chunked_prefill",
    "disable_sliding_window": "disable_sliding_window",
}  # fmt: skip
ELSEWHERE = {"model": "model", "cpu_offload_gb": "cpu_offload_gib"}
"""... and those whose field has another name."""

NOT_MODELLED = {
    "enable_lora": "LoRA adapters take GPU memory that is not counted here",
    "speculative_config": "the draft model and its KV cache are not counted here",
    "speculative_model": "the draft model and its KV cache are not counted here",
    "spec_model": "the draft model and its KV cache are not counted here",
    "spec_method": "what speculative decoding adds is not counted here",
    "num_speculative_tokens": "what speculative decoding adds is not counted here",
    "data_parallel_size": "the figures are those of one GPU of one replica",
    "enable_expert_parallel": "experts are counted as split evenly over the tensor-parallel ranks",
    "enable_eplb": "redundant experts are not counted here",
    "decode_context_parallel_size": "the KV cache is counted as if it were not split by context",
    "prefill_context_parallel_size": "the KV cache is counted as if it were not split by context",
    "enable_dbo": "the second micro-batch's buffers are not counted here",
    "enable_sleep_mode": "sleep mode changes the allocator; the figures are those without it",
    "kv_transfer_config": "a connector's buffers are not counted here",
    "kv_sharing_fast_prefill": "its effect on the KV cache is not counted here",
    "model_impl": "the figures are those of vLLM's own model class",
    "quantization_config": "online quantization by this option is not counted here",
    "hf_config_path": "the config is read from the model instead",
    "runner": "pooling models have other defaults; the figures are those of a generating one",
    "task": "pooling models have other defaults; the figures are those of a generating one",
    "convert": "pooling models have other defaults; the figures are those of a generating one",
    "mm_ipc_gpu_memory_gb": "the memory it sets aside is not counted here",
    "enable_batch_sharded_sampling": "sharded sampling needs less activation memory than is counted here",
    "num_scheduler_steps": "multi-step scheduling belongs to the V0 engine; the figures are those of V1",
    "offload_group_size": "offloaded weights are counted as resident",
    "kv_cache_dtype_skip_layers": "all layers are counted with one KV cache dtype",
    "rope_scaling": "set it with --hf-overrides to have it counted",
    "rope_theta": "it does not change memory",
    "worker_cls": "another worker may account differently",
    "additional_config": "what a platform plugin makes of it is not counted here",
}
"""Options that may move memory and are not modelled: destination to what that means for the answer."""

ENVIRONMENT = {
    "VLLM_USE_V2_MODEL_RUNNER": "v2_model_runner",
    "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS": "estimate_cudagraphs",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "allow_long_max_model_len",
}
ENVIRONMENT_NOTES = {
    "VLLM_USE_V1": ("0", "the V0 engine is not modelled; the figures are those of V1"),
    "VLLM_ENABLE_STARTUP_PLAN": ("1", "a stored start-up plan may replace the memory profile"),
}
