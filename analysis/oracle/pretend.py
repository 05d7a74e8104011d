"""A CPU build of vLLM made to take every decision as on a CUDA card. Imported by the oracle's process only.

The platform is replaced, and operators that only a CUDA build has become empty functions. Nothing is computed on the
meta device, so the classes that vLLM would choose on the card create their tensors here. It is an oracle for shapes,
not a measurement. Kernels that come in packages of their own (FlashInfer, Triton kernels) are absent: where vLLM would
choose one of them, its next choice is seen, but for DeepSeek's RoPE table.
"""

# mypy: disable-error-code="assignment,arg-type,misc,name-defined,attr-defined,index,override,unused-ignore"
# Where vLLM is installed, its own types are what is replaced here.
from __future__ import annotations

import importlib.machinery
import sys
import types


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
    import torch

    empty_module("vllm._C_stable_libtorch")
    attention = ("flash_attn_varlen_func", "get_scheduler_metadata", "compile_flash_attn_varlen_func_from_specs")
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
    torch.cuda.Stream = torch.cuda.Event = types.SimpleNamespace  # type: ignore  # shared experts ask for both

    from vllm.model_executor.layers.rotary_embedding import deepseek_scaling_rope

    deepseek_scaling_rope.has_flashinfer = yes  # a CUDA build depends on FlashInfer, and this table asks for no more
