"""GPUs by name, with the memory that CUDA really offers on them.

An "80 GB" card is not 80 GiB: vLLM budgets a share of what `torch.cuda.mem_get_info()` calls total, which is below
NVML's figure (the driver's reserve), which differs from the number on the box. The total varies by some 0.1 GiB with
the driver and ECC; where a figure matters to that degree, give your own device's.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

GIB = 2**30
MIB = 2**20

Evidence = Literal["measured", "published"]


class UnknownGpu(ValueError):
    """A GPU that is not in the table; the sentence lists those that are and how to do without."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """What the maker states as the peak: bytes/s of device memory, dense 16-bit tensor FLOP/s with 32-bit
    accumulation (bfloat16; float16 on T4 and V100, which lack it). No program reaches either."""

    bandwidth_bytes_per_s: float
    flops_16bit_per_s: float
    source: str


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of device.

    `total_bytes` is CUDA's total, the base of vLLM's budget; `nvml_bytes` is NVML's (nvidia-smi), by which vLLM picks
    its batch defaults. `capability` is the CUDA compute capability. `evidence` says where the total comes from:
    `measured` by this project, or `published` in `source`.
    """

    name: str
    title: str
    total_bytes: int
    nvml_bytes: int
    capability: tuple[int, int]
    evidence: Evidence
    source: str
    aliases: tuple[str, ...] = ()
    sheet: Sheet | None = None

    @property
    def data_center_blackwell(self) -> bool:
        """Compute capability 10.x, which vLLM gives larger CUDA graphs."""
        return self.capability[0] == 10


_SHEETS: Final = {
    name: Sheet(gb_per_s * 1e9, tflops * 1e12, f"NVIDIA, {document}")
    for name, gb_per_s, tflops, document in (
        ("b200", 8000, 2250, "Blackwell architecture brief: 8 TB/s, 4.5 PFLOPS FP16/BF16 with sparsity"),
        ("h200-141gb", 4800, 989, "H200 data sheet: 4.8 TB/s, 1,979 TFLOPS BF16 with sparsity"),
        ("h100-80gb", 3350, 989, "H100 data sheet (SXM): 3.35 TB/s, 1,979 TFLOPS BF16 with sparsity"),
        ("a100-80gb", 2039, 312, "A100 data sheet (SXM): 2,039 GB/s, 312 TFLOPS BF16"),
        ("a100-40gb", 1555, 312, "A100 data sheet (40 GB): 1,555 GB/s, 312 TFLOPS BF16"),
        ("l40s", 864, 362, "L40S data sheet: 864 GB/s, 362.05 TFLOPS BF16"),
        ("l4", 300, 121, "L4 data sheet: 300 GB/s, 242 TFLOPS BF16 with sparsity"),
        ("a10g", 600, 70, "A10G data sheet: 600 GB/s, 70 TFLOPS FP16"),
        ("t4", 320, 65, "T4 data sheet: 320 GB/s, 65 TFLOPS mixed precision"),
        ("v100-32gb", 900, 125, "V100 data sheet (SXM2): 900 GB/s, 125 TFLOPS mixed precision"),
        ("rtx-pro-6000", 1792, 503.8, "RTX Blackwell PRO architecture paper: 1,792 GB/s, 503.8 TFLOPS FP16"),
        ("rtx-6000-ada", 960, 364.2, "Ada architecture paper: 960 GB/s, 364.2 TFLOPS FP16"),
        ("rtx-a6000", 768, 154.8, "GA102 architecture paper: 768 GB/s, 154.8 TFLOPS FP16"),
        ("rtx-5090", 1792, 209.5, "RTX Blackwell architecture paper: 1,792 GB/s, 209.5 TFLOPS FP16, FP32 accumulate"),
        ("rtx-4090", 1008, 165.2, "Ada architecture paper: 1,008 GB/s, 165.2 TFLOPS FP16, FP32 accumulate"),
        ("rtx-3090", 936, 71, "GA102 architecture paper: 936 GB/s, 71 TFLOPS FP16, FP32 accumulate"),
    )
}
"""Of the variant that the table lists: PCIe and MIG variants are slower."""


def _gpu(
    name: str, title: str, total_gib: float, nvml_mib: int, capability: tuple[int, int], source: str, *aliases: str
) -> Gpu:
    return Gpu(
        name, title, round(total_gib * GIB), nvml_mib * MIB, capability, "published", source, aliases, _SHEETS.get(name)
    )


_OOM = "torch's out-of-memory message (total capacity), public reports"

