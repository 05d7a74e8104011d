"""The memory cgroup this process lives in: what it uses, may use, and has used at most. Versions 1 and 2.

A cgroup counts page cache and kernel memory along with the processes' own, each page once: it is the figure
that an out-of-memory kill is decided on, not the one that says what a model needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.telemetry.procfs import read_bytes

_UNLIMITED_V1 = 1 << 62  # "no limit" reads as the largest page-aligned signed 64-bit number


def _read_int(path: Path) -> int | None:
    text = (read_bytes(path) or b"").strip()
    return int(text) if text.isdigit() else None


@dataclass(frozen=True)
class MemoryCgroup:
    """One memory cgroup. `version` is 1 or 2; `mount` is where its hierarchy is mounted in this namespace."""

    path: Path
    version: int
    mount: Path

    @classmethod
    def at(cls, path: str | Path) -> MemoryCgroup:
        """The cgroup in a directory, its version told from its files; limits above it are not looked at."""
        version = 2 if (Path(path) / "memory.current").exists() else 1
        return cls(Path(path), version, Path(path))

    @property
    def procs_path(self) -> Path:
        return self.path / "cgroup.procs"

    @property
    def current_path(self) -> Path:
        return self.path / ("memory.current" if self.version == 2 else "memory.usage_in_bytes")

    @property
    def peak_path(self) -> Path:
        return self.path / ("memory.peak" if self.version == 2 else "memory.max_usage_in_bytes")

    def current_bytes(self) -> int | None:
        """Memory charged now, page cache included; None in the root cgroup of version 2, which has no such
        file.
        """
        return _read_int(self.current_path)

    def peak_bytes(self) -> int | None:
        """The most that was ever charged at once; None before Linux 5.19 in version 2."""
        return _read_int(self.peak_path)

    def limit_bytes(self) -> int | None:
        """The lowest limit of this cgroup and those above it, or None where there is none."""
        name = "memory.max" if self.version == 2 else "memory.limit_in_bytes"
        limits = []
        level = self.path
        while True:
            limit = _read_int(level / name)
            if limit is not None and (self.version == 2 or limit < _UNLIMITED_V1):
                limits.append(limit)
            if level == self.mount or self.mount not in level.parents:
                break
            level = level.parent
        return min(limits, default=None)


def find_memory_cgroup(pid: int | str = "self", proc: Path = Path("/proc")) -> MemoryCgroup | None:
    """The memory cgroup of a process, or None where the kernel has no memory controller or does not show it.

    Where both versions are mounted (hybrid), the memory controller belongs to one of them: a line of its own
    in /proc/PID/cgroup means version 1.
    """
    memberships = (read_bytes(proc / str(pid) / "cgroup") or b"").decode(errors="replace")
    mounts = (read_bytes(proc / "self" / "mountinfo") or b"").decode(errors="replace")
    paths: dict[str, str] = {}
    for line in memberships.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            paths["cgroup"] = path
        elif number == "0" and not controllers:
            paths["cgroup2"] = path
    for kind, version in (("cgroup", 1), ("cgroup2", 2)):
        if kind not in paths:
            continue
        for root, mount, options, filesystem in _cgroup_mounts(mounts):
            if filesystem == kind and (version == 2 or "memory" in options):
                found = MemoryCgroup(_below(mount, root, paths[kind]), version, mount)
                if version == 1 or _has_memory_controller(found):
                    return found
    return None


def _cgroup_mounts(mountinfo: str) -> list[tuple[str, Path, list[str], str]]:
    """(root within the hierarchy, mount point, super options, file system type) of each cgroup mount."""
    found = []
    for line in mountinfo.splitlines():
        fields, separator, tail = line.partition(" - ")
        parts, kind = fields.split(), tail.split()
        if separator and len(parts) >= 5 and len(kind) >= 3 and kind[0] in ("cgroup", "cgroup2"):
            mount = parts[4].replace("\\040", " ")
            found.append((parts[3], Path(mount), kind[2].split(","), kind[0]))
    return found


def _below(mount: Path, root: str, path: str) -> Path:
    """Where the cgroup `path` appears when the hierarchy's `root` is mounted at `mount`.

    A container often sees its own cgroup mounted as the root while /proc still shows the host's path: a path
    that does not lie below the root is then the mount itself.
    """
    if root != "/":
        if path != root and not path.startswith(root + "/"):
            return mount
        path = path[len(root) :]
    candidate = mount / path.strip("/")
    return candidate if ".." not in candidate.parts and candidate.is_dir() else mount


def _has_memory_controller(group: MemoryCgroup) -> bool:
    return b"memory" in (read_bytes(group.path / "cgroup.controllers") or b"").split()


def machine_memory_bytes(proc: Path = Path("/proc")) -> int:
    """MemTotal: all memory that the kernel manages. Virtual machines may change it while they run."""
    for line in (read_bytes(proc / "meminfo") or b"").splitlines():
        if line.startswith(b"MemTotal:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{proc}/meminfo has no MemTotal")


def effective_memory_bytes(proc: Path = Path("/proc")) -> int:
    """Memory that this process can ever get: the machine's, or its cgroup's limit where that is lower."""
    group = find_memory_cgroup(proc=proc)
    limit = group.limit_bytes() if group else None
    total = machine_memory_bytes(proc)
    return total if limit is None else min(total, limit)
