"""What a row was measured on: the metadata that must match before rows may be pooled."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.config import DeviceConfig
from bench.errors import BadRequest
from bench.identity import content_hash
from bench.telemetry.cgroup import effective_memory_bytes
from bench.telemetry.numa import engine_memory_bytes
from bench.telemetry.nvml import Device, NoNvml, Nvml, open_nvml
from bench.telemetry.visible import visible_devices

# Metadata whose change makes a row answer another question. Host identity and commit are recorded, not checked:
# two equal machines may be pooled, and a set stays one set while the harness is improved.
CHECKED = ("device_kind", "device_name", "device_count", "vllm_version", "torch_version", "transformers_version")
CHECKED_ON_CUDA = (
    "device_memory_total_bytes", "gpu_power_limit_w", "gpu_compute_capability", "gpu_mig_mode", "driver_version",
    "cuda_driver_version",
)  # fmt: skip
# A host's memory is not among them: virtual machines grow and shrink it, and a small engine's terms do not follow.
CHECKED_ON_CPU = ("host_cpu_isa", "host_cpu_count", "cpu_threads")

# Extensions that decide which CPU kernels vLLM, oneDNN and torch select.
_ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8",
              "asimd", "bf16", "i8mm", "sve")  # fmt: skip


def version_of(package: str) -> str | None:
    """Installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def device_kind(device: DeviceConfig) -> str:
    """`cuda` or `cpu`, `auto` resolved by what the installed vLLM was built for.

    Raises `BadRequest` where no vLLM is installed or it cannot run on the device asked for.
    """
    version = version_of("vllm")
    if version is None:
        raise BadRequest(
            "vllm: not installed in this Python; run `make setup`, or set CALIBRATE_PYTHON to one that has it"
        )
    built_for = "cpu" if "cpu" in version else "cuda"
    if device.kind not in ("auto", built_for):
        raise BadRequest(f"device.kind={device.kind}: the installed vLLM {version} runs on {built_for}; "
                         f"use device={built_for}, or set up again with CALIBRATE_ENGINE={device.kind}")  # fmt: skip
    return built_for


