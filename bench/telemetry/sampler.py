"""Starts, steers and ends the sampler process, and sums up what it wrote.

    with Sampler(folder, device_indices=[0]) as sampler:
        sampler.mark("idle")
        ...                                   # at least some seconds: the baseline
        sampler.mark("launch")
        engine = launch(...)
        sampler.watch(engine.pid, session_id=engine.pid)
        ...
        summary = sampler.stop()

A process of its own keeps its schedule whatever the caller does, and costs the measured client nothing but
cores. If it dies, calls here go on without it and the summary says so: telemetry must not end a measurement.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.errors import BadRequest, BenchError
from bench.telemetry.nvml_errors import NvmlUnavailable
from bench.telemetry.peaks import PhasePeaks, between, peaks
from bench.telemetry.samples import FILE_NAME, Sample, SampleLog, read_latest, read_log, read_samples
from bench.telemetry.summary import TelemetrySummary, summarize

__all__ = [
    "PhasePeaks", "Sample", "Sampler", "SampleLog", "TelemetrySummary", "between", "peaks", "read_log",
    "read_samples", "summarize",
]  # fmt: skip

_ROOT = Path(__file__).resolve().parents[2]
_START_TIMEOUT_S = 30.0
_ANSWER_TIMEOUT_S = 10.0
_HUNG_TIMEOUT_S = 0.5
_END_TIMEOUT_S = 5.0


class Sampler:
    """Context manager around one sampler process, for one engine start. Safe to use from several threads.

    out_dir: gets samples.jsonl and sampler.log; must not hold a samples.jsonl yet.
    device_indices: NVML indices; UUIDs ("GPU-…", "MIG-…") are taken too. Empty on a machine without a GPU.
    hz: ticks a second, 0.1 to 1000. pss_hz: the most that PSS is read a second (0: at marks only); it is read
    less
        often where it would cost the sampler more than its share of a core.
    nvml_required: raise NvmlUnavailable on entering where NVML shows no device, instead of sampling the host
    only.
    """

    def __init__(
        self,
        out_dir: Path,
        device_indices: Sequence[int | str] = (),
        hz: float = 20.0,
        pss_hz: float = 4.0,
        nvml_required: bool = False,
    ) -> None:
        if not 0.1 <= hz <= 1000:
            raise BadRequest(f"hz is {hz}: the sampler takes 0.1 to 1000 ticks a second")
        if not 0 <= pss_hz <= 1000:
            raise BadRequest(f"pss_hz is {pss_hz}: it must lie between 0 (at marks only) and 1000")
        self.out_dir = Path(out_dir)
        self.path = self.out_dir / FILE_NAME
        self._arguments = [
            f"--file={self.path}",
            f"--parent-pid={os.getpid()}",
            f"--devices={json.dumps(list(device_indices))}",
            f"--hz={hz}",
            f"--pss-hz={pss_hz}",
            *(["--nvml-required"] if nvml_required else []),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._next_id = 1
        self._received = b""
        self._timeout_s = _ANSWER_TIMEOUT_S
        self._errors: list[str] = []
        self._summary: TelemetrySummary | None = None

    @property
    def pid(self) -> int | None:
        """Of the sampler process, while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def __enter__(self) -> Sampler:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it samples."""
        if self._process is not None:
            raise BadRequest("this sampler was started before: make a new one for each engine start")
        self.out_dir.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            raise BadRequest(f"{self.path} exists already: give each engine start a folder of its own")
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), environment.get("PYTHONPATH")]))
        with open(self.out_dir / "sampler.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.telemetry.sampler", *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                # an interrupt at the terminal is for the harness, which then stops the sampler in order
                start_new_session=True,
            )
        answer = self._wait_for(0, _START_TIMEOUT_S)
        if answer is None or "error" in answer:
            self._end()
            if answer is None:
                raise BenchError(f"the sampler process did not start; see {self.out_dir / 'sampler.log'}")
            raise (BadRequest if answer["exit_code"] == 2 else NvmlUnavailable)(answer["error"])

    def watch(
        self, root_pid: int, session_id: int | None = None, cgroup_path: str | Path | None = None
    ) -> None:
        """Follow this engine from now on: its root process, its session, all descendants, and whatever runs
        in its own cgroup if it has one (an `EngineCgroup.path`).
        """
        path = None if cgroup_path is None else str(cgroup_path)
        self._ask({"do": "watch", "root_pid": root_pid, "session_id": session_id, "cgroup_path": path})

    def mark(self, phase: str) -> None:
        """Label what follows as `phase`. Returns when everything, PSS included, has been read at this
        instant.
        """
        self._ask({"do": "mark", "phase": phase})

    def latest(self) -> Sample | None:
        """The newest sample on file (of the fullest device), or None before the first; reads one page or
        four.
        """
        return read_latest(self.path)

    def stop(self) -> TelemetrySummary:
        """Take a last sample, end the process, and sum up. Calling it again returns the same summary."""
        if self._summary is None:
            if self._process is not None and self._process.poll() is None:
                self._ask({"do": "stop"})
            self._end()
            log = read_log(self.path) if self.path.exists() else SampleLog()
            self._summary = summarize(log, self._errors)
        return self._summary

    def _ask(self, command: dict[str, Any]) -> None:
        with self._lock:
            if self._process is None or self._process.stdin is None:
                raise BadRequest("the sampler was not started: use it as a context manager, or call start()")
            if self._process.stdin.closed:
                return
            number, self._next_id = self._next_id, self._next_id + 1
            try:
                self._process.stdin.write(json.dumps({"id": number, **command}).encode() + b"\n")
                self._process.stdin.flush()
            except OSError:
                answer = None
            else:
                answer = self._wait_for(number, self._timeout_s)
            if answer is None:
                self._complain(command["do"])
            elif answer.get("failure"):
                self._error(answer["failure"])

    def _complain(self, do: str) -> None:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=0.5)
            self._error(f"the sampler process ended by itself (status {code}); later samples are missing")
            return
        waited = f"{self._timeout_s:.1f} s"
        self._error(f"the sampler did not answer {do!r} within {waited}; a driver call may hang")
        self._timeout_s = _HUNG_TIMEOUT_S  # do not hold up every later phase as well

    def _error(self, text: str) -> None:
        if text not in self._errors:
            self._errors.append(text)

    def _wait_for(self, number: int, timeout_s: float) -> dict[str, Any] | None:
        """The answer to command `number`; None if the process ended or did not answer in time."""
        assert self._process is not None and self._process.stdout is not None
        handle = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while True:
            line, newline, rest = self._received.partition(b"\n")
            if newline:
                self._received = rest
                answer: dict[str, Any] = json.loads(line)
                if answer["id"] == number:
                    return answer
                continue  # the late answer to a command that was given up
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0 or not select.select([handle], [], [], remaining_s)[0]:
                return None
            received = os.read(handle, 65536)
            if not received:
                return None
            self._received += received

    def _end(self) -> None:
        """Close the pipes and reap the process, by force if it does not go."""
        process = self._process
        if process is None:
            return
        with self._lock:
            if process.stdin is not None and not process.stdin.closed:
                with contextlib.suppress(OSError):
                    process.stdin.close()
            try:
                process.wait(timeout=_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                # a process stuck in the driver cannot be ended by anything
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=_END_TIMEOUT_S)
            if process.stdout is not None:
                process.stdout.close()


if __name__ == "__main__":
    from bench.telemetry.sampler_process import main

    sys.exit(main())
