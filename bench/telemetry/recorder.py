"""Takes the samples: reads devices, process tree and cgroup at one instant, and says what changed or failed.

Runs inside the sampler process. Cheap readings are taken at every tick; the costly ones (PSS, the scan of
/proc, NVML's process lists and its slower sensors) each get a share of a core and are taken as often as that
allows, and always at a mark.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.telemetry import gpu_processes
from bench.telemetry.cgroup import MemoryCgroup, find_memory_cgroup
from bench.telemetry.nvml import Device, NoNvml, Nvml
from bench.telemetry.nvml_errors import GpuLost, NvmlError
from bench.telemetry.pacer import Pacer
from bench.telemetry.process_tree import ProcessTree, TreeRollup, TreeUsage
from bench.telemetry.samples import Sample

# Shares of one core. With the cheap readings (about 0.7 %) the sum stays below 2 %.
PSS_SHARE, SCAN_SHARE, PROCESS_LIST_SHARE, SENSOR_SHARE = 0.005, 0.0025, 0.0025, 0.0025
NO_GPU = 0.5  # of the first two: an engine on the CPU computes on the cores that these readings take
SCAN_HZ = 2.0

# Resident memory of the tree that moved less than this since the last PSS reading is not worth another walk
# over its pages: a loaded, idle engine is then not disturbed at all.
PSS_WORTH_BYTES = 1 << 20

Write = Callable[[str, dict[str, Any]], None]


class _RollupThread:
    """Reads PSS beside the ticks: on a large process the kernel needs far longer for it than a tick lasts."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[ProcessTree] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[TreeRollup | None, float]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="pss", daemon=True).start()

    def _run(self) -> None:
        while True:
            tree = self._jobs.get()
            before = time.thread_time()
            reading = tree.rollup()
            self._results.put((reading, time.thread_time() - before))

    def ask(self, tree: ProcessTree) -> None:
        self._jobs.put(tree)

    def answer(self, wait: bool = False) -> tuple[TreeRollup | None, float] | None:
        try:
            return self._results.get(block=wait)
        except queue.Empty:
            return None


