"""One typed layer over NVIDIA's management library, by way of the `pynvml` module of nvidia-ml-py.

`open_nvml()` never raises for a machine without a GPU: it returns `NoNvml`, which has no devices and a
reason. All memory is in bytes, power in watts, energy in joules, clocks in MHz. Device indices are NVML's
own: PCI bus order over all GPUs that the driver shows to this process, whatever CUDA_VISIBLE_DEVICES says
(see visible.py).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from bench.telemetry.nvml_device import Device, MemoryInfo, ProcessMemory, call
from bench.telemetry.nvml_errors import BadDevice, GpuLost, NvmlError, NvmlUnavailable

__all__ = ["Device", "MemoryInfo", "NoNvml", "Nvml", "ProcessMemory", "open_nvml"]


class NoNvml:
    """The null object: no devices, and why."""

    available = False
    devices: tuple[Device, ...] = ()
    driver_version: str | None = None
    cuda_driver_version: str | None = None

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def device(self, index_or_uuid: int | str) -> Device:
        raise NvmlUnavailable(f"device {index_or_uuid!r} cannot be opened: {self.reason}")

    def close(self) -> None:
        """Nothing to close."""

    def __enter__(self) -> NoNvml:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Nvml:
    """An open NVML. `devices` holds every GPU in NVML order; `unreadable` maps the index of a GPU that is
    listed but cannot be opened (lost, no permission) to the reason.
    """

    available = True
    reason: str | None = None

    def __init__(self, library: ModuleType) -> None:
        self._lib = library
        self._devices: dict[int, Device] = {}
        self.unreadable: dict[int, NvmlError] = {}
        self.count: int = call(library, "nvmlDeviceGetCount")
        for index in range(self.count):
            try:
                handle = call(library, "nvmlDeviceGetHandleByIndex", index)
                self._devices[index] = Device(library, handle, index)
            except NvmlError as error:
                self.unreadable[index] = error

    @property
    def devices(self) -> tuple[Device, ...]:
        return tuple(self._devices.values())

    @property
    def driver_version(self) -> str | None:
        """For example "550.54.15"."""
        version: str | None = self._optional("nvmlSystemGetDriverVersion")
        return version

    @property
    def cuda_driver_version(self) -> str | None:
        """Newest CUDA version the driver supports, such as "12.4" (NVML: 1000·major + 10·minor)."""
        code = self._optional("nvmlSystemGetCudaDriverVersion")
        return None if code is None else f"{code // 1000}.{code % 1000 // 10}"

    def _optional(self, name: str) -> Any:
        try:
            return call(self._lib, name)
        except NvmlError:
            return None

    def device(self, index_or_uuid: int | str) -> Device:
        """The device of an NVML index, of a full "GPU-…" UUID or of a "MIG-…" UUID; raises BadDevice or
        NvmlError.

        A MIG instance carries the index of the card it is a slice of.
        """
        if isinstance(index_or_uuid, int):
            if index_or_uuid in self._devices:
                return self._devices[index_or_uuid]
            if index_or_uuid in self.unreadable:
                raise self.unreadable[index_or_uuid]
            raise BadDevice(
                f"GPU index {index_or_uuid} does not exist: NVML shows {self.count} GPU(s), from index 0"
            )
        for device in self.devices:
            if device.uuid == index_or_uuid:
                return device
        if not index_or_uuid.startswith("MIG-"):
            raise BadDevice(
                f"no GPU has the UUID {index_or_uuid!r}; `nvidia-smi -L` lists those of this machine"
            )
        try:
            handle = call(self._lib, "nvmlDeviceGetHandleByUUID", index_or_uuid)
            parent = call(self._lib, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle)
        except GpuLost:
            raise
        except NvmlError as error:
            text = f"the MIG instance {index_or_uuid!r} cannot be opened; `nvidia-smi -L` lists those here"
            raise BadDevice(f"{text} ({error})") from error
        return Device(self._lib, handle, call(self._lib, "nvmlDeviceGetIndex", parent), parent)

    def close(self) -> None:
        """Give the library back. Devices must not be used afterwards."""
        self._optional("nvmlShutdown")

    def __enter__(self) -> Nvml:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_nvml() -> Nvml | NoNvml:
    """Open NVML. Never raises: without binding, library, driver or device the answer is a `NoNvml` with a
    reason.
    """
    try:
        import pynvml
    except ImportError as error:
        return NoNvml(f"the Python module pynvml (package nvidia-ml-py) cannot be imported: {error}")
    if not hasattr(pynvml, "nvmlDeviceGetComputeRunningProcesses_v3"):
        return NoNvml("the installed pynvml is too old or is not NVIDIA's; install the package nvidia-ml-py")
    try:
        call(pynvml, "nvmlInit")
    except NvmlError as error:
        return NoNvml(str(error))
    try:
        nvml = Nvml(pynvml)
    except NvmlError as error:
        return NoNvml(str(error))
    if not nvml.count:
        nvml.close()
        return NoNvml("the NVIDIA driver is loaded but shows no GPU to this process")
    return nvml
