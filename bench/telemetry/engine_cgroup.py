"""A memory cgroup of its own for one engine, where this user may make one: its peak is the kernel's, not a
sample's.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from pathlib import Path

from bench.telemetry.cgroup import MemoryCgroup, find_memory_cgroup
from bench.telemetry.procfs import read_bytes

_FOUND = object()


class NoEngineCgroup:
    """The null object: the engine stays in the harness's own cgroup, and `reason` says why."""

    scope = "shared"
    path: Path | None = None

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def add(self, pid: int) -> bool:
        return False

    def current_bytes(self) -> int | None:
        return None

    def peak_bytes(self) -> int | None:
        return None

    def oom_kills(self) -> int | None:
        return None

    def pids(self) -> list[int]:
        return []

    def close(self) -> list[str]:
        return []

    def __enter__(self) -> NoEngineCgroup:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to remove."""


class EngineCgroup:
    """A child cgroup that starts empty. Only memory first touched after `add` is charged to it, so add the
    engine's first process right after its launch; what it forks later follows by itself.

    As a context manager it kills what still runs inside and removes itself.
    """

    scope = "own"
    reason: str | None = None

    def __init__(self, group: MemoryCgroup) -> None:
        self.group = group
        self.path: Path = group.path
        self._last_peak_bytes: int | None = None

    @classmethod
    def create(
        cls, name: str, parent: MemoryCgroup | None | object = _FOUND
    ) -> EngineCgroup | NoEngineCgroup:
        """Make a cgroup for the engine `name` below this process's own (or below `parent`).

        Never raises; where it cannot be done the answer is a `NoEngineCgroup`. In version 2 a cgroup that
        holds processes cannot hand the memory controller to children, so the engine's becomes a sibling, and
        only where the own cgroup has no limit of its own that the engine would escape by that.
        """
        group = find_memory_cgroup() if parent is _FOUND else parent
        if not isinstance(group, MemoryCgroup):
            return NoEngineCgroup("this machine shows no memory cgroup")
        home = group if group.version == 1 else _home_v2(group)
        if isinstance(home, str):
            return NoEngineCgroup(home)
        _remove_stale(home.path)
        label = re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:64]
        for attempt in range(100):
            path = home.path / f"calibrate-{label}-{os.getpid()}-{attempt}"
            try:
                path.mkdir()
            except FileExistsError:
                continue
            except OSError as error:
                return NoEngineCgroup(f"no cgroup can be made below {home.path}: {error.strerror}")
            made = cls(MemoryCgroup(path, home.version, home.mount))
            if made.current_bytes() is None or not os.access(made.group.procs_path, os.W_OK):
                made.close()
                return NoEngineCgroup(
                    f"the cgroup made below {home.path} has no memory controller or may not be joined"
                )
            return made
        return NoEngineCgroup(f"{home.path} already holds 100 cgroups of this name and process")

    def add(self, pid: int) -> bool:
        """Move a process (all its threads) in. False if it is gone or may not be moved."""
        try:
            self.group.procs_path.write_text(str(pid))
        except OSError:
            return False
        return True

    def current_bytes(self) -> int | None:
        return self.group.current_bytes()

    def peak_bytes(self) -> int | None:
        """The kernel's own peak since `create`; after `close`, the last one read."""
        peak = self.group.peak_bytes()
        self._last_peak_bytes = self._last_peak_bytes if peak is None else peak
        return self._last_peak_bytes

    def oom_kills(self) -> int | None:
        """How many of its processes the kernel's out-of-memory killer has ended; None where it does not say."""
        name = "memory.events" if self.group.version == 2 else "memory.oom_control"
        for line in (read_bytes(self.path / name) or b"").decode().splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill" and value.isdigit():
                return int(value)
        return None

    def pids(self) -> list[int]:
        return [int(pid) for pid in (read_bytes(self.group.procs_path) or b"").split()]

    def kill(self, timeout_s: float = 10.0) -> bool:
        """SIGKILL everything inside, including what forks meanwhile; True once it is empty."""
        deadline = time.monotonic() + timeout_s
        while pids := self.pids():
            if time.monotonic() > deadline:
                return False
            try:
                (self.path / "cgroup.kill").write_text("1")  # version 2 from Linux 5.14 on: all at once
            except OSError:
                for pid in pids:
                    if pid and pid != os.getpid():  # 0: a process outside this PID namespace
                        _kill(pid)
            time.sleep(0.02)
        return True

    def close(self, timeout_s: float = 10.0) -> list[str]:
        """Kill the rest and remove the cgroup. Returns sentences about what could not be done."""
        if not self.path.is_dir():
            return []
        self.peak_bytes()
        if not self.kill(timeout_s):
            return [f"processes {self.pids()} survived SIGKILL in {self.path}, which stays behind"]
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.path.rmdir()
                return []
            except FileNotFoundError:
                return []
            except OSError as error:  # EBUSY while the last process is still being reaped
                if time.monotonic() > deadline:
                    return [f"the cgroup {self.path} could not be removed: {error.strerror}"]
                time.sleep(0.02)

    def __enter__(self) -> EngineCgroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _remove_stale(home: Path) -> None:
    """Remove the empty cgroups of harnesses that were killed before they could."""
    for path in home.glob("calibrate-*"):
        owner = path.name.split("-")[-2]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(OSError):  # not empty: its engine is still being ended
                path.rmdir()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _home_v2(own: MemoryCgroup) -> MemoryCgroup | str:
    """The version 2 cgroup to make the engine's cgroup in, or why there is none."""
    if _hands_on_memory(own.path):
        return own
    parent = own.path.parent
    if own.path == own.mount:
        return f"the memory controller is not delegated below {own.path}, which holds this process"
    if not _hands_on_memory(parent):
        return f"neither {own.path} nor {parent} hands the memory controller to its children"
    limit = MemoryCgroup(own.path, 2, own.path).limit_bytes()
    if limit is not None:
        return f"{own.path} has a limit of {limit} bytes, which an engine beside it would escape"
    if not os.access(parent / "cgroup.procs", os.W_OK):
        return f"this user may not move processes below {parent}"
    return MemoryCgroup(parent, 2, own.mount)


def _hands_on_memory(path: Path) -> bool:
    return b"memory" in (read_bytes(path / "cgroup.subtree_control") or b"").split()
