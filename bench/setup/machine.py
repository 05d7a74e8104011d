"""What this machine can run: its Python, its C library, its processor, its NVIDIA devices."""

import ctypes
from typing import NamedTuple

from bench.setup import SetupError

# vLLM's wheels: Requires-Python >=3.11,<3.15.
PYTHON_FROM, PYTHON_BEFORE = (3, 11), (3, 15)
# torch 2.14 is built for CUDA 13.0, whose oldest architecture is Turing and oldest driver branch is 580.
CUDA_DRIVER_API, CUDA_DRIVER, CUDA_CAPABILITY = 13000, 580, (7, 5)
GLIBC = (2, 28)  # the wheels are manylinux_2_28


class Gpu(NamedTuple):
    """The device that decides: the one with the highest compute capability."""

    devices: int
    name: str
    memory_bytes: int
    driver: str
    cuda_api: int  # 13000 is CUDA 13.0
    capability: "tuple[int, int]"


class Engine(NamedTuple):
    kind: str  # cpu or cuda
    reason: str
    asked: bool = False  # by --engine or CALIBRATE_ENGINE, whatever the hardware says
    visible: bool = True  # the hardware is there


def check_python(version: "tuple[int, ...]", executable: str) -> None:
    """Raise `SetupError` unless vLLM has wheels for this Python and it can make a virtual environment."""
    found = ".".join(map(str, version[:3]))
    bounds = "{}.{} to {}.{}".format(*PYTHON_FROM, PYTHON_BEFORE[0], PYTHON_BEFORE[1] - 1)
    if not PYTHON_FROM <= tuple(version[:2]) < PYTHON_BEFORE:
        raise SetupError(
            f"Python {found} ({executable}) cannot run vLLM, which needs Python {bounds}: install "
            "one of these and run `make setup PYTHON=/path/to/it`."
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        package = f"python{version[0]}.{version[1]}-venv"
        raise SetupError(
            f"Python {found} ({executable}) lacks its {error.name} module, which makes virtual "
            f"environments: install it (on Debian and Ubuntu: `apt install {package}`) or name "
            "another Python with `make setup PYTHON=/path/to/it`."
        ) from None


def check_host(kind: str, system: str, machine: str, libc: str, cpuinfo: str) -> None:
    """Raise `SetupError` where the pinned builds of engine `kind` have no wheel for this host.

    `system` and `machine` are `platform`'s; `libc` is confstr's "glibc 2.36", empty where there is none.
    """
    otherwise = (
        "measure on another machine, or set CALIBRATE_PYTHON to a Python that already has a vLLM; "
        "analysis/ alone needs only `pip install -e .`."
    )
    if system != "Linux" or machine not in ("x86_64", "aarch64"):
        raise SetupError(
            f"vLLM's ready-made builds run on Linux (x86_64, aarch64), not on {system} {machine}: {otherwise}"
        )
    name, _, version = libc.partition(" ")
    if name != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < GLIBC:
        needed = ".".join(map(str, GLIBC))
        raise SetupError(
            f"vLLM's ready-made builds need glibc {needed} or newer, and this system has "
            f"{libc or 'another C library'}: {otherwise}"
        )
    flags = [set(line.split()) for line in cpuinfo.splitlines() if line.startswith("flags")]
    if kind == "cpu" and machine == "x86_64" and flags and "avx2" not in flags[0]:
        raise SetupError(f"vLLM's CPU build needs a processor with AVX2, which this one lacks: {otherwise}")


def query_nvml() -> "Gpu | str":
    """What NVIDIA's management library reports, or in words why there is no usable device."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return "no NVIDIA driver library found"
    try:
        code = nvml.nvmlInit_v2()
        if code:
            nvml.nvmlErrorString.restype = ctypes.c_char_p
            return f"NVML does not start: {(nvml.nvmlErrorString(code) or b'').decode() or code}"
        try:
            return _best_gpu(nvml)
        finally:
            nvml.nvmlShutdown()
    except AttributeError as error:  # a driver too old to know the call
        return f"NVML is too old: {error}"


def _best_gpu(nvml: ctypes.CDLL) -> "Gpu | str":
    class Memory(ctypes.Structure):
        _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]

    count, api, driver = ctypes.c_uint(), ctypes.c_int(), ctypes.create_string_buffer(96)
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) or not count.value:
        return "NVML sees no device"
    nvml.nvmlSystemGetDriverVersion(driver, len(driver))
    nvml.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(api))
    found = []
    for index in range(count.value):
        handle, memory, name = ctypes.c_void_p(), Memory(), ctypes.create_string_buffer(96)
        major, minor = ctypes.c_int(), ctypes.c_int()
        if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)):
            continue  # lost, or not ours to see
        nvml.nvmlDeviceGetName(handle, name, len(name))
        nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
        nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
        found.append(
            Gpu(
                count.value,
                name.value.decode(),
                memory.total,
                driver.value.decode(),
                api.value,
                (major.value, minor.value),
            )
        )
    return max(found, key=lambda gpu: gpu.capability) if found else "NVML can open no device"


def _cuda(api: int) -> str:
    return f"{api // 1000}.{api % 1000 // 10}"


def choose_engine(asked: "str | None", gpu: "Gpu | str") -> Engine:
    """The engine to install. `asked` is cpu, cuda, or auto or empty: then the GPU decides.

    A driver that only needs an update is an error: measuring the processor of a GPU machine unasked is worse.
    """
    asked = asked or "auto"
    if asked not in ("auto", "cpu", "cuda"):
        raise SetupError(
            f"engine {asked!r} is unknown: --engine and CALIBRATE_ENGINE take auto, cpu, cuda.", 2
        )
    if isinstance(gpu, str):
        if asked == "auto":
            return Engine("cpu", gpu)
        return Engine(asked, "asked for", asked=True, visible=asked == "cpu")
    others = f" and {gpu.devices - 1} more" if gpu.devices > 1 else ""
    name = f"{gpu.name}, {gpu.memory_bytes / 2**30:.1f} GiB{others}, driver {gpu.driver}"
    if asked != "auto":
        return Engine(asked, f"asked for; NVML: {name}", True)
    if gpu.capability < CUDA_CAPABILITY:
        return Engine(
            "cpu",
            "{}: compute capability {}.{} is below the {}.{} vLLM's build needs".format(
                gpu.name, *gpu.capability, *CUDA_CAPABILITY
            ),
        )
    if gpu.cuda_api < CUDA_DRIVER_API:
        raise SetupError(
            f"driver {gpu.driver} of {gpu.name} supports CUDA {_cuda(gpu.cuda_api)}, and the pinned vLLM "
            f"needs CUDA {_cuda(CUDA_DRIVER_API)}: update the driver to {CUDA_DRIVER} or newer, set "
            "CALIBRATE_PYTHON to a Python with an older vLLM, or choose CALIBRATE_ENGINE=cpu."
        )
    return Engine("cuda", f"NVML: {name}")
