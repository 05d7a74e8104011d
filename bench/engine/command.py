"""The `vllm serve` command line and environment of a request."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bench.environment import default_cpu_threads, gpu_names
from bench.request import Request

ROOT = Path(__file__).resolve().parent.parent.parent
PROBE = "bench.engine.probe.worker.MemoryProbe"
MARK = "CALIBRATE_RUN_ID"
"""Variable that marks a process as an engine of this harness."""
OWNER = "CALIBRATE_HARNESS_PID"


def serve_argv(request: Request, model: str, port: int) -> tuple[str, ...]:
    """The words after `vllm`. A null setting is left out: vLLM's own default then stands."""
    cfg, engine = request.cfg, request.cfg.engine
    words: list[Any] = [
        "serve", model,
        "--served-model-name", cfg.model.name,
        "--host", "127.0.0.1",
        "--port", port,
        "--load-format", cfg.model.load_format,
        "--skip-tokenizer-init",
        # The gauges are polled there while a load runs: a line for each reading would be most of the log.
        "--disable-access-log-for-endpoints", "/metrics/",
        "--worker-extension-cls", PROBE,
        "--dtype", cfg.quantization.dtype,
        "--tensor-parallel-size", engine.tensor_parallel_size,
        "--pipeline-parallel-size", engine.pipeline_parallel_size,
        "--kv-cache-dtype", engine.kv_cache_dtype,
        "--seed", engine.seed,
        "--enable-prefix-caching" if engine.enable_prefix_caching else "--no-enable-prefix-caching",
    ]  # fmt: skip
    optional = {
        "--quantization": cfg.quantization.engine_quantization,
        "--revision": cfg.model.revision,
        "--max-num-seqs": engine.max_num_seqs,
        "--max-num-batched-tokens": engine.max_num_batched_tokens,
        "--max-model-len": engine.max_model_len,
        "--gpu-memory-utilization": engine.gpu_memory_utilization,
        "--kv-cache-memory-bytes": engine.kv_cache_memory_bytes,
        "--block-size": engine.block_size,
        "--cpu-offload-gb": engine.cpu_offload_gb or None,
    }
    for flag, value in optional.items():
        if value is not None:
            words += [flag, value]
    if engine.enforce_eager:
        words.append("--enforce-eager")
    return tuple(str(word) for word in [*words, *engine.extra_args])


def shared_env(request: Request) -> dict[str, str | None]:
    """Environment that every engine of this kind gets and that libraries read once, at import."""
    env: dict[str, str | None] = {
        # A host without network may have vLLM itself on PYTHONPATH.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        # The probe's pull methods and the resolved configuration; the server listens on loopback alone.
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # An earlier start's memory profile, reused silently, would be measured as this one's.
        "VLLM_ENABLE_STARTUP_PLAN": "0",
    }
    if request.cfg.model.source != "hub":
        env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if request.device_kind == "cpu":
        env |= {
            # The same threads for every launcher: vLLM's own binding reads OMP settings that a forked engine
            # cannot change any more.
            "OMP_NUM_THREADS": str(default_cpu_threads(request.cfg.device)),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # It would override --kv-cache-memory-bytes.
            "VLLM_CPU_KVCACHE_SPACE": None,
        }
    else:
        env |= {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": ",".join(gpu_names(request.cfg.device)),
        }
    return env


def engine_env(request: Request, run_id: str, probe_dir: Path, scratch: Path, owner_pid: int) -> dict[str, str | None]:
    """The whole environment change of one engine."""
    return {
        **shared_env(request),
        "CALIBRATE_PROBE_DIR": str(probe_dir),
        MARK: run_id,
        OWNER: str(owner_pid),
        # Sockets and temporary files of a killed engine go with its folder.
        "TMPDIR": str(scratch),
        "VLLM_RPC_BASE_PATH": str(scratch),
        **request.cfg.engine.env,
    }
