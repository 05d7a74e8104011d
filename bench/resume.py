"""Which recorded engine starts stand, and which a later sweep starts again."""

from __future__ import annotations

from typing import Protocol

from analysis.diagnose.case import MEMORY_CAUSES
from bench.config import BenchConfig

# Causes that lie in the moment, not in the point: worth another try without being asked.
TRANSIENT = frozenset({"device_not_clean", "port_in_use", "insufficient_free_memory", "interrupted", "harness_error"})


class Ended(Protocol):
    """What the rule needs of a row."""

    @property
    def status(self) -> str: ...
    @property
    def failure_cause(self) -> str | None: ...


def passing(cause: str | None, cfg: BenchConfig) -> bool:
    """Whether a failure is worth another try. Where a failure for memory is answered by a walk down the ladder, none of
    them is: memory that was not free is then a point too large, and its answer is recorded beside it. Of a group
    neither: the memory was its other engines'."""
    expected = cfg.on_oom == "mitigate" or cfg.colocate.active
    return cause in TRANSIENT and not (expected and cause in MEMORY_CAUSES)


def settled(row: Ended, cfg: BenchConfig) -> bool:
    """Whether a recorded row stands, or its point is to be started again."""
    if cfg.rerun == "all":
        return False
    if row.status != "failed":
        return True
    return cfg.rerun == "transient" and not passing(row.failure_cause, cfg)
