"""The gate: an engine starts on a clean device, and leaves it clean."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.config import DeviceConfig
from bench.engine.command import MARK, OWNER
from bench.engine.guard import kill_session
from bench.environment import gpus_of
from bench.errors import BenchError
from bench.telemetry.nvml import Device, open_nvml
from bench.telemetry.procfs import all_stats, read_bytes


@dataclass(frozen=True)
class GateReport:
    """`clean`, or a sentence that says what is in the way; `foreign_pids` share the device with the engine."""

    seconds: float
    clean: bool
    sentence: str = ""
    foreign_pids: tuple[int, ...] = ()


class DeviceBusy(BenchError):
    """Another harness measures on this device."""


LOCKS = Path("/tmp")
"""Not the user's own temporary folder: the device is one whatever TMPDIR says and whoever measures."""


@contextlib.contextmanager
def device_lock(name: str) -> Iterator[None]:
    """Hold the device for this process; two sweeps at once would measure each other. Raises `DeviceBusy`."""
    path = LOCKS / f"vllm-calibrate-{name}.lock"
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        with contextlib.suppress(OSError):
            os.fchmod(handle, 0o666)  # past the umask: another user's sweep must be able to ask
    with os.fdopen(handle, "r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = lock.read().strip() or "unknown"
            raise DeviceBusy(f"device {name}: another sweep (process {holder}) measures on it; "
                             "wait for it to end, or end it") from None  # fmt: skip
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def end_orphans() -> list[int]:
    """End engines of harnesses that are gone; returns their sessions. A guard killed too could have left them."""
    ended = []
    for pid, stat in all_stats().items():
        if stat.is_dead:
            continue
        environ = read_bytes(f"/proc/{pid}/environ")
        if not environ or MARK.encode() not in environ:
            continue
        values = dict(item.split(b"=", 1) for item in environ.split(b"\0") if b"=" in item)
        owner = values.get(OWNER.encode(), b"")
        if MARK.encode() in values and owner.isdigit() and not _alive(int(owner)) and stat.session_id not in ended:
            kill_session(stat.session_id)
            ended.append(stat.session_id)
    return ended


def wait_clean(kind: str, device: DeviceConfig, beside: frozenset[int] = frozenset()) -> GateReport:
    """Wait until the device holds nothing that is not expected, at most `device.gate_timeout_s`.

    `beside`: processes that are meant to be there, the engines of the same group. With them the memory in use says
    nothing about strangers, and only processes are looked at.
    """
    began = time.monotonic()
    if kind == "cpu":
        return GateReport(time.monotonic() - began, True)
    with open_nvml() as nvml:
        gpus = gpus_of(nvml, device)
        while True:
            sentence, foreign = _obstacle(gpus, device.gate_tolerance_mib * 2**20, beside)
            waited = time.monotonic() - began
            if not sentence:
                return GateReport(waited, True)
            if waited > device.gate_timeout_s:
                clean = device.allow_foreign_processes
                return GateReport(waited, clean, sentence, foreign)
            time.sleep(0.1)


def device_pids(device: DeviceConfig) -> frozenset[int]:
    """Processes on the GPUs of a request now, as the driver numbers them."""
    with open_nvml() as nvml:
        return frozenset(process.pid for gpu in gpus_of(nvml, device) for process in gpu.processes() or ())


def _obstacle(
    gpus: list[Device], tolerance_bytes: int, beside: frozenset[int] = frozenset()
) -> tuple[str, tuple[int, ...]]:
    for gpu in gpus:
        pids = tuple(process.pid for process in gpu.processes() or () if process.pid not in beside)
        if pids:
            return f"GPU {gpu.index} is used by process(es) {', '.join(map(str, pids))}", pids
        memory = None if beside else gpu.memory()
        if memory is not None and memory.used_bytes > tolerance_bytes:
            return (
                f"GPU {gpu.index} has {memory.used_bytes / 2**20:.0f} MiB in use, more than "
                f"device.gate_tolerance_mib={tolerance_bytes // 2**20}"
            ), ()
    return "", ()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
