"""Build models with vLLM's own classes on the meta device and print their tensors. Run as a script, never
imported.

    python vllm_oracle.py {installed|pretended-h100} JOBS.json OUT.jsonl

JOBS.json is a list of {id, config, dtype, tensor_parallel_size, pipeline_parallel_size, pipeline_rank}. One
line per job goes to OUT.jsonl: {id, tensors: [[name, shape, dtype, kind], ...]} or {id, refused: reason}.

`installed` is the installed build as it is. `pretended-h100` is a CPU build made to believe in an H100: the
platform is replaced, operators that only a CUDA build has become empty functions. Nothing is computed on the
meta device, so the classes that vLLM would choose on the card create their tensors here. It is an oracle for
shapes, not a measurement.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import sys
import tempfile
import types

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch  # noqa: E402


def nothing(*_args: object, **_options: object) -> None:
    return None


def yes(*_args: object) -> bool:
    return True


def no(*_args: object) -> bool:
    return False


def empty_module(name: str, **content: object) -> None:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(content)
    sys.modules[name] = module


def pretend_h100() -> None:
    """Make the CPU build take every decision as on a card of compute capability 9.0."""
    empty_module("vllm._C_stable_libtorch")
    attention = (
        "flash_attn_varlen_func",
        "get_scheduler_metadata",
        "compile_flash_attn_varlen_func_from_specs",
    )
    empty_module(
        "vllm.vllm_flash_attn",
        fa_version_unsupported_reason=nothing,
        is_fa_version_supported=yes,
        **dict.fromkeys(attention, nothing),
    )
    import vllm.platforms as platforms
    from vllm.platforms import cuda
    from vllm.platforms.interface import DeviceCapability

    class PretendH100(cuda.CudaPlatformBase):  # type: ignore[misc, name-defined]
        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> object:
            return DeviceCapability(9, 0)

        @classmethod
        def has_device_capability(cls, capability: object, device_id: int = 0) -> bool:
            wanted = capability if isinstance(capability, int) else capability[0] * 10 + capability[1]  # type: ignore[index]
            return wanted <= 90

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return "NVIDIA H100 80GB HBM3"

        @classmethod
        def get_device_uuid(cls, device_id: int = 0) -> str:
            return "GPU-0"

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return 80 * 1024**3

        @classmethod
        def device_count(cls) -> int:
            return 8

        @classmethod
        def num_compute_units(cls, device_id: int = 0) -> int:
            return 132

    for name in ("get_device_numa_node", "get_all_device_numa_nodes"):
        setattr(PretendH100, name, classmethod(nothing))
    platforms._current_platform = PretendH100()

    import vllm._custom_ops as ops  # before the next step: what it finds missing it must not try to register

    namespace = type(torch.ops._C)
    look_up = namespace.__getattr__

    def or_nothing(self: object, name: str) -> object:
        try:
            return look_up(self, name)
        except AttributeError:
            if self.name in ("_C", "_moe_C", "_C_cache_ops") and not name.startswith("__"):  # type: ignore[attr-defined]
                made = types.FunctionType(nothing.__code__, {})
                made.default = made  # type: ignore[attr-defined]
                return made
            raise

    namespace.__getattr__ = or_nothing
    ops.cutlass_scaled_mm_supports_fp8 = ops.cutlass_scaled_mm_supports_block_fp8 = yes
    ops.cutlass_scaled_mm_supports_fp4 = ops.cutlass_group_gemm_supported = no


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


def build(job: dict, folder: str) -> list[list]:
    import vllm.distributed.parallel_state as parallel
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers import rotary_embedding
    from vllm.model_executor.model_loader.utils import initialize_model

    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(job["config"], file)
    tp, pp = job["tensor_parallel_size"], job["pipeline_parallel_size"]
    options = {"distributed_executor_backend": "mp"} if tp * pp > 1 else {}
    config = EngineArgs(
        model=folder, skip_tokenizer_init=True, load_format="dummy", dtype=job["dtype"], enforce_eager=True,
        tensor_parallel_size=tp, pipeline_parallel_size=pp, **options,
    ).create_engine_config()  # fmt: skip
    parallel._WORLD, parallel._PP = Group(tp * pp), Group(pp, job["pipeline_rank"])
    parallel._TP = parallel._EP = Group(tp)
    parallel._DP = parallel._PCP = parallel._DCP = parallel._EPLB = Group(1)
    with set_current_vllm_config(config):
        rotary_embedding._ROPE_DICT.clear()  # no table shared with the model before
        torch.set_default_dtype(config.model_config.dtype)
        try:
            with torch.device("meta"):
                model = initialize_model(vllm_config=config)
        finally:
            torch.set_default_dtype(torch.float32)
    held = [(n, t, "parameter") for n, t in model.named_parameters()]
    held += [(n, t, "buffer") for n, t in model.named_buffers()]
    return [
        [name, list(tensor.shape), str(tensor.dtype).removeprefix("torch."), kind]
        for name, tensor, kind in held
    ]


def main(platform: str, jobs_path: str, out_path: str) -> None:
    if platform == "pretended-h100":
        pretend_h100()
    with open(jobs_path) as file:
        jobs = json.load(file)
    with open(out_path, "w") as out:
        for job in jobs:
            record: dict = {"id": job["id"]}
            with tempfile.TemporaryDirectory() as folder:
                try:
                    record["tensors"] = build(job, folder)
                except Exception as refusal:
                    record["refused"] = f"{type(refusal).__name__}: {refusal}"[:400]
            out.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