_ENGINE_VARIABLES = ("VLLM_", "TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "NCCL_", "KMP_", "MKL_", "ONEDNN_", "DNNL_")
# Places, words, and what the harness sets for every engine anyway.
_HARMLESS_VARIABLES = frozenset({
    "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT", "VLLM_ASSETS_CACHE", "VLLM_RPC_BASE_PATH", "VLLM_LOGGING_LEVEL",
    "VLLM_NO_USAGE_STATS", "VLLM_DO_NOT_TRACK", "VLLM_SERVER_DEV_MODE", "VLLM_ENABLE_STARTUP_PLAN",
    "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_KVCACHE_SPACE", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR",
})  # fmt: skip


def default_cpu_threads(device: DeviceConfig) -> int:
    """OpenMP threads of a CPU engine: all usable cores but one, which client, scheduler and sampler share."""
    return device.cpu_threads or max(1, len(os.sched_getaffinity(0)) - 1)


def cpu_fp8() -> str:
    """The FP8 format, dynamically scaled, that vLLM's CPU engine runs at a usable speed on this processor.

    With AMX it has a kernel for 128x128 blocks, while torch takes scales per channel through oneDNN's reference
    implementation, at about 4 s a decode step for a model of 13 M parameters; without AMX there is no block kernel,
    and torch's own path for scales per channel is fast.
    """
    return "fp8-block" if "amx_tile" in _cpu_info()[1] else "fp8-dynamic"


def collect(device: DeviceConfig) -> dict[str, Any]:
    """Checked and descriptive metadata, keyed by the columns of the engines table."""
    kind = device_kind(device)
    row: dict[str, Any] = {"device_kind": kind, **_versions(), **_host()}
    if kind == "cpu":
        row |= {
            "device_name": row["host_cpu"],
            "device_memory_total_bytes": row["host_memory_bytes"],
            "host_node_memory_bytes": engine_memory_bytes(),
            "device_count": 1,
            "cpu_threads": default_cpu_threads(device),
        }
    else:
        row |= _gpus(device)
    names = CHECKED + (CHECKED_ON_CPU if kind == "cpu" else CHECKED_ON_CUDA)
    checked = {name: row.get(name) for name in names}
    if variables := inherited_variables():
        checked["variables"] = variables
    row["environment_id"] = content_hash(checked, 12)
    return row


def inherited_variables() -> dict[str, str]:
    """Variables of the harness's own environment that an engine inherits and that change what is measured."""
    return {name: value for name, value in sorted(os.environ.items())
            if name.startswith(_ENGINE_VARIABLES) and name not in _HARMLESS_VARIABLES}  # fmt: skip


def gpus_of(nvml: Nvml | NoNvml, device: DeviceConfig) -> list[Device]:
    """The GPUs of a request: `device.indices` count within CUDA_VISIBLE_DEVICES, as CUDA itself counts.

    Raises `BadRequest` where there are none, or fewer than asked for, or different ones.
    """
    if not nvml.devices:
        raise BadRequest(f"device.kind=cuda: no NVIDIA GPU can be used here ({nvml.reason})")
    visible = visible_devices(nvml)
    if any(index >= len(visible) for index in device.indices):
        raise BadRequest(f"device.indices={device.indices}: {len(visible)} GPU(s) are visible here; "
                         f"use 0 to {len(visible) - 1}")  # fmt: skip
    gpus = [visible[index] for index in device.indices]
    names = sorted({gpu.name for gpu in gpus})
    if len(names) > 1:
        raise BadRequest(
            f"device.indices={device.indices}: different GPUs ({', '.join(names)}); a run needs equal ones"
        )
    return gpus


def gpu_names(device: DeviceConfig) -> tuple[str, ...]:
    """The GPUs of a request as CUDA_VISIBLE_DEVICES names them under PCI_BUS_ID order: NVML's index, or the UUID of a
    MIG instance. Not UUIDs throughout, because vLLM's CUDA platform reads the entries as numbers."""
    return _gpu_names(tuple(device.indices))


@cache
def _gpu_names(indices: tuple[int, ...]) -> tuple[str, ...]:
    with open_nvml() as nvml:
        gpus = gpus_of(nvml, DeviceConfig(indices=list(indices)))
        return tuple(gpu.uuid if gpu.is_mig else str(gpu.index) for gpu in gpus)


def _gpus(device: DeviceConfig) -> dict[str, Any]:
    with open_nvml() as nvml:
        gpus = gpus_of(nvml, device)
        first = gpus[0]
        memory, capability, mig = first.memory(), first.compute_capability(), first.mig_enabled()
        return {
            "device_name": first.name,
            "device_memory_total_bytes": memory.total_bytes if memory else None,
            "device_count": len(gpus),
            "gpu_uuid": first.uuid,
            "gpu_power_limit_w": first.power_limit_w(),
            "gpu_compute_capability": ".".join(map(str, capability)) if capability else None,
            "gpu_mig_mode": None if mig is None else ("enabled" if mig else "disabled"),
            "driver_version": nvml.driver_version,
            "cuda_driver_version": nvml.cuda_driver_version,
        }


@cache
def _versions() -> dict[str, Any]:
    return {
        "vllm_version": version_of("vllm"),
        "torch_version": version_of("torch"),
        "transformers_version": version_of("transformers"),
        "python_version": platform.python_version(),
        "harness_version": harness_version(),
        "harness_commit": _commit(),
    }


@cache
def harness_version() -> str:
    """Version of this project, from its pyproject.toml (it runs from the checkout)."""
    import tomllib

    text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text()
    return str(tomllib.loads(text)["project"]["version"])


def _commit() -> str | None:
    root = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--short=12", "HEAD")
    if commit is None:
        return None
    # Results do not change what is measured; the code and the configuration do.
    changed = git("status", "--porcelain", "--", "bench", "conf", "analysis")
    return commit + ("+" if changed else "")


@cache
def _host() -> dict[str, Any]:
    model, flags = _cpu_info()
    return {
        "host_id": hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8],
        "host_cpu": model,
        "host_cpu_isa": " ".join(flag for flag in _ISA_FLAGS if flag in flags),
        "host_cpu_count": len(os.sched_getaffinity(0)),
        "host_memory_bytes": effective_memory_bytes(),
        "host_kernel": platform.release(),
        "container": _container(),
    }


def _cpu_info() -> tuple[str, set[str]]:
    model, flags = platform.processor() or platform.machine(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                return model, set(value.split())
    except OSError:
        pass
    return model, flags


def _container() -> str | None:
    if Path("/.dockerenv").exists():
        return "docker"
    if Path("/run/.containerenv").exists():
        return "podman"
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    try:
        vendor = Path("/sys/class/dmi/id/sys_vendor").read_text().strip()
    except OSError:
        return None
    return vendor or None
