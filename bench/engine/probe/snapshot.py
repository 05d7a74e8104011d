"""One reading of this process's memory: torch's CUDA allocator, the device, and the host. All values are
bytes (int).

Every source is read by itself, and a source that fails leaves its keys out and a sentence in `problems`: a
reading taken right after an out-of-memory error must still give what can be had.
"""

from __future__ import annotations

import sys
import time
from typing import Any

# /proc/<pid>/status field -> our name. VmHWM is the kernel's own high-water mark of VmRSS.
_STATUS_FIELDS = {
    "VmRSS": "rss_bytes",
    "VmHWM": "rss_peak_bytes",
    "RssAnon": "rss_anon_bytes",
    "RssFile": "rss_file_bytes",
    "RssShmem": "rss_shmem_bytes",
    "VmSwap": "swap_bytes",
}
_SMAPS_FIELDS = {"Private_Dirty": "private_dirty_bytes", "Pss": "pss_bytes"}

# torch.cuda.memory_stats() key -> our name.
_ALLOCATOR_FIELDS = {
    "allocated_bytes.all.current": "allocated_bytes",
    "allocated_bytes.all.peak": "allocated_peak_bytes",
    "reserved_bytes.all.current": "reserved_bytes",
    "reserved_bytes.all.peak": "reserved_peak_bytes",
    "inactive_split_bytes.all.current": "inactive_split_bytes",
}


def _proc_fields(path: str, wanted: dict[str, str]) -> dict[str, int]:
    """The `Name:  123 kB` lines of a /proc file as bytes."""
    found: dict[str, int] = {}
    with open(path, encoding="ascii", errors="replace") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in wanted:
                found[wanted[name]] = int(rest.split()[0]) * 1024
    return found


def host_memory(problems: list[str], *, with_smaps: bool = True) -> dict[str, int]:
    """RSS, its peak (VmHWM), anonymous part and dirty private pages of this process.

    `with_smaps=False` leaves out the two values that make the kernel walk the page tables (about 10 ms per
    GiB).
    """
    values: dict[str, int] = {}
    sources = [("/proc/self/status", _STATUS_FIELDS)]
    if with_smaps:
        sources.append(("/proc/self/smaps_rollup", _SMAPS_FIELDS))
    for path, wanted in sources:
        try:
            values.update(_proc_fields(path, wanted))
        except Exception as error:
            problems.append(f"{path} could not be read: {error!r}")
    return values


def cuda_memory(problems: list[str]) -> dict[str, int] | None:
    """Allocator statistics and free/total of the current CUDA device, or None where CUDA is not in use.

    Never initialises CUDA: a probe that creates a context would itself be what it measures.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    values: dict[str, int] = {}
    try:
        if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
            return None
        stats = torch.cuda.memory_stats()
        values.update({ours: int(stats.get(theirs, 0)) for theirs, ours in _ALLOCATOR_FIELDS.items()})
    except Exception as error:
        problems.append(f"torch.cuda.memory_stats failed: {error!r}"[:500])
    try:
        free, total = torch.cuda.mem_get_info()
        values.update(free_bytes=int(free), total_bytes=int(total))
    except Exception as error:
        problems.append(f"torch.cuda.mem_get_info failed: {error!r}"[:500])
    return values


def take(problems: list[str], *, with_smaps: bool = True) -> dict[str, Any]:
    """One reading: `{"unix_s": float, "host": {...}, "cuda": {...} or None}`."""
    return {
        "unix_s": time.time(),
        "host": host_memory(problems, with_smaps=with_smaps),
        "cuda": cuda_memory(problems),
    }


def reset_torch_peaks(problems: list[str]) -> None:
    """Set torch's CUDA peaks back to the current values; statistics only, nothing is freed."""
    torch = sys.modules.get("torch")
    try:
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
    except Exception as error:
        problems.append(f"torch.cuda.reset_peak_memory_stats failed: {error!r}"[:500])


def reset_peaks(problems: list[str]) -> None:
    """Set torch's CUDA peaks and the kernel's VmHWM of this process back to the current values."""
    reset_torch_peaks(problems)
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # proc(5): "5" resets the peak resident set size
    except Exception as error:
        problems.append(f"VmHWM could not be reset through /proc/self/clear_refs: {error!r}")
