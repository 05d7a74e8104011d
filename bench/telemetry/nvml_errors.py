"""NVML's return codes as exceptions that a person can read and code can catch by type."""

from __future__ import annotations

from bench.errors import BadRequest, BenchError


class NvmlError(BenchError):
    """An NVML call failed. `code` is NVML's own return code (nvmlReturn_t)."""

    code = 999
    sentence = "NVML failed for an unknown reason"

    def __init__(self, call: str, code: int | None = None, detail: str = "") -> None:
        self.call = call
        self.code = type(self).code if code is None else code
        text = f"{self.sentence} (NVML code {self.code}, call {call})"
        super().__init__(f"{text}: {detail}" if detail else text)


class Uninitialized(NvmlError):
    code, sentence = 1, "NVML was used before it was opened or after it was closed"


class InvalidArgument(NvmlError):
    code, sentence = 2, "NVML refused an argument, for example a device index that does not exist"


class NotSupported(NvmlError):
    code, sentence = 3, "this GPU or driver does not support the reading"


class NoPermission(NvmlError):
    code, sentence = 4, "this user may not take the reading"


class NotFound(NvmlError):
    code, sentence = 6, "NVML found no such device"


class DriverNotLoaded(NvmlError):
    code, sentence = 9, "the NVIDIA kernel driver is not loaded"


class Timeout(NvmlError):
    code, sentence = 10, "the NVIDIA driver did not answer in time"


class LibraryNotFound(NvmlError):
    code, sentence = 12, "libnvidia-ml.so.1 was not found, so there is no NVIDIA driver here"


class FunctionNotFound(NvmlError):
    code, sentence = 13, "the installed driver is too old for this call"


class GpuLost(NvmlError):
    code, sentence = 15, "the GPU has fallen off the bus or is otherwise inaccessible"


class ResetRequired(GpuLost):
    code, sentence = 16, "the GPU must be reset before it can be used again"


class DriverMismatch(NvmlError):
    code = 18
    sentence = (
        "libnvidia-ml and the loaded kernel driver have different versions; reboot or reload the driver"
    )


class NvmlUnavailable(BenchError):
    """A GPU is required, and NVML shows none."""


class BadDevice(BadRequest):
    """A device was named that does not exist, or that cannot be measured as named."""


_BY_CODE: dict[int, type[NvmlError]] = {
    kind.code: kind
    for kind in (
        Uninitialized, InvalidArgument, NotSupported, NoPermission, NotFound, DriverNotLoaded, Timeout,
        LibraryNotFound, FunctionNotFound, GpuLost, ResetRequired, DriverMismatch,
    )
}  # fmt: skip
_BY_CODE[28] = NotFound  # NVML_ERROR_GPU_NOT_FOUND
# NVML_ERROR_ARGUMENT_VERSION_MISMATCH: an older driver, asked for a newer struct
_BY_CODE[25] = FunctionNotFound

LASTING = (NotSupported, NoPermission, FunctionNotFound, InvalidArgument)
"""Refusals that asking again does not change."""


def typed(error: Exception, call: str) -> NvmlError:
    """The exception of this module that stands for an exception of the pynvml binding."""
    code = getattr(error, "value", None)
    if not isinstance(code, int):
        # pynvml raises a class without a code when an unversioned function is missing from the library
        return FunctionNotFound(call, detail=str(error))
    return _BY_CODE.get(code, NvmlError)(call, code)