GPUS: tuple[Gpu, ...] = (
    _gpu("b200", "NVIDIA B200", 178.35, 183359, (10, 0), _OOM, "b200-180gb", "b200-192gb"),
    _gpu("h200-141gb", "NVIDIA H200", 139.72, 143771, (9, 0),
         "vLLM's start-up message, github.com/vllm-project/vllm/issues/23192", "h200"),
    _gpu("h100-80gb", "NVIDIA H100 80GB HBM3", 79.19, 81559, (9, 0),
         "61 vLLM 0.19.0 starts of llm-d-planner's accuracy study", "h100", "h100-sxm", "h100-sxm5", "h100-80gb-hbm3"),
    _gpu("a100-80gb", "NVIDIA A100-SXM4-80GB", 79.32, 81920, (8, 0),
         "vLLM's start-up message, github.com/vllm-project/vllm-omni/issues/276 (79.35 on other drivers)",
         "a100", "a100-sxm4-80gb", "a100-80gb-pcie", "a100-pcie-80gb", "a800-80gb"),
    _gpu("a100-40gb", "NVIDIA A100-SXM4-40GB", 39.49, 40960, (8, 0), f"{_OOM} (39.38 to 39.56)",
         "a100-sxm4-40gb", "a100-pcie-40gb"),
    _gpu("l40s", "NVIDIA L40S", 44.39, 46068, (8, 9), f"{_OOM} (44.39 to 44.42)", "l40s-48gb"),
    _gpu("l4", "NVIDIA L4", 22.05, 23034, (8, 9),
         "vLLM's start-up message, github.com/pytorch/pytorch/issues/175666", "l4-24gb"),
    _gpu("a10g", "NVIDIA A10G", 21.98, 23028, (8, 6), f"{_OOM} (21.98 to 22.19 with older drivers)", "a10g-24gb"),
    _gpu("t4", "Tesla T4", 14.56, 15360, (7, 5), _OOM, "t4-16gb"),
    _gpu("v100-32gb", "Tesla V100-SXM2-32GB", 31.73, 32768, (7, 0), _OOM, "v100-sxm2-32gb"),
    _gpu("rtx-pro-6000", "NVIDIA RTX PRO 6000 Blackwell", 94.97, 97887, (12, 0), f"{_OOM} (94.96 to 94.98)",
         "rtx-pro-6000-blackwell", "rtx-pro-6000-96gb", "96gb", "rtx-pro-6000-blackwell-server-edition",
         "rtx-pro-6000-blackwell-workstation-edition"),
    _gpu("rtx-6000-ada", "NVIDIA RTX 6000 Ada Generation", 47.40, 49140, (8, 9), f"{_OOM} (47.40 to 47.50)",
         "rtx-6000-ada-generation", "6000-ada"),
    _gpu("rtx-a6000", "NVIDIA RTX A6000", 47.40, 49140, (8, 6), f"{_OOM} (47.40 to 47.53)", "a6000"),
    _gpu("rtx-5090", "NVIDIA GeForce RTX 5090", 31.36, 32607, (12, 0), _OOM, "5090"),
    _gpu("rtx-4090", "NVIDIA GeForce RTX 4090", 23.52, 24564, (8, 9), f"{_OOM} (23.64 with older drivers)", "4090"),
    _gpu("rtx-3090", "NVIDIA GeForce RTX 3090", 23.56, 24576, (8, 6),
         "vLLM's start-up message, github.com/wtdcode/vllm-backport/issues/34 (23.69 with older drivers)", "3090"),
)  # fmt: skip


def normalised(name: str) -> str:
    """`NVIDIA GeForce RTX 4090`, `rtx_4090` and `RTX-4090` are one name."""
    words = re.sub(r"[\s_()/]+", "-", name.strip().lower())
    return re.sub(r"^(nvidia-|geforce-|tesla-)+", "", words).strip("-")


@cache
def _by_name() -> dict[str, Gpu]:
    return {key: gpu for gpu in GPUS for key in (gpu.name, normalised(gpu.title), *gpu.aliases)}


def names() -> list[str]:
    return [gpu.name for gpu in GPUS]


def find(name: str) -> Gpu:
    """The GPU of this name, alias or device name as NVML gives it. Raises UnknownGpu."""
    wanted = normalised(name)
    known = _by_name()
    if wanted in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.7)
    meant = f"did you mean {known[near[0]].name}? Known" if near else "known"
    raise UnknownGpu(
        f"gpu {name!r} is not in the table; {meant} are {', '.join(names())}; for any other give what "
        "torch.cuda.mem_get_info() calls its total as --gpu-total-gib (gpu_total_gib in a batch)"
    )


def of_device(device_name: str | None, total_bytes: int | None = None) -> str:
    """Table name for a device as a result set or a log names it; its own normalised name if it is not in the table.

    A name that does not say which of two sizes it is (`NVIDIA A100`) is settled by `total_bytes`.
    """
    if not device_name:
        return "unknown"
    wanted = normalised(device_name)
    found = _by_name().get(wanted)
    if found is None:
        return wanted
    if total_bytes is not None and abs(total_bytes / found.total_bytes - 1) > 0.1:
        stem = found.name.partition("-")[0]
        siblings = [gpu for gpu in GPUS if gpu.name.startswith(f"{stem}-")]
        near = [gpu for gpu in siblings if abs(total_bytes / gpu.total_bytes - 1) <= 0.1]
        return near[0].name if near else wanted
    return found.name