class Recorder:
    """Reads some devices and, after `watch`, one process tree. `write(kind, values)` takes every event."""

    def __init__(
        self, nvml: Nvml | NoNvml, devices: Sequence[Device], hz: float, pss_hz: float, write: Write
    ) -> None:
        self._nvml = nvml
        self._devices = list(devices)
        self._write = write
        self._said: set[str] = set()
        self._lost: set[int] = set()
        self._foreign: dict[int, set[int]] = {}
        self._start_s = time.monotonic()
        self._tree: ProcessTree | None = None
        self._pids: set[int] = set()
        self._shared_cgroup = find_memory_cgroup()
        self._own_cgroup: MemoryCgroup | None = None
        self._rollups = _RollupThread()
        self._rollup_asked_s: float | None = None
        self._rollup_of: tuple[int, int] | None = None
        part = 1.0 if self._devices else NO_GPU
        self.pss = Pacer(min(pss_hz, hz), part * PSS_SHARE)
        self.scan = Pacer(min(SCAN_HZ, hz), part * SCAN_SHARE)
        self.process_list = Pacer(hz, PROCESS_LIST_SHARE)
        self.sensors = Pacer(hz, SENSOR_SHARE)
        self.phase = "start"

    def now_s(self) -> float:
        """Seconds since the sampler started, of the monotonic clock."""
        return time.monotonic() - self._start_s

    def say(self, text: str, **more: Any) -> None:
        """Record an error sentence once; repeats and floods are dropped."""
        if text not in self._said and len(self._said) < 100:
            self._said.add(text)
            self._write("error", {"t_s": self.now_s(), "text": text, **more})

    def watch(self, root_pid: int, session_id: int | None, cgroup_path: str | None) -> None:
        """Follow this tree from now on; a tree followed before is let go."""
        self._settle_rollup()
        if self._tree is not None:
            self._tree.close()
        procs = None
        if cgroup_path is not None:
            self._own_cgroup = MemoryCgroup.at(cgroup_path)
            procs = str(self._own_cgroup.procs_path)
        self._tree = ProcessTree(root_pid, session_id, procs)
        self._pids = self._tree.refresh()
        if not self._pids:
            self.say(f"the watched process {root_pid} was not there when the sampler began to follow it")
        self._rollup_of = None
        self.pss.soon()

    def mark(self, phase: str) -> list[Sample]:
        """Change the phase: the same instant as the last of the old one and the first of the new one."""
        ending = self.take(everything=True)
        for sample in ending:
            sample.at_mark = True
        self.phase = phase
        return ending

    def take(self, everything: bool = False) -> list[Sample]:
        """The samples of this instant, one per device (or one without a device). `everything` reads also what
        is not due.
        """
        now = self.now_s()
        base = Sample(round(now, 6), self.phase, round(time.time(), 6))
        self._read_tree(base, now, everything)
        self._read_cgroup(base)
        list_due = everything or self.process_list.due(now)
        sensors_due = everything or self.sensors.due(now)
        list_cpu = sensor_cpu = 0.0
        rows: list[Sample] = []
        for device in self._devices:
            row = _copy(base)
            row.device_index = device.index
            rows.append(row)
            if device.index in self._lost:
                continue
            try:
                self._read_device(row, device)
                before = time.thread_time()
                if list_due:
                    self._read_processes(row, device)
                middle = time.thread_time()
                if sensors_due:
                    self._read_sensors(row, device)
                list_cpu += middle - before
                sensor_cpu += time.thread_time() - middle
            except GpuLost as error:
                self._lost.add(device.index)
                text = f"GPU {device.index} ({device.uuid}) was lost: {error}"
                self.say(text, lost_device=device.index)
        if self._devices and list_due:
            self.process_list.took(now, list_cpu)
        if self._devices and sensors_due:
            self.sensors.took(now, sensor_cpu)
        return rows or [base]

    def _read_device(self, row: Sample, device: Device) -> None:
        memory = device.memory()
        row.device_memory_used_bytes = None if memory is None else memory.used_bytes
        row.power_w = device.power_w()
        row.sm_clock_mhz = device.sm_clock_mhz()

    def _read_sensors(self, row: Sample, device: Device) -> None:
        row.energy_j = device.total_energy_j()
        row.mem_clock_mhz = device.mem_clock_mhz()
        row.temperature_c = device.temperature_c()
        row.throttle_reasons = device.throttle_reasons()
        row.gpu_utilization_pct, row.memory_utilization_pct = device.utilization_pct()

    def _read_processes(self, row: Sample, device: Device) -> None:
        reading = gpu_processes.process_memory(device, self._pids)
        known = self._foreign.setdefault(device.index, set())
        if self._tree is not None and {process.pid for process in reading.foreign} - known:
            # It may be a worker forked since the last scan: look again before calling it a stranger.
            self._pids = self._tree.refresh()
            reading = gpu_processes.process_memory(device, self._pids)
        if self._tree is not None:
            row.process_memory_used_bytes = reading.used_bytes
            row.process_memory_hidden_reason = reading.hidden_reason
        row.foreign_memory_used_bytes = reading.foreign_used_bytes
        new = {process.pid for process in reading.foreign} - known
        if new:
            known |= new
            event = {"t_s": row.t_s, "phase": self.phase, "device_index": device.index, "pids": sorted(new)}
            self._write("foreign", event)

    def _read_tree(self, row: Sample, now: float, everything: bool) -> None:
        if self._tree is None:
            return
        if everything or self.scan.due(now):
            before = time.thread_time()
            self._pids = self._tree.refresh()
            self.scan.took(now, time.thread_time() - before)
        usage = self._tree.usage()
        row.tree_processes, row.tree_rss_bytes = usage.processes, usage.rss_bytes
        row.tree_cpu_s = None if usage.cpu_s is None else round(usage.cpu_s, 3)
        rollup = self._rollup_now(now, usage) if everything else self._rollup_beside(now, usage)
        if rollup is not None:
            row.tree_pss_bytes, row.tree_uss_bytes = rollup.pss_bytes, rollup.uss_bytes
            row.tree_anon_bytes = rollup.anon_bytes
        for pid in sorted(self._tree.denied):
            self.say(f"the PSS of process {pid} may not be read by this user, so tree_pss_bytes is missing")

    def _rollup_now(self, now: float, usage: TreeUsage) -> TreeRollup | None:
        """PSS at this very instant, at the price of the ticks that it takes."""
        assert self._tree is not None
        self._settle_rollup()
        before = time.thread_time()
        rollup = self._tree.rollup()
        self.pss.took(now, time.thread_time() - before)
        self._rollup_of = (usage.processes, usage.rss_bytes or 0)
        return rollup

    def _moved(self, usage: TreeUsage) -> bool:
        if self._rollup_of is None or usage.rss_bytes is None:
            return True
        processes, rss_bytes = self._rollup_of
        return usage.processes != processes or abs(usage.rss_bytes - rss_bytes) >= PSS_WORTH_BYTES

    def _rollup_beside(self, now: float, usage: TreeUsage) -> TreeRollup | None:
        """The reading asked for at an earlier tick, if it is there by now; asks for the next when that is
        due.
        """
        assert self._tree is not None
        if self._rollup_asked_s is None:
            if self.pss.due(now) and self._moved(usage):
                self._rollup_asked_s = now
                self._rollup_of = (usage.processes, usage.rss_bytes or 0)
                self._rollups.ask(self._tree)
            return None
        answer = self._rollups.answer()
        if answer is None:
            return None
        self.pss.took(self._rollup_asked_s, answer[1])
        self._rollup_asked_s = None
        return answer[0]

    def _settle_rollup(self) -> None:
        """Wait for a reading under way and drop it: it must not be taken for one of another phase or tree."""
        if self._rollup_asked_s is not None:
            self._rollups.answer(wait=True)
            self._rollup_asked_s = None

    def _read_cgroup(self, row: Sample) -> None:
        group = self._own_cgroup or self._shared_cgroup
        if group is None:
            return
        row.cgroup_bytes = group.current_bytes()
        row.cgroup_scope = "shared" if self._own_cgroup is None else "own"
        if self._own_cgroup is not None:
            row.cgroup_peak_bytes = group.peak_bytes()

    def unavailable(self) -> dict[str, str]:
        """Readings that some device does not give, with the reason, keyed "gpu0.power_w"."""
        return {
            f"gpu{device.index}.{name}": reason
            for device in self._devices
            for name, reason in sorted(device.unavailable.items())
        }

    def describe(self) -> dict[str, Any]:
        """What the header says about the devices. Lost or half-supported devices are described as far as they
        go.
        """
        return {
            "nvml_reason": self._nvml.reason,
            "driver_version": self._nvml.driver_version,
            "cuda_driver_version": self._nvml.cuda_driver_version,
            "devices": [_identity(device) for device in self._devices],
        }


def _copy(sample: Sample) -> Sample:
    return Sample(*(getattr(sample, name) for name in Sample.__slots__))


def _identity(device: Device) -> dict[str, Any]:
    identity: dict[str, Any] = {
        "index": device.index,
        "uuid": device.uuid,
        "name": device.name,
        "is_mig": device.is_mig,
        "memory_total_bytes": device.memory_total_bytes,
    }
    try:
        memory = device.memory_info()
        identity["memory_source"] = memory.source
        identity["memory_reserved_bytes"] = memory.reserved_bytes
        identity["power_limit_w"] = device.power_limit_w()
        identity["compute_capability"] = device.compute_capability()
        identity["mig_enabled"] = device.mig_enabled()
    except NvmlError as error:
        identity["error"] = str(error)
    return identity
