"""One GPU, or one MIG instance, as NVML shows it. Memory in bytes, power in watts, energy in joules, clocks
in MHz.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from bench.telemetry.nvml_errors import LASTING, FunctionNotFound, GpuLost, NvmlError, typed

T = TypeVar("T")

_SM_CLOCK, _MEMORY_CLOCK, _TEMPERATURE_GPU = 1, 2, 0  # nvmlClockType_t, nvmlTemperatureSensors_t


def call(library: ModuleType, name: str, *arguments: Any) -> Any:
    function = getattr(library, name, None)
    if function is None:
        raise FunctionNotFound(name, detail="the installed nvidia-ml-py is too old")
    try:
        return function(*arguments)
    except (library.NVMLError, _mismatch_error(library)) as error:
        raise typed(error, name) from error


def _mismatch_error(library: ModuleType) -> type[Exception]:
    """pynvml's exception for a function missing from the library; newer versions of the binding only."""
    kind: type[Exception] = getattr(library, "NVMLLibraryMismatchError", library.NVMLError)
    return kind


@dataclass(frozen=True)
class MemoryInfo:
    """Memory of one device in bytes; total = used + free + reserved.

    `source` "v2": the driver reports its own reservation and `used_bytes` leaves it out, as nvidia-smi does.
    `source` "v1": an old driver; `reserved_bytes` is None and part of `used_bytes`.
    """

    total_bytes: int
    used_bytes: int
    free_bytes: int
    reserved_bytes: int | None
    source: str


@dataclass(frozen=True)
class ProcessMemory:
    """Device memory of one process. `pid` is the number that the driver knows, which is the host's;
    `used_bytes` is None where the driver does not say (WSL, some virtual GPUs, some containers)."""

    pid: int
    used_bytes: int | None


