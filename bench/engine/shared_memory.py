"""Shared-memory segments that a killed engine leaves in /dev/shm, where they hold memory until the next boot."""

from __future__ import annotations

import contextlib
from pathlib import Path

SHM = Path("/dev/shm")


def shared_memory_names() -> frozenset[str]:
    """Segments as Python's multiprocessing names them, there now."""
    return frozenset(path.name for path in SHM.glob("psm_*"))


def remove_leaked_shared_memory(before: frozenset[str]) -> list[str]:
    """Remove the segments that came since `before` and that no process maps any more; returns their names.

    Not by owner or age: another program's segment looks just the same while it is in use.
    """
    new = shared_memory_names() - before
    if not new:
        return []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            text = maps.read_text()
            new -= {name for name in new if f"/dev/shm/{name}" in text}
    for name in new:
        with contextlib.suppress(OSError):
            (SHM / name).unlink()
    return sorted(new)
