"""Whether the processes of an engine that do its work still live: its API server may outlive them by seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

from bench.engine.base import EngineProcess
from bench.telemetry import procfs

GRACE_S = 10.0
"""How long the API server of a dead engine core is waited for: what it says on its way out names the cause."""
_CORE = b"VLLM::"
"""vLLM's engine core and workers call themselves VLLM::EngineCore, VLLM::Worker_TP0 and so on."""


class Engine(Protocol):
    """What is watched: an engine start."""

    @property
    def process(self) -> EngineProcess | None: ...


class Vitals:
    """The engines of a group by name. Made when all are ready; `lost` are those of which a process is gone."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        stats = procfs.all_stats()
        self._engines = dict(engines)
        self._cores: dict[str, dict[int, int]] = {}
        for name, engine in engines.items():
            process = engine.process
            tree = procfs.tree_pids(process.pid, process.session_id, stats=stats) if process else set()
            cores = (pid for pid in tree if (procfs.read_bytes(f"/proc/{pid}/cmdline") or b"").startswith(_CORE))
            # The start time tells a process from a later one of the same pid.
            self._cores[name] = {pid: stats[pid].start_ticks for pid in cores}
        self.lost: set[str] = set()

    def look(self) -> set[str]:
        """Take a look at every engine; returns `lost`. Quick enough for many times a second."""
        for name, engine in self._engines.items():
            if name not in self.lost and engine.process is not None:
                gone = any(not _lives(pid, began) for pid, began in self._cores[name].items())
                if gone or engine.process.poll() is not None:
                    self.lost.add(name)
        return self.lost

    def await_end(self, name: str) -> None:
        """Wait until the launched process of a lost engine has ended too, for at most GRACE_S."""
        deadline = time.monotonic() + GRACE_S
        process = self._engines[name].process
        while process and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)


def _lives(pid: int, began: int) -> bool:
    stat = procfs.read_stat(pid)
    return stat is not None and not stat.is_dead and stat.start_ticks == began