class Device:
    """One GPU, or one MIG instance of a GPU.

    Every getter but `memory_info` may be called per sample: what the device or the driver does not support is
    None, and `unavailable` says why by getter name. `GpuLost` is the one exception they let through.

    For a MIG instance (`is_mig`), memory and processes are those of the instance; power, energy, clocks,
    temperature, throttling and utilization belong to the whole card and are None rather than misattributed.
    """

    def __init__(self, library: ModuleType, handle: Any, index: int, parent: Any = None) -> None:
        self._lib = library
        self._handle = handle
        self._refused: set[str] = set()
        self._known_call: dict[str, int] = {}
        self.unavailable: dict[str, str] = {}
        self.index = index
        self.is_mig = parent is not None
        self._card = parent if self.is_mig else handle
        self.uuid: str = self._must("nvmlDeviceGetUUID")
        self.name: str = self._must("nvmlDeviceGetName")
        self._memory_version: int | None = getattr(library, "nvmlMemory_v2", None)
        self.memory_total_bytes: int = self.memory_info().total_bytes

    def __repr__(self) -> str:
        return f"Device({self.index}, {self.uuid}, {self.name})"

    def _must(self, name: str, *arguments: Any) -> Any:
        return call(self._lib, name, self._handle, *arguments)

    def _maybe(self, name: str, read: Callable[[], T]) -> T | None:
        """`read()`, or None with the reason noted; a lasting refusal is not asked for again."""
        if name in self._refused:
            return None
        try:
            value = read()
        except GpuLost:
            raise
        except NvmlError as error:
            self.unavailable[name] = str(error)
            if isinstance(error, LASTING):
                self._refused.add(name)
            return None
        self.unavailable.pop(name, None)
        return value

    def _of_card(self, name: str, calls: str | tuple[str, ...], *arguments: Any) -> Any:
        """A reading that exists for whole cards only, by the first of `calls` that this driver knows."""
        if self.is_mig:
            self.unavailable[name] = "belongs to the whole card, not to a MIG instance"
            return None
        return self._maybe(name, lambda: self._first_known(name, calls, arguments))

    def _first_known(self, name: str, calls: str | tuple[str, ...], arguments: tuple[Any, ...]) -> Any:
        if isinstance(calls, str):
            return self._must(calls, *arguments)
        start = self._known_call.setdefault(name, 0)
        for position, candidate in enumerate(calls[start:], start):
            try:
                value = self._must(candidate, *arguments)
            except LASTING:
                if position + 1 == len(calls):
                    raise
            else:
                self._known_call[name] = position
                return value
        raise AssertionError("unreachable: the last call returns or raises")

    def memory_info(self) -> MemoryInfo:
        """Total, used, free, reserved; raises NvmlError, being the reading that everything rests on."""
        if self._memory_version is not None:
            try:
                info = self._must("nvmlDeviceGetMemoryInfo", self._memory_version)
            except LASTING:
                self._memory_version = None  # an old driver: v1 from now on
            else:
                # Documentation and drivers disagree on whether v2's `used` includes the reservation; the
                # difference of the other three does not depend on it.
                used = max(0, info.total - info.free - info.reserved)
                return MemoryInfo(info.total, used, info.free, info.reserved, "v2")
        info = self._must("nvmlDeviceGetMemoryInfo")
        return MemoryInfo(info.total, info.used, info.free, None, "v1")

    def memory(self) -> MemoryInfo | None:
        """`memory_info()` for a sample: None where it fails, `GpuLost` where the GPU is gone."""
        return self._maybe("memory", self.memory_info)

    def processes(self) -> list[ProcessMemory] | None:
        """Compute and graphics processes on the device, one entry a pid; None if the driver does not list
        them.

        A process with both kinds of context stands in both of NVML's lists with the same memory, so the
        larger figure counts; several entries of one list (compute instances) add up.
        """
        lists = [
            self._maybe(f"{kind.lower()}_processes", functools.partial(self._process_list, kind))
            for kind in ("Compute", "Graphics")
        ]
        if lists[0] is None:
            return None
        merged: dict[int, int | None] = {}
        for listed in lists:
            for pid, used in (listed or {}).items():
                known = [value for value in (merged.get(pid), used) if value is not None]
                merged[pid] = max(known, default=None)
        return [ProcessMemory(pid, used) for pid, used in sorted(merged.items())]

    def _process_list(self, kind: str) -> dict[int, int | None]:
        for version in ("_v3", "_v2"):
            try:
                listed = self._must(f"nvmlDeviceGet{kind}RunningProcesses{version}")
                break
            except FunctionNotFound:
                if version == "_v2":
                    raise
        result: dict[int, int | None] = {}
        for process in listed:
            used, before = process.usedGpuMemory, result.get(process.pid, 0)
            result[process.pid] = None if used is None or before is None else before + used
        return result

    def power_w(self) -> float | None:
        """Power draw of the board; averaged over one second by the driver from Ampere (but GA100) on."""
        milliwatts = self._of_card("power_w", "nvmlDeviceGetPowerUsage")
        return None if milliwatts is None else milliwatts / 1000

    def power_limit_w(self) -> float | None:
        """The limit that the driver enforces now."""
        milliwatts = self._of_card("power_limit_w", "nvmlDeviceGetEnforcedPowerLimit")
        return None if milliwatts is None else milliwatts / 1000

    def total_energy_j(self) -> float | None:
        """Energy since the driver was loaded, from its millijoule counter (Volta and later)."""
        millijoules = self._of_card("total_energy_j", "nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1000

    def sm_clock_mhz(self) -> int | None:
        clock: int | None = self._of_card("sm_clock_mhz", "nvmlDeviceGetClockInfo", _SM_CLOCK)
        return clock

    def mem_clock_mhz(self) -> int | None:
        clock: int | None = self._of_card("mem_clock_mhz", "nvmlDeviceGetClockInfo", _MEMORY_CLOCK)
        return clock

    def temperature_c(self) -> int | None:
        """GPU core temperature, by the newer of NVML's two calls that the driver has."""
        calls = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")
        value: int | None = self._of_card("temperature_c", calls, _TEMPERATURE_GPU)
        return value

    def throttle_reasons(self) -> int | None:
        """Bit mask of why clocks are where they are; `throttle.names` decodes it."""
        newer_first = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        mask: int | None = self._of_card("throttle_reasons", newer_first)
        return mask

    def utilization_pct(self) -> tuple[int | None, int | None]:
        """(GPU, memory): share of the driver's last sample period, 1/6 to 1 s, with a kernel running, and
        with device memory read or written.
        """
        rates = self._of_card("utilization_pct", "nvmlDeviceGetUtilizationRates")
        return (None, None) if rates is None else (rates.gpu, rates.memory)

    def gpu_utilization_pct(self) -> int | None:
        return self.utilization_pct()[0]

    def memory_utilization_pct(self) -> int | None:
        return self.utilization_pct()[1]

    def compute_capability(self) -> tuple[int, int] | None:
        """(major, minor), of the card where the device is a MIG instance."""
        name = "nvmlDeviceGetCudaComputeCapability"
        return self._maybe("compute_capability", lambda: call(self._lib, name, self._card))

    def mig_enabled(self) -> bool | None:
        """Whether the card is split into MIG instances now; None where the GPU cannot be split."""
        mode = self._maybe("mig_enabled", lambda: call(self._lib, "nvmlDeviceGetMigMode", self._card))
        return None if mode is None else bool(mode[0])
