"""Memory of the NUMA node that a CPU engine uses: vLLM binds it to one node and measures its budget against that."""

from __future__ import annotations

import os
from pathlib import Path

from bench.telemetry.cgroup import effective_memory_bytes
from bench.telemetry.procfs import read_bytes

NODES = Path("/sys/devices/system/node")


def node_of_cpu(cpu: int, nodes: Path = NODES) -> int | None:
    """The node of a core, or None where the kernel shows no nodes."""
    for node in sorted(nodes.glob("node[0-9]*")):
        if (node / f"cpu{cpu}").exists() or cpu in _cores((read_bytes(node / "cpulist") or b"").decode()):
            return int(node.name.removeprefix("node"))
    return None


def engine_memory_bytes(nodes: Path = NODES, proc: Path = Path("/proc")) -> int:
    """Memory against which vLLM's CPU worker (0.32.0: `get_memory_node_info`) measures `gpu_memory_utilization`: that
    of the first usable core's node, or the container's limit where that is lower; the machine's where there are no
    nodes. A node may hold far less than the machine: others have their own, and virtual machines grow by memory that
    no node counts."""
    whole = effective_memory_bytes(proc)
    node = node_of_cpu(min(os.sched_getaffinity(0)), nodes)
    total = _total(nodes / f"node{node}" / "meminfo") if node is not None else None
    return min(whole, total) if total else whole


def _total(meminfo: Path) -> int | None:
    for line in (read_bytes(meminfo) or b"").decode().splitlines():
        words = line.split()  # Node 0 MemTotal:  14903072 kB
        if len(words) >= 4 and words[2] == "MemTotal:":
            return int(words[3]) * 1024
    return None


def _cores(listed: str) -> set[int]:
    """`0-3,8` as numbers."""
    found: set[int] = set()
    for part in filter(None, listed.strip().split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found
