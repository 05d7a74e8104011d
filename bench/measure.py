"""One engine start from a clean device to a clean device, as one row that is written whatever happens."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import checkpoint
from bench.config import WorkloadPoint
from bench.engine import failure, logs, memory, phases
from bench.engine.base import EngineProcess, LaunchRequest
from bench.engine.command import engine_env, serve_argv
from bench.engine.gate import wait_clean
from bench.engine.guard import Guard
from bench.engine.launchers import Launchers
from bench.engine.lifecycle import StartFailed, StopReport, stop, wait_ready
from bench.engine.server import Server, ServerError, free_port, port_is_free
from bench.engine.shared_memory import remove_leaked_shared_memory, shared_memory_names
from bench.environment import gpu_names, inherited_variables
from bench.errors import BenchError
from bench.expectation import Expectation, expect
from bench.load.closed_loop import run_closed_loop
from bench.load.metrics import parse_metrics
from bench.load.prompts import derive_seed
from bench.load.result import LoadResult
from bench.load.spec import LoadSpec
from bench.progress import Progress
from bench.record.store import ResultSet
from bench.request import Request
from bench.rows import (
    as_json,
    pss_when_ready,
    request_columns,
    sample_rows,
    telemetry_columns,
    workload_columns,
    workload_telemetry,
)
from bench.telemetry import throttle
from bench.telemetry.engine_cgroup import EngineCgroup
from bench.telemetry.sampler import Sampler, read_samples

# Flags of a load run that speak of too few samples: about the workload's design, not about the engine start.
_DESIGN_FLAGS = frozenset({"few_samples_p95", "few_samples_p99", "few_requests_per_slot", "fewer_requests_than_slots"})

TOO_SLOW = "not finished within"


@dataclass
class Outcome:
    """The rows of one engine start."""

    run_id: str
    engine: dict[str, Any]
    workloads: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)


def measure(
    request: Request,
    environment: dict[str, Any],
    results: ResultSet,
    launchers: Launchers,
    guard: Guard,
    progress: Progress,
) -> Outcome:
    """Measure one request. Never raises for what an engine does; a failed start is an `Outcome` like any other."""
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
    outcome = Outcome(run_id, row)
    if request.cfg.prune and expectation.cannot_fit:
        fail(row, "unknown", "cannot_fit", expectation.cannot_fit, status="pruned")
    else:
        progress.phase("import")
        launchers.prepare(request)
        with scratch_dir(request.cfg.paths.scratch) as scratch:
            try:
                EngineStart(request, outcome, scratch, results, launchers, guard, progress).run(expectation)
            except Exception as error:  # a defect of ours must not lose what the engine showed until then
                sentence = f"the harness itself failed: {type(error).__name__}: {error}"
                fail(row, "unknown", "harness_error", sentence, traceback.format_exc())
    row["ended_unix_s"] = time.time()
    row["total_s"] = row["ended_unix_s"] - began
    return outcome


def fail(row: dict[str, Any], phase: str, cause: str, sentence: str, detail: str = "", status: str = "failed") -> None:
    """Record a failure. The first one stands: what breaks later is usually its consequence."""
    if row.get("failure_cause") is None:
        row |= {"status": status, "failure_phase": phase, "failure_cause": cause, "failure_sentence": sentence}
        row["failure_detail"] = detail or None


@contextlib.contextmanager
def scratch_dir(configured: str | None) -> Iterator[Path]:
    """A folder for one engine's model, sockets and temporary files; short, because socket paths may have 107 bytes."""
    try:
        if configured:
            Path(configured).mkdir(parents=True, exist_ok=True)
        # Absolute: the engine runs in this folder, and a relative name would mean another one there.
        folder = Path(tempfile.mkdtemp(prefix="vcal-", dir=configured)).absolute()
    except OSError as error:
        raise BenchError(f"paths.scratch={configured or tempfile.gettempdir()}: cannot be written ({error.strerror}); "
                         "name a folder that can, as in paths.scratch=/tmp") from error  # fmt: skip
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class EngineStart:
    """One engine start in progress: what `measure` does between two clean devices."""

    def __init__(
        self, request: Request, outcome: Outcome, scratch: Path, results: ResultSet, launchers: Launchers, guard: Guard,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.request, self.outcome, self.row = request, outcome, outcome.engine
        self.scratch, self.launchers, self.guard, self.progress = scratch, launchers, guard, progress
        self.probe_dir = scratch / "probe"
        self.probe_dir.mkdir()
        self.log = results.logs / f"{outcome.run_id}.log"
        self.launched_unix_s = self.ready_unix_s = 0.0
        self.process: EngineProcess | None = None
        self.server: Server | None = None
        self.cgroup = EngineCgroup.create("engine")
        self.shared_memory = shared_memory_names()

    # -- the way through ---------------------------------------------------------------------------------------

    def run(self, expectation: Expectation) -> None:
        """Gate, launch, report, load, stop, gate; fills the rows."""
        cfg = self.request.cfg
        names = gpu_names(cfg.device) if self.request.device_kind == "cuda" else ()
        gpus = [int(name) if name.isdecimal() else name for name in names]
        sampler = Sampler(self.scratch / "telemetry", gpus, cfg.telemetry.hz, cfg.telemetry.pss_hz)
        try:
            with self.cgroup, sampler:
                self.phase(sampler, "gate")
                if not self.gate("before"):
                    return
                self.phase(sampler, "idle")
                time.sleep(cfg.telemetry.idle_s)
                try:
                    self.start(sampler)
                    self.report_memory(expectation)
                    if self.row.get("failure_cause") is None:
                        self.run_workloads(sampler)
                except StartFailed as error:
                    self.diagnose(error)
                except KeyboardInterrupt:
                    # A second one would leave the engine to the guard and a stack trace to the person.
                    signal.signal(signal.SIGINT, signal.SIG_IGN)
                    self.progress.note("stopping the engine; this takes a few seconds")
                    raise
                finally:
                    self.phase(sampler, "stop")
                    self.stop()
                self.gate("after")
        finally:
            self.finish(sampler)

    def phase(self, sampler: Sampler, name: str) -> None:
        """Enter a phase, for the timeline and for the person who watches."""
        sampler.mark(name)
        self.progress.phase(name)
        if self.progress.point and self.progress.point.read_memory is None:
            self.progress.point.read_memory = lambda: _memory_now(sampler)

    def gate(self, when: str) -> bool:
        """Wait for a clean device; False where the run must not go on."""
        gate = wait_clean(self.request.device_kind, self.request.cfg.device)
        self.row[f"gate_{when}_s"] = gate.seconds
        if gate.foreign_pids:
            self.row["flags"].append("foreign_processes")
        if not gate.clean and when == "before":
            fail(self.row, "gate", "device_not_clean", gate.sentence)
        elif not gate.clean:
            self.row["flags"].append("device_not_clean_after")
        return gate.clean

    def start(self, sampler: Sampler) -> None:
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
        self.phase(sampler, "launch")
        self.launched_unix_s = time.time()
        self.process, self.row["launcher_fallback"] = self.launchers.launch(request, launch)
        self.row["launcher"] = self.process.launcher
        self.guard.watch(self.process.session_id, self.scratch)
        # A forked engine is ours from here on; its parent's own imports are not part of the start.
        self.cgroup.add(self.process.pid)
        sampler.watch(self.process.pid, self.process.session_id, self.cgroup.path)
        self.server = Server(port)
        self.row["startup_s"] = wait_ready(self.process, self.server, engine.startup_timeout_s)
        self.ready_unix_s = time.time()
        self.phase(sampler, "ready")

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

    def run_workloads(self, sampler: Sampler) -> None:
        """Every workload of the request, in order, on this engine. A dead engine ends them."""
        began = time.monotonic()
        for position, point in enumerate(self.request.cfg.workload.points):
            row = {"run_id": self.outcome.run_id, "point_id": self.request.point_id, "workload": point.name}
            row |= {"position": position, "started_unix_s": time.time()}
            self.outcome.workloads.append(row)
            self.run_workload(sampler, row, position)
            if self.row.get("failure_cause"):
                break
        self.row["workloads_s"] = time.monotonic() - began

    def run_workload(self, sampler: Sampler, row: dict[str, Any], position: int) -> None:
        """One workload; its row is filled even if the engine dies under it."""
        assert self.server is not None and self.process is not None
        point = self.request.cfg.workload.points[position]
        spec = LoadSpec(
            point.concurrency, point.num_requests, point.input_tokens, point.output_tokens, 0,
            # Each workload of a list has prompts of its own: equal ones would meet a warm prefix cache.
            derive_seed(point.seed, position, "measured"), point.temperature, point.top_p, point.timeout_s,
            point.stall_timeout_s,
        )  # fmt: skip
        row |= {"warmup_requests": point.warmup_requests, "seed": point.seed}
        with contextlib.suppress(ServerError):
            self.server.call_workers("calibrate_reset_peaks", [point.name])
        if point.warmup_requests:
            # A run of its own, so that the phase is marked while the engine idles and not inside the client's clock.
            self.phase(sampler, f"warmup:{point.name}")
            seed = derive_seed(point.seed, position, "warmup")
            warmup = self.load(dataclasses.replace(spec, num_requests=point.warmup_requests, seed=seed), point)
            if not warmup.completed:
                row["status"] = "failed"
                self.workload_failed(row, warmup)
                return
        self.phase(sampler, f"load:{point.name}")
        result = self.load(spec, point)
        self.phase(sampler, "ready")
        row |= workload_columns(result) | {"started_unix_s": result.started_unix_s}
        row |= self.worker_peaks()
        row["status"] = "ok" if result.completed == spec.num_requests else "failed"
        self.row["flags"] += [f for f in result.flags if f not in _DESIGN_FLAGS and f not in self.row["flags"]]
        if row["status"] == "failed":
            self.workload_failed(row, result)

    def load(self, spec: LoadSpec, point: WorkloadPoint) -> LoadResult:
        """Drive the engine once, showing how far it is; a dead engine or one that is too slow ends it at once."""
        assert self.server is not None
        began = time.monotonic()

        def show(now: Any) -> None:
            if view := self.progress.point:
                view.detail = f"{now.finished}/{now.total}"
                view.tokens_per_s = now.finished * spec.output_tokens / now.elapsed_s if now.elapsed_s > 0 else None

        def dead() -> str | None:
            status = self.process.poll() if self.process else None
            if status is not None:
                return f"the engine ended with {status}"
            if point.max_duration_s and time.monotonic() - began > point.max_duration_s:
                return f"{TOO_SLOW} max_duration_s={point.max_duration_s:g}"
            return None

        vocabulary = checkpoint.vocabulary_size(self.request.source.config)
        name = self.request.cfg.model.name
        result = run_closed_loop(self.server.base_url, name, spec, vocabulary, on_progress=show, should_abort=dead)
        if view := self.progress.point:
            view.detail, view.tokens_per_s = "", None
        return result

    # -- what went wrong ---------------------------------------------------------------------------------------

    def diagnose(self, error: StartFailed) -> None:
        """Say why the engine did not become ready."""
        found = self.failure(error.timed_out, ready=False)
        fail(self.row, found.phase, found.cause, found.sentence, found.detail)
        self.take_failure_facts(found)
        self.memory_terms()

    def workload_failed(self, row: dict[str, Any], result: LoadResult) -> None:
        """Say why requests failed. An engine that lacks a kernel was still measured for memory."""
        if result.abort_reason.startswith(TOO_SLOW):
            done = f"{result.completed} of {result.spec.num_requests} requests done"
            kernels = ", ".join(self.row.get("linear_kernels") or ())
            sentence = f"{result.abort_reason} of workload {row['workload']}: {done}; kernels: {kernels}"
            row |= {"failure_cause": "too_slow", "failure_sentence": sentence}
            fail(self.row, "runtime", "too_slow", sentence, status="memory_only")
            return
        found = self.failure(timed_out=False, ready=True)
        kinds = ", ".join(f"{number} {kind}" for kind, number in result.outcomes.items() if number and kind != "ok")
        first = next(iter(result.errors.values()), "")
        known = found.cause != "unknown"
        row["failure_cause"] = found.cause if known else "requests_failed"
        row["failure_sentence"] = (
            found.sentence if known else f"{kinds} of {result.spec.num_requests} requests: {first}"
        )
        status = "memory_only" if found.cause == "missing_kernel" else "failed"
        fail(self.row, "runtime", row["failure_cause"], row["failure_sentence"], found.detail, status)
        self.take_failure_facts(found)

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

    def take_failure_facts(self, found: failure.Failure) -> None:
        """Columns that only some failures have."""
        self.row["missing_kernel"] = found.missing_kernel
        self.row["shortfall_bytes"] = found.shortfall_bytes

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

    def worker_peaks(self) -> dict[str, Any]:
        """Peaks of the workers since the last reset, as workload columns."""
        assert self.server is not None
        try:
            reports = self.server.call_workers("calibrate_report")
        except ServerError:
            return {}
        return memory.runtime_peaks(reports)

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

    def finish(self, sampler: Sampler) -> None:
        """Sum up telemetry and phases once everything has stopped."""
        telemetry = sampler.stop()
        self.row |= telemetry_columns(telemetry)
        self.row["warnings"] += [error for error in telemetry.errors if error not in self.row["warnings"]]
        for row in self.outcome.workloads:
            if seen := telemetry.phases.get(f"load:{row['workload']}"):
                row |= workload_telemetry(seen)
        peaks = [row.get("activation_peak_bytes") for row in self.outcome.workloads]
        self.row["runtime_activation_peak_bytes"] = max((p for p in peaks if p is not None), default=None)
        rss = [row.get("worker_rss_peak_bytes") for row in self.outcome.workloads]
        self.row["worker_rss_runtime_peak_bytes"] = max((p for p in rss if p is not None), default=None)
        self.row |= phases.startup_columns(
            self.probe_dir, self.log_text(), self.launched_unix_s, self.ready_unix_s or None
        )
        self.row["flags"] += _telemetry_flags(self.row)
        if not telemetry.complete:
            # Peaks of a part of the start read like peaks of all of it.
            self.row["flags"].append("telemetry_lost")
        if self.row.get("failure_cause") is None:
            self.row["status"] = "ok"
        if sampler.path.exists():
            samples = read_samples(sampler.path)
            self.row["tree_pss_ready_bytes"] = pss_when_ready(samples)
            self.outcome.samples = sample_rows(self.outcome.run_id, samples)
        if self.log.exists():
            self.row["log_file"] = f"logs/{self.log.name}"
            if not self.request.cfg.engine_log and self.row["status"] == "ok":
                self.log.unlink()
                self.row["log_file"] = None


def _telemetry_flags(row: dict[str, Any]) -> list[str]:
    flags = []
    if set(row.get("throttle_reasons") or ()) - throttle.BENIGN:
        flags.append("throttled")
    if row.get("foreign_memory_peak_bytes"):
        flags.append("foreign_gpu_memory")
    if row.get("gpu_lost"):
        flags.append("gpu_lost")
    if row.get("launcher_fallback"):
        flags.append("launcher_fallback")
    return flags


def _memory_now(sampler: Sampler) -> int | None:
    sample = sampler.latest()
    if sample is None:
        return None
    return sample.device_memory_used_bytes or sample.tree_rss_bytes
