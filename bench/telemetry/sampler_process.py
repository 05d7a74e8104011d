"""The life of the sampler process: a fixed schedule of ticks, commands from its parent, and an end with the
parent.

Commands arrive as JSON lines on standard input and are answered on standard output. The process ends when
told to, when its input closes, or when its parent is gone; the kernel's parent-death signal only makes the
last one prompt.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import queue
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.telemetry.nvml import Device, NoNvml, Nvml, open_nvml
from bench.telemetry.nvml_errors import NvmlError, NvmlUnavailable
from bench.telemetry.recorder import Recorder
from bench.telemetry.samples import encode, encode_sample

STATS_EVERY_S = 1.0
_PR_SET_PDEATHSIG = 1
_GRACE_S = 3.0


class _File:
    """The sample file: created new, appended to in whole lines, and never a reason to stop."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self.failure: str | None = None

    def write(self, lines: bytes) -> None:
        try:
            os.write(self._handle, lines)
        except OSError as error:  # a full disk: keep running, the parent hears of it at the end
            self.failure = f"samples could not be written: {error.strerror}"

    def event(self, kind: str, values: dict[str, Any]) -> None:
        self.write(encode(kind, values))


class _Control(threading.Thread):
    """Reads commands, and ends the process when the parent is gone even if a driver call never returns."""

    def __init__(self, parent_pid: int) -> None:
        super().__init__(name="control", daemon=True)
        self._parent_pid = parent_pid
        self.commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def parent_is_gone(self) -> bool:
        return os.getppid() != self._parent_pid

    def run(self) -> None:
        pending = b""
        while True:
            readable, _, _ = select.select([0], [], [], 1.0)
            if self.parent_is_gone():
                break
            if not readable:
                continue
            received = os.read(0, 65536)
            if not received:
                break
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                self.commands.put(json.loads(line))
        self.commands.put({"do": "stop"})
        time.sleep(_GRACE_S)
        os._exit(1)


def _answer(command: dict[str, Any], **values: Any) -> None:
    if "id" in command:
        try:
            os.write(1, json.dumps({"id": command["id"], **values}).encode() + b"\n")
        except OSError:
            return  # the parent is gone; the control thread notices


class _Loop:
    def __init__(self, recorder: Recorder, file: _File, control: _Control, hz: float) -> None:
        self._recorder, self._file, self._control = recorder, file, control
        self._period_s = 1.0 / hz
        self._first_s = recorder.now_s()
        self._tick = 0
        self._missed = 0
        self._ticks = 0
        self._stats_due_s = 0.0
        self._start_cpu_s = time.process_time()

    def run(self) -> None:
        """Tick at first + n · period for n = 0, 1, …: lateness never adds up, ticks that were slept through
        count.
        """
        while True:
            due_s = self._first_s + self._tick * self._period_s
            while (wait_s := due_s - self._recorder.now_s()) > 0:
                try:
                    command = self._control.commands.get(timeout=wait_s)
                except queue.Empty:
                    break
                if self._obey(command):
                    return
            now_s = self._recorder.now_s()
            reached = math.floor((now_s - self._first_s) / self._period_s + 1e-6)
            if reached > self._tick:
                self._missed += reached - self._tick
                self._tick = reached
            self._write_samples(self._recorder.take())
            self._ticks += 1
            self._tick += 1
            if now_s >= self._stats_due_s:
                self._stats_due_s = now_s + STATS_EVERY_S
                self._file.event("stats", self.stats())
            # Even when every tick is late, commands must get through.
            while not self._control.commands.empty():
                if self._obey(self._control.commands.get()):
                    return

    def _write_samples(self, samples: list[Any]) -> None:
        self._file.write(b"".join(map(encode_sample, samples)))

    def _obey(self, command: dict[str, Any]) -> bool:
        """Carry out a command; True if it was the last."""
        do = command.get("do")
        if do == "stop":
            self._write_samples(self._recorder.mark(self._recorder.phase))
            self._file.event("stats", {**self.stats(), "final": True})
            _answer(command, failure=self._file.failure)
            return True
        if do == "mark":
            ending = self._recorder.mark(command["phase"])
            self._write_samples(ending)
            for sample in ending:
                sample.phase = self._recorder.phase
            self._write_samples(ending)
        elif do == "watch":
            self._recorder.watch(command["root_pid"], command["session_id"], command["cgroup_path"])
        _answer(command, failure=self._file.failure)
        return False

    def stats(self) -> dict[str, Any]:
        recorder = self._recorder
        return {
            "t_s": round(recorder.now_s(), 6),
            "ticks": self._ticks,
            "missed_ticks": self._missed,
            "cpu_s": round(time.process_time(), 4),
            "start_cpu_s": round(self._start_cpu_s, 4),
            "readings": {
                name: [pacer.readings, round(pacer.cpu_s, 4)]
                for name in ("pss", "scan", "process_list", "sensors")
                for pacer in (getattr(recorder, name),)
            },
            "unavailable": recorder.unavailable(),
        }


def _choose(nvml: Nvml | NoNvml, wanted: list[int | str], required: bool) -> tuple[list[Device], list[str]]:
    """The devices to sample, and sentences about those that cannot be."""
    if not nvml.available:
        if required:
            raise NvmlUnavailable(f"GPU telemetry is required, but {nvml.reason}")
        return [], [f"no GPU telemetry: {nvml.reason}"] if wanted else []
    devices: list[Device] = []
    problems: list[str] = []
    for name in wanted:
        try:
            devices.append(nvml.device(name))
        except NvmlError as error:
            if required:
                raise
            problems.append(f"GPU {name} cannot be sampled: {error}")
    return devices, problems


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Sample devices and a process tree into a file.")
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--devices", type=json.loads, default=[])
    parser.add_argument("--hz", type=float, required=True)
    parser.add_argument("--pss-hz", type=float, required=True)
    parser.add_argument("--nvml-required", action="store_true")
    options = parser.parse_args(arguments)

    control = _Control(options.parent_pid)

    # The signal comes at the death of the parent's *thread*, so it may only prompt a look, never end the
    # process.
    def stop(number: int, frame: object) -> None:
        if number == signal.SIGTERM or control.parent_is_gone():
            control.commands.put({"do": "stop"})

    signal.signal(signal.SIGUSR1, stop)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)
    if control.parent_is_gone():
        return 1
    control.start()

    try:
        nvml = open_nvml()
        devices, problems = _choose(nvml, options.devices, options.nvml_required)
        file = _File(options.file)
    except (BenchError, OSError) as error:
        _answer({"id": 0}, error=str(error), exit_code=getattr(error, "exit_code", 1))
        return 1
    recorder = Recorder(nvml, devices, options.hz, options.pss_hz, file.event)
    file.event(
        "header",
        {
            "format": 1,
            "pid": os.getpid(),
            "hz": options.hz,
            "start_unix_s": time.time() - recorder.now_s(),
            "start_monotonic_s": time.monotonic() - recorder.now_s(),
            **recorder.describe(),
        },
    )
    for problem in problems:
        recorder.say(problem)
    _answer({"id": 0})
    _Loop(recorder, file, control, options.hz).run()
    nvml.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
