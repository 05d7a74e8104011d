"""Settings of one vLLM engine, under the names `vllm serve` gives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.config.checks import one_of, parse_bytes, positive, require

KV_DTYPES = ("auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "fp8_ds_mla")

# Flags that the harness sets itself: passing them a second time would measure something else than the row says.
OWN_FLAGS = frozenset({
    "--model", "--host", "--port", "--load-format", "--skip-tokenizer-init", "--worker-extension-cls", "--dtype",
    "--quantization", "--max-num-seqs", "--max-num-batched-tokens", "--max-model-len", "--gpu-memory-utilization",
    "--kv-cache-memory-bytes", "--kv-cache-dtype", "--block-size", "--enforce-eager", "--tensor-parallel-size",
    "--pipeline-parallel-size", "--enable-prefix-caching", "--no-enable-prefix-caching", "--cpu-offload-gb", "--seed",
    "--served-model-name", "--revision", "-tp", "-pp", "-q",
})  # fmt: skip

# Flags under which the harness could not reach its engine, or would not launch it alone.
UNREACHABLE_FLAGS = frozenset({
    "--api-key", "--uds", "--root-path", "--ssl-keyfile", "--ssl-certfile", "--headless", "--config",
})  # fmt: skip

# Variables that the harness sets itself, and the setting to use instead.
OWN_VARIABLES = {
    "PYTHONPATH": "set it for the harness, which passes it on", "TMPDIR": "set paths.scratch",
    "VLLM_RPC_BASE_PATH": "set paths.scratch", "OMP_NUM_THREADS": "set device.cpu_threads",
    "CUDA_VISIBLE_DEVICES": "set device.indices", "CUDA_DEVICE_ORDER": "set device.indices",
    "VLLM_SERVER_DEV_MODE": "the harness reads the engine's memory through it",
    "VLLM_CPU_KVCACHE_SPACE": "set engine.kv_cache_memory_bytes",
}  # fmt: skip


def _names(arg: str, flags: frozenset[str]) -> bool:
    """Whether vLLM's parser would read one of `flags` in `arg`: it takes underscores and abbreviations too."""
    word = arg.split("=", 1)[0]
    if not word.startswith("--"):
        return word in flags
    word = word.replace("_", "-")
    forms = {word, "--" + word.removeprefix("--no-")}
    return any(flag.startswith(form) for flag in flags for form in forms if len(form) > 2)


@dataclass
class EngineConfig:
    """One engine. A null setting leaves vLLM's own default, and the row records what that was."""

    max_num_seqs: int | None = None
    """Most sequences in one scheduler step."""
    max_num_batched_tokens: int | None = None
    """Token budget of one scheduler step (prefill chunk plus decodes)."""
    max_model_len: int | None = None
    """Longest request, prompt and output together, tokens."""
    gpu_memory_utilization: float | None = None
    """Share of the device's total memory that the engine may fill; sizes the KV pool in auto mode."""
    kv_cache_memory_bytes: Any = None
    """Fixed KV pool, bytes or text such as 4GiB. Null: auto pool, sized from gpu_memory_utilization."""
    kv_cache_dtype: str = "auto"
    block_size: int | None = None
    """Tokens per KV block."""
    enforce_eager: bool = False
    """No torch.compile and no CUDA graphs."""
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    enable_prefix_caching: bool = False
    """Off while measuring: a shared prefix would make work disappear."""
    cpu_offload_gb: float = 0.0
    """Weights kept in host memory, GiB (vLLM's name says GB)."""
    seed: int = 0
    port: int | None = None
    """Null: a free port of the loopback interface."""
    startup_timeout_s: float = 900.0
    """Launch until /health answers; past it the start is a failed row with cause `timeout`."""
    stop_timeout_s: float = 15.0
    """SIGTERM until the engine's processes are gone; past it SIGKILL."""
    extra_args: list[str] = field(default_factory=list)
    """More `vllm serve` flags, as on its command line."""
    env: dict[str, str] = field(default_factory=dict)
    """More environment of the engine, such as VLLM_USE_V2_MODEL_RUNNER: "1"."""

    def __post_init__(self) -> None:
        self.kv_cache_memory_bytes = parse_bytes("engine.kv_cache_memory_bytes", self.kv_cache_memory_bytes)
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "kv_cache_memory_bytes", "block_size"):
            positive(f"engine.{name}", getattr(self, name), optional=True)
        for name in ("tensor_parallel_size", "pipeline_parallel_size", "startup_timeout_s", "stop_timeout_s"):
            positive(f"engine.{name}", getattr(self, name))
        util = self.gpu_memory_utilization
        require(
            util is None or 0 < util <= 1,
            "engine.gpu_memory_utilization",
            util,
            "a share of the device's memory, greater than 0 and at most 1",
        )
        one_of("engine.kv_cache_dtype", self.kv_cache_dtype, KV_DTYPES)
        require(self.cpu_offload_gb >= 0, "engine.cpu_offload_gb", self.cpu_offload_gb, "must be 0 or more")
        require(
            self.port is None or 1024 <= self.port <= 65535,
            "engine.port",
            self.port,
            "use a port from 1024 to 65535, or null for a free one",
        )
        seqs, tokens = self.max_num_seqs, self.max_num_batched_tokens
        require(
            seqs is None or tokens is None or tokens >= seqs,
            "engine.max_num_batched_tokens",
            tokens,
            f"vLLM needs at least one token a sequence, so at least engine.max_num_seqs={seqs}",
        )
        for arg in self.extra_args:
            require(
                not _names(arg, OWN_FLAGS),
                "engine.extra_args",
                arg,
                "this flag belongs to a setting of its own (engine.*, quantization.dtype, model.*): set that",
            )
            require(
                not _names(arg, UNREACHABLE_FLAGS), "engine.extra_args", arg,
                "the harness could not reach or describe an engine with this flag; leave it out",
            )  # fmt: skip
        for name in self.env:
            own = "CALIBRATE_*: the harness's own" if name.startswith("CALIBRATE_") else OWN_VARIABLES.get(name)
            require(own is None, "engine.env", name, f"the harness sets this variable itself: {own}")

    @property
    def kv_pool_mode(self) -> str:
        """`fixed` where the KV pool is given in bytes, else `auto`."""
        return "auto" if self.kv_cache_memory_bytes is None else "fixed"
