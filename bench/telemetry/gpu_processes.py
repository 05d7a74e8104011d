"""Whose memory is it? Splits a device's processes into ours and others, or says that it cannot be known."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from bench.telemetry.nvml import Device, ProcessMemory

PID_NAMESPACE = "pid_namespace"
NOT_REPORTED = "not_reported"


@dataclass(frozen=True)
class ProcessReading:
    """Memory that our processes hold on one device, in bytes.

    used_bytes: sum over our pids, or None with a `hidden_reason`:
        "pid_namespace": processes are listed and none is ours. In a container that is how our own look, since
        NVML
            reports host pids; it is also how a device looks that we do not use yet. Which of the two cannot
            be told from pids, so nothing is assumed.
        "not_reported": the list is empty or not offered, or one of ours is listed without a figure. An empty
        list
            is not taken for zero bytes: some containers hide every process.
    foreign: the listed processes that are not known to be ours (all of them under "pid_namespace").
    """

    used_bytes: int | None
    hidden_reason: str | None
    foreign: tuple[ProcessMemory, ...]

    @property
    def foreign_used_bytes(self) -> int | None:
        """Sum over foreign processes with a figure; 0 without any; None if there are some and none has a
        figure.
        """
        known = [process.used_bytes for process in self.foreign if process.used_bytes is not None]
        return sum(known) if known or not self.foreign else None


def process_memory(device: Device, pids: Collection[int]) -> ProcessReading:
    """What `pids`, numbers of this process's PID namespace, hold on `device`. Raises GpuLost only."""
    listed = device.processes()
    if listed is None:
        return ProcessReading(None, NOT_REPORTED, ())
    ours = [process for process in listed if process.pid in pids]
    foreign = tuple(process for process in listed if process.pid not in pids)
    if not ours:
        return ProcessReading(None, PID_NAMESPACE if foreign else NOT_REPORTED, foreign)
    figures = [process.used_bytes for process in ours if process.used_bytes is not None]
    if len(figures) < len(ours):
        return ProcessReading(None, NOT_REPORTED, foreign)
    return ProcessReading(sum(figures), None, foreign)
