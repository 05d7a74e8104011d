"""Which cores the load client takes, and which it leaves to the engine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LEAST_CORES = 4  # with fewer, a core taken from the engine costs it more than sharing does


@dataclass(frozen=True)
class Placement:
    """``client[i]`` are the cores of worker i and ``engine`` those left to the engine; both empty where nothing is
    pinned. ``text`` says it in a line, for the row."""

    client: tuple[tuple[int, ...], ...]
    engine: tuple[int, ...]
    text: str

    def of_worker(self, worker: int) -> tuple[int, ...]:
        """The cores of worker ``worker``; empty: any."""
        return self.client[worker] if self.client else ()


def plan_cores(
    workers: int,
    cores: Sequence[int],
    siblings: Sequence[Sequence[int]] | None = None,
    bound: Iterable[int] = (),
) -> Placement:
    """Deal the allowed ``cores`` out to ``workers`` client processes and the engine.

    ``siblings`` groups the hardware threads of one physical core (default: each by itself); a worker gets whole groups,
    from the top, since a thread next door would slow an engine as one on the same core does. ``bound`` are cores that
    the engine has pinned threads to: the client takes none of them. The engine keeps at least three quarters of the
    groups; workers beyond the client's share double up. With fewer than :data:`LEAST_CORES` cores, or none left by
    ``bound``, nothing is pinned and ``text`` says so.
    """
    allowed, taken = set(cores), set(bound)
    if len(allowed) < LEAST_CORES:
        return Placement((), (), f"not pinned: {len(allowed)} cores are too few to divide")
    groups = [sorted(set(group) & allowed) for group in siblings or [[core] for core in sorted(allowed)]]
    groups = sorted(group for group in groups if group)
    free = [group for group in groups if not taken & set(group)]
    share = min(workers, max(1, len(groups) // 4), len(free))
    if share == 0:
        return Placement((), (), "not pinned: the engine has bound threads to every core")
    mine = free[-share:]
    client = tuple(tuple(mine[worker % share]) for worker in range(workers))
    used = sorted(core for group in mine for core in group)
    engine = tuple(sorted(allowed - set(used)))
    return Placement(client, engine, f"client on cores {as_ranges(used)}, engine on {as_ranges(engine)}")


def choose_placement(workers: int, engine_pids: Iterable[int] = ()) -> Placement:
    """The placement for this machine: the cores this process may use, beside an engine of processes ``engine_pids``."""
    if not hasattr(os, "sched_getaffinity"):
        return Placement((), (), "not pinned: this system cannot pin processes")
    cores = sorted(os.sched_getaffinity(0))
    return plan_cores(workers, cores, read_siblings(cores), bound_cores(engine_pids, cores))


@contextlib.contextmanager
def engine_kept_to(cores: Sequence[int], engine_pids: Iterable[int]) -> Iterator[int]:
    """Keep every thread of ``engine_pids`` that may run anywhere on ``cores``; give them back what they had at the end.

    Gives the number of threads moved. Threads that the engine itself has bound, and those that are gone or another
    user's, are left alone. Without ``cores`` nothing is done.
    """
    before: dict[int, set[int]] = {}
    if cores:
        everywhere = os.sched_getaffinity(0)
        for thread in _threads(engine_pids):
            with contextlib.suppress(OSError):
                mask = os.sched_getaffinity(thread)
                if mask >= everywhere:
                    os.sched_setaffinity(thread, cores)
                    before[thread] = mask
    try:
        yield len(before)
    finally:
        for thread, mask in before.items():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread, mask)


@contextlib.contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Keep the calling thread on ``cores`` meanwhile; without any, do nothing."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def bound_cores(pids: Iterable[int], cores: Sequence[int]) -> set[int]:
    """Cores that a thread of ``pids`` is pinned to, that is: may use, while it may not use all of ``cores``."""
    bound: set[int] = set()
    for thread in _threads(pids):
        with contextlib.suppress(OSError):
            mask = os.sched_getaffinity(thread)
            if not mask >= set(cores):
                bound |= mask
    return bound


def read_siblings(cores: Sequence[int]) -> list[list[int]]:
    """Groups of hardware threads that share a physical core; each core alone where the system does not say."""
    groups = set()
    for core in cores:
        try:
            text = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text()
            groups.add(tuple(from_ranges(text)))
        except (OSError, ValueError):
            groups.add((core,))
    return [list(group) for group in sorted(groups)]


def from_ranges(text: str) -> list[int]:
    """``"0-2,7"`` as ``[0, 1, 2, 7]``. Raises ``ValueError`` for other text."""
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return sorted(found)


def as_ranges(cores: Sequence[int]) -> str:
    """``[0, 1, 2, 7]`` as ``"0-2,7"``."""
    parts: list[list[int]] = []
    for core in sorted(cores):
        if parts and core == parts[-1][1] + 1:
            parts[-1][1] = core
        else:
            parts.append([core, core])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _threads(pids: Iterable[int]) -> list[int]:
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            found.extend(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    return found
