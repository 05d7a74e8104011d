"""Follows one engine's processes through time, cheaply enough to be read twenty times a second."""

from __future__ import annotations

import os
from dataclasses import dataclass

from bench.telemetry import procfs


@dataclass(frozen=True)
class TreeUsage:
    """Sums over the live processes of the tree. `rss_bytes` counts pages shared between them once for each.

    cpu_s: user plus system seconds since the tree began to be followed there, ended processes included with
    what
        was last seen of them. None for a sum with an unreadable process in it.
    """

    processes: int
    rss_bytes: int | None
    cpu_s: float | None


@dataclass(frozen=True)
class TreeRollup:
    """Sums of PSS, USS and anonymous memory in bytes over the live processes of the tree."""

    pss_bytes: int
    uss_bytes: int
    anon_bytes: int


class _Member:
    """Open files of one process, bound to it: a reused pid reads as gone, never as ours."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.cpu_s = 0.0
        self._files: dict[str, int] = {}
        for name in ("statm", "stat"):
            try:
                self._files[name] = os.open(f"{procfs.PROC}/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                break

    @property
    def readable(self) -> bool:
        return len(self._files) == 2

    def read(self, name: str) -> bytes | None:
        try:
            return os.pread(self._files[name], 4096, 0)
        except (OSError, KeyError):
            return None

    def close(self) -> None:
        for handle in self._files.values():
            os.close(handle)
        self._files.clear()


class ProcessTree:
    """Members are found by `refresh`, which scans /proc; `usage` reads only the members found last.

    `cgroup_procs`, the path of an engine's own cgroup.procs, adds whatever runs in there.
    """

    def __init__(self, root_pid: int, session_id: int | None = None, cgroup_procs: str | None = None) -> None:
        self.root_pid = root_pid
        self.session_id = session_id
        self._cgroup_procs = cgroup_procs
        self._members: dict[int, _Member] = {}
        self._starts: dict[int, int] = {}
        self._ended_cpu_s = 0.0
        self.denied: set[int] = set()
        """Pids of live members whose PSS this user may not read."""
        self._own_processes_only = {os.getpid()}

    @property
    def pids(self) -> set[int]:
        return set(self._members)

    def refresh(self) -> set[int]:
        """Look for new members and drop those that ended; returns the live pids."""
        stats = procfs.all_stats()
        known = {
            pid for pid, start in self._starts.items() if pid in stats and stats[pid].start_ticks == start
        }
        if self._cgroup_procs is not None:
            known |= {int(pid) for pid in (procfs.read_bytes(self._cgroup_procs) or b"").split()}
        # A root pid seen before under another start time has been reused by a stranger.
        root = self.root_pid if self.root_pid in known or self.root_pid not in self._starts else None
        live = procfs.tree_pids(root, self.session_id, known, stats) - self._own_processes_only
        for pid in [
            pid for pid in self._members if pid not in live or self._starts[pid] != stats[pid].start_ticks
        ]:
            self._drop(pid)
        for pid in live - self._members.keys():
            self._members[pid] = _Member(pid)
            self._starts[pid] = stats[pid].start_ticks
        return live

    def _drop(self, pid: int) -> None:
        member = self._members.pop(pid)
        self._ended_cpu_s += member.cpu_s
        self.denied.discard(pid)
        member.close()

    def usage(self) -> TreeUsage:
        """RSS and CPU time now."""
        rss_sum, cpu_sum, unreadable = 0, 0.0, 0
        for pid, member in list(self._members.items()):
            statm, stat_text = member.read("statm"), member.read("stat")
            rss = procfs.parse_rss(statm) if statm else None
            stat = procfs.parse_stat(stat_text) if stat_text else None
            if rss is None or stat is None or stat.is_dead:
                if stat is not None:
                    member.cpu_s = stat.cpu_s
                if member.readable or not os.path.exists(f"{procfs.PROC}/{pid}"):
                    self._drop(pid)
                else:
                    unreadable += 1
                continue
            member.cpu_s = stat.cpu_s
            rss_sum, cpu_sum = rss_sum + rss, cpu_sum + stat.cpu_s
        if unreadable:
            return TreeUsage(len(self._members), None, None)
        return TreeUsage(len(self._members), rss_sum, cpu_sum + self._ended_cpu_s)

    def rollup(self) -> TreeRollup | None:
        """PSS, USS and anonymous memory now; None where there is no process, or one that may not be read."""
        pss = uss = anon = 0
        read_any = False
        for pid in list(self._members):
            reading = procfs.rollup(pid)
            if reading is None:
                stat = procfs.read_stat(pid)
                if stat is not None and not stat.is_dead and stat.start_ticks == self._starts[pid]:
                    self.denied.add(pid)
                continue
            self.denied.discard(pid)
            read_any = True
            pss, uss, anon = pss + reading.pss_bytes, uss + reading.uss_bytes, anon + reading.anon_bytes
        return TreeRollup(pss, uss, anon) if read_any and not self.denied else None

    def close(self) -> None:
        for pid in list(self._members):
            self._drop(pid)
