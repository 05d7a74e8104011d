"""One engine start from a clean device to a clean device, as one row that is written whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import checkpoint
from bench.engine import failure, logs, memory, phases
from bench.engine.base import EngineProcess, LaunchRequest
from bench.engine.command import engine_env, serve_argv
from bench.engine.gate import device_pids, wait_clean
from bench.engine.guard import Guard
from bench.engine.launchers import Launchers
from bench.engine.lifecycle import StartFailed, StopReport, stop, wait_ready
from bench.engine.server import Server, ServerError, free_port, port_is_free
from bench.engine.shared_memory import remove_leaked_shared_memory, shared_memory_names
from bench.environment import gpu_names, inherited_variables
from bench.expectation import Expectation, expect
from bench.load.metrics import parse_metrics
from bench.outcome import Outcome, fail
from bench.progress import Progress
from bench.record.store import ResultSet
from bench.request import Request
from bench.rows import (
    as_json,
    pss_when_ready,
    request_columns,
    sample_rows,
    telemetry_columns,
    telemetry_flags,
    workload_telemetry,
)
from bench.scratch import scratch_dir
from bench.telemetry import procfs
from bench.telemetry.engine_cgroup import EngineCgroup
from bench.telemetry.off import NoSampler
from bench.telemetry.sampler import Sampler, read_samples
from bench.workload_run import WorkloadRun


def measure(
    request: Request,
    environment: dict[str, Any],
    results: ResultSet,
    launchers: Launchers,
    guard: Guard,
    progress: Progress,
) -> Outcome:
    """Measure one request. Never raises for what an engine does; a failed start is an `Outcome` like any other."""
    outcome, expectation = begin(request, environment)
    with held(request, outcome, expectation, results, launchers, guard, progress) as engine:
        if engine is not None:
            engine.run_workloads()
    return outcome


def begin(request: Request, environment: dict[str, Any]) -> tuple[Outcome, Expectation]:
    """The row of an engine start as far as it is known before the launch."""
    began = time.time()
    stamp = datetime.fromtimestamp(began, UTC).strftime("%Y%m%dT%H%M%S")
    run_id = f"{request.point_id}-r{request.cfg.repeat}-{stamp}{int(began * 1000) % 1000:03d}"
    expectation = expect(request, environment)
    row: dict[str, Any] = {
        "run_id": run_id,
        "started_unix_s": began,
        "flags": [],
        "warnings": list(request.source.notes),
    }
    row |= environment | request_columns(request) | expectation.columns()
    if variables := inherited_variables():
        said = " ".join(f"{name}={value}" for name, value in variables.items())
        row["warnings"].append(f"inherited from the harness's own environment: {said}")
    if expectation.note:
        row["warnings"].append(expectation.note)
    return Outcome(run_id, row), expectation


@contextlib.contextmanager
def held(
    request: Request, outcome: Outcome, expectation: Expectation, results: ResultSet, launchers: Launchers,
    guard: Guard, progress: Progress, group: list[EngineStart] | None = None,
) -> Iterator[EngineStart | None]:  # fmt: skip
    """An engine from clean device to clean device, running while the body runs; None where it did not start.

    `group`: the engines beside it; this one joins them. What the body raises, short of an interrupt, is written into
    the row.
    """
    row = outcome.engine
    if request.cfg.prune and expectation.cannot_fit:
        fail(row, "unknown", "cannot_fit", expectation.cannot_fit, status="pruned")
        row["shortfall_bytes"] = expectation.shortfall_bytes
        yield None
    else:
        progress.phase("import")
        launchers.prepare(request)
        with scratch_dir(request.cfg.paths.scratch) as scratch:
            entered = False
            try:
                engine = EngineStart(request, outcome, scratch, results, launchers, guard, progress, group or ())
                if group is not None:
                    engine.group = group
                    group.append(engine)
                with engine.running(expectation) as ready:
                    entered = True
                    yield engine if ready else None
            except Exception as error:  # a defect of ours must not lose what the engine showed until then
                sentence = f"the harness itself failed: {type(error).__name__}: {error}"
                fail(row, "unknown", "harness_error", sentence, traceback.format_exc())
                if not entered:
                    yield None
    row["ended_unix_s"] = time.time()
    row["total_s"] = row["ended_unix_s"] - row["started_unix_s"]


class EngineStart:
    """One engine start in progress: what `measure` does between two clean devices."""

    def __init__(
        self, request: Request, outcome: Outcome, scratch: Path, results: ResultSet, launchers: Launchers, guard: Guard,
        progress: Progress, group: Sequence[EngineStart] = (),
    ) -> None:  # fmt: skip
        self.request, self.outcome, self.row = request, outcome, outcome.engine
        self.scratch, self.launchers, self.guard, self.progress = scratch, launchers, guard, progress
        self.group = group
        self.device_pids: frozenset[int] = frozenset()
        """Processes on the device when this engine of a group became ready: its own and those of the ones before."""
        self.sampler: Sampler | NoSampler = NoSampler(scratch / "telemetry")
        self.probe_dir = scratch / "probe"
        self.probe_dir.mkdir()
        self.log = results.logs / f"{outcome.run_id}.log"
        self.launched_unix_s = self.ready_unix_s = 0.0
        self.process: EngineProcess | None = None
        self.server: Server | None = None
        self.cgroup = EngineCgroup.create("engine")
        self.shared_memory = shared_memory_names()

    # -- the way through ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def running(self, expectation: Expectation) -> Iterator[bool]:
        """Gate, launch and report; then the body, told whether the engine is ready; then stop, gate and sum up."""
        cfg = self.request.cfg
        names = gpu_names(cfg.device) if self.request.device_kind == "cuda" else ()
        gpus = [int(name) if name.isdecimal() else name for name in names]
        if cfg.telemetry.enabled:
            hz = cfg.telemetry.samples_per_s(self.request.device_kind)
            self.sampler = Sampler(self.scratch / "telemetry", gpus, hz, cfg.telemetry.pss_hz)
        else:
            self.row["warnings"].append("telemetry.enabled=false: no device or process figures were taken")
        try:
            with self.cgroup, self.sampler:
                self.phase("gate")
                if not self.gate("before"):
                    yield False
                    return
                self.phase("idle")
                time.sleep(cfg.telemetry.idle_s)
                try:
                    yield self.start_and_report(expectation)
                except KeyboardInterrupt:
                    # A second one would leave the engine to the guard and a stack trace to the person.
                    if signal.signal(signal.SIGINT, signal.SIG_IGN) is not signal.SIG_IGN:
                        what = "engines" if self.group else "engine"
                        self.progress.note(f"stopping the {what}; this takes a few seconds")
                    raise
                finally:
                    self.phase("stop")
                    self.stop()
                self.gate("after")
        finally:
            self.finish()

    def phase(self, name: str) -> None:
        """Enter a phase, for the timeline and for the person who watches."""
        self.sampler.mark(name)
        self.progress.phase(name)
        if self.progress.point and self.progress.point.read_memory is None:
            self.progress.point.read_memory = lambda: _memory_now(self.sampler)

    def gate(self, when: str) -> bool:
        """Wait for a clean device; False where the run must not go on. Engines of the same group are no strangers."""
        gate = wait_clean(self.request.device_kind, self.request.cfg.device, self.siblings())
        self.row[f"gate_{when}_s"] = gate.seconds
        if gate.foreign_pids:
            self.row["flags"].append("foreign_processes")
        if not gate.clean and when == "before":
            fail(self.row, "gate", "device_not_clean", gate.sentence)
        elif not gate.clean:
            self.row["flags"].append("device_not_clean_after")
        return gate.clean

    def siblings(self) -> frozenset[int]:
        """Processes of the group's other engines, as this machine and as the device's driver number them."""
        found: frozenset[int] = frozenset()
        for other in self.group:
            if other is not self and other.process is not None:
                found |= other.device_pids | procfs.tree_pids(other.process.pid, other.process.session_id)
        return found

    def start_and_report(self, expectation: Expectation) -> bool:
        """Launch and read the memory terms; False, with the row saying why, where the engine cannot be used."""
        try:
            self.start()
            self.report_memory(expectation)
        except StartFailed as error:
            self.diagnose(error)
        return self.row.get("failure_cause") is None

    def start(self) -> None:
        """Launch and wait until the engine answers. Raises `StartFailed`."""
        request, engine = self.request, self.request.cfg.engine
        port = engine.port or free_port()
        if not port_is_free(port):
            fail(
                self.row,
                "api",
                "port_in_use",
                f"engine.port={port}: already in use; choose another, or null for a free one",
            )
            raise StartFailed(None, timed_out=False)
        model = request.source.argument or str(
            checkpoint.write_model_dir(request.source.config, self.scratch / "model")
        )
        launch = LaunchRequest(
            serve_argv(request, model, port),
            engine_env(request, self.outcome.run_id, self.probe_dir, self.scratch, os.getpid()),
            self.log,
            self.scratch,
        )
        self.phase("launch")
        self.launched_unix_s = time.time()
        self.process, self.row["launcher_fallback"] = self.launchers.launch(request, launch)
        self.row["launcher"] = self.process.launcher
        self.guard.watch(self.process.session_id, self.scratch)
        # A forked engine is ours from here on; its parent's own imports are not part of the start.
        self.cgroup.add(self.process.pid)
        self.sampler.watch(self.process.pid, self.process.session_id, self.cgroup.path)
        self.server = Server(port)
        self.row["startup_s"] = wait_ready(self.process, self.server, engine.startup_timeout_s)
        self.ready_unix_s = time.time()
        if request.colocation is not None and request.device_kind == "cuda":
            # In a container the driver numbers processes differently: whoever is there now is one of the group.
            self.device_pids = device_pids(request.cfg.device)
        self.phase("ready")

    def report_memory(self, expectation: Expectation) -> None:
        """Read the memory terms and the engine's resolved configuration, and hold them against the arithmetic."""
        assert self.server is not None
        reports = memory.read_probe_reports(self.probe_dir)
        # /server_info would tell more, but it inspects the whole system first, which takes seconds a start.
        config = reports[0].get("config") if reports else self.server.effective_config()
        self.row["effective_config_json"] = as_json(config)
        terms = self.memory_terms()
        if self.row["weights_bytes"] is None:
            # Started, but neither the probe nor the log told what it holds.
            self.row["flags"].append("no_memory_report")
        applied = expectation.check(terms)
        self.row |= applied.columns
        for flag, warning in applied.warnings.items():
            self.row["flags"].append(flag)
            self.row["warnings"].append(warning)
        if applied.sentence:
            fail(self.row, "load", "quantization_not_applied", applied.sentence)

    def workload_run(self) -> WorkloadRun:
        """What drives this engine and fills the rows of its workloads."""
        assert self.server is not None and self.process is not None
        return WorkloadRun(
            self.request, self.outcome, self.server, self.process, self.progress, self.phase,
            lambda: self.failure(timed_out=False, ready=True),
        )  # fmt: skip

    def run_workloads(self) -> None:
        """Every workload of the request, on this engine."""
        self.workload_run().run()

    # -- what went wrong ---------------------------------------------------------------------------------------

    def diagnose(self, error: StartFailed) -> None:
        """Say why the engine did not become ready."""
        found = self.failure(error.timed_out, ready=False)
        fail(self.row, found.phase, found.cause, found.sentence, found.detail)
        self.row["missing_kernel"], self.row["shortfall_bytes"] = found.missing_kernel, found.shortfall_bytes
        self.memory_terms()

    def failure(self, timed_out: bool, ready: bool) -> failure.Failure:
        """The root cause, from the engine's log, the probe and how the process ended."""
        status = self.process.poll() if self.process else None
        return failure.diagnose(
            log_text=self.log_text(),
            probe_reports=memory.read_probe_reports(self.probe_dir),
            exit_code=status.code if status else None,
            signal=status.signal if status else None,
            timed_out=timed_out,
            ready=ready,
            oom_killed=bool(self.cgroup.oom_kills()),
            timeout_s=self.request.cfg.engine.startup_timeout_s,
        )

    # -- readings ----------------------------------------------------------------------------------------------

    def log_text(self) -> str:
        """The engine's log so far; bytes that are not text are kept visible."""
        try:
            return self.log.read_text(errors="replace")
        except OSError:
            return ""

    def memory_terms(self) -> memory.MemoryTerms:
        """All memory terms known so far, written into the row."""
        labels: dict[str, str] = {}
        if self.server and self.row.get("startup_s") is not None:
            with contextlib.suppress(ServerError):
                labels = parse_metrics(self.server.metrics()).cache_config
        facts = logs.parse_log(self.log_text())
        terms = memory.merge(
            memory.from_probe(self.probe_dir), memory.from_metrics(labels) if labels else None, memory.from_log(facts)
        )
        self.row |= terms.columns()
        if self.row["weights_bytes"] is None:
            # The CPU engine keeps no count of its own.
            self.row["weights_bytes"] = terms.weights_tensor_bytes
        self.row["warnings"] += [w for w in terms.warnings if w not in self.row["warnings"]]
        return terms

    # -- the end -----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End the engine if it was launched."""
        if self.process is None:
            return
        report: StopReport = stop(self.process, self.request.cfg.engine.stop_timeout_s)
        self.row["stop_s"], self.row["stopped_by"] = report.seconds, report.stopped_by
        # A worker that was killed leaves its segments although the API server ended in order.
        remove_leaked_shared_memory(self.shared_memory)
        if report.survivors:
            self.row["flags"].append("survivors")
        else:
            self.guard.forget(self.process.session_id)

    def finish(self) -> None:
        """Sum up telemetry and phases once everything has stopped."""
        sampler = self.sampler
        telemetry = sampler.stop()
        self.row |= telemetry_columns(telemetry)
        self.row["warnings"] += [error for error in telemetry.errors if error not in self.row["warnings"]]
        samples = read_samples(sampler.path) if sampler.path.exists() else []
        for stretch in self.outcome.stretches:
            stretch.row |= workload_telemetry(stretch, telemetry.phases.get(stretch.phase), samples)
        peaks = [row.get("activation_peak_bytes") for row in self.outcome.workloads]
        self.row["runtime_activation_peak_bytes"] = max((p for p in peaks if p is not None), default=None)
        rss = [row.get("worker_rss_peak_bytes") for row in self.outcome.workloads]
        self.row["worker_rss_runtime_peak_bytes"] = max((p for p in rss if p is not None), default=None)
        self.row |= phases.startup_columns(
            self.probe_dir, self.log_text(), self.launched_unix_s, self.ready_unix_s or None
        )
        self.row["flags"] += telemetry_flags(self.row)
        known = frozenset().union(*(other.device_pids for other in self.group)) | self.siblings()
        if "foreign_gpu_memory" in self.row["flags"] and known and set(telemetry.foreign_pids) <= known:
            self.row["flags"].remove("foreign_gpu_memory")  # the other engines of its group
        if not telemetry.complete:
            # Peaks of a part of the start read like peaks of all of it.
            self.row["flags"].append("telemetry_lost")
        if self.row.get("failure_cause") is None:
            self.row["status"] = "ok"
        if samples:
            self.row["tree_pss_ready_bytes"] = pss_when_ready(samples)
            self.outcome.samples = sample_rows(self.outcome.run_id, samples)
        if self.log.exists():
            self.row["log_file"] = f"logs/{self.log.name}"
            if not self.request.cfg.engine_log and self.row["status"] == "ok":
                self.log.unlink()
                self.row["log_file"] = None


def _memory_now(sampler: Sampler | NoSampler) -> int | None:
    sample = sampler.latest()
    if sample is None:
        return None
    return sample.device_memory_used_bytes or sample.tree_rss_bytes
