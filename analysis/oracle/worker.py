"""The oracle's own process: builds models with vLLM's classes on the meta device. Run as a program, never imported.

    python -m analysis.oracle.worker {installed|h100} JOBS.json OUT.jsonl

JOBS.json is a list of {id, config, dtype, quantization, kv_cache_dtype, max_model_len, block_size,
tensor_parallel_size, pipeline_parallel_size, pipeline_rank}; all but the first two may be absent or null. One line per
job goes to OUT.jsonl: {id, architecture, vllm_version, tensors: [[name, shape, dtype, kind, bytes], ...],
caches: [[layer, kind, window, block_tokens, page_bytes], ...]} or {id, refused: reason}.

`installed` is the installed build as it is; `h100` is a CPU build that pretends (`pretend`).
"""

# mypy: disable-error-code="assignment,arg-type,misc,name-defined,attr-defined,index,unused-ignore"
# Where vLLM is installed, its own types are what is replaced here.
from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


class Group:
    """Stands for a process group of `size` ranks: the layers ask it only for its size and their place."""

    def __init__(self, size: int, rank: int = 0) -> None:
        self.world_size, self.rank_in_group, self.rank, self.local_rank = size, rank, rank, rank
        self.ranks = list(range(size))
        self.is_first_rank, self.is_last_rank = rank == 0, rank == size - 1
        self.first_rank, self.last_rank = 0, size - 1
        self.cpu_group = self.device_group = self
        self.device_communicator = None

    def size(self) -> int:
        return self.world_size


failures: list[str] = []
"""Why model classes could not be imported: vLLM logs it and raises only that they could not."""


def look_here(look: Callable[[], Any]) -> Any:
    """vLLM looks at a class in a process of its own, seconds for each; this one is already that."""
    try:
        return look()
    except Exception as broken:
        failures.append(f"{type(broken).__name__}: {broken}")
        raise


def build(job: dict[str, Any], folder: str) -> dict[str, Any]:
    import torch
    import vllm
    import vllm.distributed.parallel_state as parallel
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers import rotary_embedding
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = look_here
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(job["config"], file)
    tp, pp = job.get("tensor_parallel_size") or 1, job.get("pipeline_parallel_size") or 1
    options = {
        name: job[name]
        for name in ("quantization", "kv_cache_dtype", "max_model_len", "block_size")
        if job.get(name) is not None
    }
    if tp * pp > 1:
        options["distributed_executor_backend"] = "mp"
    config = EngineArgs(
        model=folder,
        skip_tokenizer_init=True,
        load_format="dummy",
        dtype=job.get("dtype") or "auto",
        enforce_eager=True,
        tensor_parallel_size=tp,
        pipeline_parallel_size=pp,
        **options,
    ).create_engine_config()
    parallel._WORLD, parallel._PP = Group(tp * pp), Group(pp, job.get("pipeline_rank") or 0)
    parallel._TP = parallel._EP = Group(tp)
    parallel._DP = parallel._PCP = parallel._DCP = parallel._EPLB = Group(1)
    with set_current_vllm_config(config):
        rotary_embedding._ROPE_DICT.clear()  # no table shared with the model before
        torch.set_default_dtype(config.model_config.dtype)
        try:
            with torch.device("meta"):
                model = initialize_model(vllm_config=config)
            caches = [cache(name, layer, config) for name, layer in cached_layers(config)]
        finally:
            torch.set_default_dtype(torch.float32)
    held = [(name, tensor, "parameter") for name, tensor in model.named_parameters()]
    held += [(name, tensor, "buffer") for name, tensor in model.named_buffers()]
    return {
        "architecture": type(model).__name__,
        "vllm_version": vllm.__version__,
        "tensors": [
            [name, list(t.shape), str(t.dtype).removeprefix("torch."), kind, t.numel() * t.element_size()]
            for name, t, kind in held
        ],
        "caches": [one for one in caches if one],
    }


def cached_layers(config: Any) -> list[tuple[str, Any]]:
    """The layers that may keep a cache, in the model's order."""
    layers = config.compilation_config.static_forward_context
    return [(name, layer) for name, layer in layers.items() if hasattr(layer, "get_kv_cache_spec")]


def cache(name: str, layer: Any, config: Any) -> list[Any] | None:
    """What vLLM's own spec says of one layer; None for a layer that keeps nothing."""
    spec = layer.get_kv_cache_spec(config)
    if spec is None:
        return None
    kinds = [kind.__name__ for kind in type(spec).__mro__]
    if "MambaSpec" in kinds:
        return [name, "state", None, spec.block_size, spec.page_size_bytes]
    window = getattr(spec, "sliding_window", None) if "SlidingWindowSpec" in kinds else None
    if "ChunkedLocalAttentionSpec" in kinds:
        kind, window = "chunked", spec.attention_chunk_size
    elif window is not None:
        kind = "sliding"
    else:
        kind = "mla" if "MLAAttentionSpec" in kinds else "full"
    return [name, kind, window, spec.block_size, spec.page_size_bytes]


def main(platform: str, jobs_path: str, out_path: str) -> None:
    if platform == "h100":
        from analysis.oracle.pretend import pretend_h100

        pretend_h100()
    with open(jobs_path) as file:
        jobs = json.load(file)
    with open(out_path, "w") as out:
        for job in jobs:
            record: dict[str, Any] = {"id": job["id"]}
            failures.clear()
            with tempfile.TemporaryDirectory() as folder:
                try:
                    record.update(build(job, folder))
                except (Exception, SystemExit) as refusal:
                    said = failures[0] if failures else f"{type(refusal).__name__}: {refusal}"
                    record["refused"] = said[:600]
            out.write(json.dumps(record) + "\n")
            out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
