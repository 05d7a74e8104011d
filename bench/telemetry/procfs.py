"""Memory and CPU time of processes, read from /proc.

Sizes are bytes, times seconds. A process may vanish between any two reads: then a function returns None, as
it does where this user may not look; `ProcessTree` tells the two apart, because a vanished process is not
missing from a sum and an unreadable one is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")


@dataclass(frozen=True)
class Stat:
    """The fields of /proc/PID/stat that matter here. `start_ticks` since boot tells a reused pid from the old
    one.
    """

    pid: int
    state: str
    parent_pid: int
    session_id: int
    cpu_s: float
    threads: int
    start_ticks: int

    @property
    def is_dead(self) -> bool:
        """A zombie, or on its way there: no memory of its own any more."""
        return self.state in "ZX"


@dataclass(frozen=True)
class Rollup:
    """Memory of one process as the kernel attributes it page by page (/proc/PID/smaps_rollup), in bytes.

    pss_bytes: every page divided by the number of processes that map it, so sums over a tree count it once.
    uss_bytes: pages that nobody else maps; what would be free if the process ended.
    anon_bytes: pages without a file behind them (heap, KV cache; not the mapped libraries).
    """

    rss_bytes: int
    pss_bytes: int
    uss_bytes: int
    anon_bytes: int
    swap_bytes: int


def read_bytes(path: str | Path) -> bytes | None:
    """A whole small file of /proc or sysfs, or None where it is gone or not to be read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(handle, 65536):
            parts.append(part)
        return b"".join(parts)
    except OSError:  # ESRCH: it ended while being read
        return None
    finally:
        os.close(handle)


def parse_stat(text: bytes) -> Stat | None:
    """Fields of a stat line; the command name in parentheses may itself hold spaces and parentheses."""
    opening, closing = text.find(b"("), text.rfind(b")")
    if opening < 0 or closing < 0:
        return None
    fields = text[closing + 2 :].split()
    if len(fields) < 20:
        return None
    cpu_s = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return Stat(
        int(text[:opening]),
        fields[0].decode(),
        int(fields[1]),
        int(fields[3]),
        cpu_s,
        int(fields[17]),
        int(fields[19]),
    )


def read_stat(pid: int, proc: Path = PROC) -> Stat | None:
    text = read_bytes(f"{proc}/{pid}/stat")
    return None if text is None else parse_stat(text)


def all_stats(proc: Path = PROC) -> dict[int, Stat]:
    """Every process that can be seen, by pid."""
    stats = (read_stat(int(name), proc) for name in os.listdir(proc) if name.isdecimal())
    return {stat.pid: stat for stat in stats if stat is not None}


def tree_pids(
    root_pid: int | None,
    session_id: int | None = None,
    known: Iterable[int] = (),
    stats: dict[int, Stat] | None = None,
) -> set[int]:
    """Pids of the live processes that belong together, zombies left out.

    Members are: `root_pid`, every process of `session_id`, those of `known` that still live (a worker that
    was reparented when its parent died stays a member), and the descendants of all of these in whatever
    session.
    """
    stats = all_stats() if stats is None else stats
    members = {pid for pid in (*known, root_pid) if pid in stats}
    if session_id is not None:
        members |= {pid for pid, stat in stats.items() if stat.session_id == session_id}
    children: dict[int, list[int]] = {}
    for pid, stat in stats.items():
        children.setdefault(stat.parent_pid, []).append(pid)
    waiting = list(members)
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in members:
                members.add(child)
                waiting.append(child)
    return {pid for pid in members if not stats[pid].is_dead}


def parse_rss(statm: bytes) -> int | None:
    """Resident bytes from the text of /proc/PID/statm."""
    fields = statm.split(maxsplit=2)
    return int(fields[1]) * PAGE_BYTES if len(fields) == 3 else None


def rss_bytes(pid: int) -> int | None:
    """Resident set: pages in memory, those shared with others counted in full."""
    text = read_bytes(f"{PROC}/{pid}/statm")
    return None if text is None else parse_rss(text)


def parse_rollup(text: bytes) -> Rollup | None:
    """Sums of a smaps_rollup, or of a whole smaps, whose fields have the same names."""
    sums = dict.fromkeys(
        (b"Rss", b"Pss", b"Private_Clean", b"Private_Dirty", b"Private_Hugetlb", b"Anonymous", b"Swap"), 0
    )
    found = False
    for line in text.splitlines():
        name, _, value = line.partition(b":")
        if name in sums:
            sums[name] += int(value.split()[0]) * 1024
            found = True
    if not found:
        return None
    private = sums[b"Private_Clean"] + sums[b"Private_Dirty"] + sums[b"Private_Hugetlb"]
    return Rollup(sums[b"Rss"], sums[b"Pss"], private, sums[b"Anonymous"], sums[b"Swap"])


def rollup(pid: int) -> Rollup | None:
    """PSS, USS and the rest. The kernel walks every page table entry: some milliseconds a GiB of 4 KiB pages,
    during which it holds the process's memory map for reading.
    """
    text = read_bytes(f"{PROC}/{pid}/smaps_rollup")
    if text is None and (PROC / "self/smaps_rollup").exists():
        return None
    if text is None:  # a kernel before 4.14
        text = read_bytes(f"{PROC}/{pid}/smaps")
    return None if text is None else parse_rollup(text)


def peak_rss_bytes(pid: int) -> int | None:
    """VmHWM: the largest resident set since the start, or since `reset_peak_rss`."""
    for line in (read_bytes(f"{PROC}/{pid}/status") or b"").splitlines():
        if line.startswith(b"VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def reset_peak_rss(pid: int) -> bool:
    """Set VmHWM back to the present resident set (proc(5): 5 into clear_refs). False where that is not
    allowed, not built into the kernel, or the process is gone: then a peak read later may stem from before.
    """
    try:
        handle = os.open(f"{PROC}/{pid}/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(handle, b"5")
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def cpu_s(pid: int) -> float | None:
    """User plus system time of all threads, those that ended included."""
    stat = read_stat(pid)
    return None if stat is None else stat.cpu_s


def threads(pid: int) -> int | None:
    stat = read_stat(pid)
    return None if stat is None else stat.threads
