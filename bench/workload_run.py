"""The workloads of one request, in order, on one live engine: warm-up, load or knee search, rows."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench import checkpoint
from bench.config import KneeConfig, WorkloadPoint
from bench.engine import memory
from bench.engine.base import EngineProcess
from bench.engine.failure import Failure
from bench.engine.server import Server, ServerError
from bench.errors import BadRequest
from bench.knee import KneeSearch, judge
from bench.load.monitor import Progress as LoadProgress
from bench.load.prompts import derive_seed
from bench.load.result import LoadResult
from bench.load.run import run_load
from bench.load.spec import LoadSpec
from bench.outcome import Outcome, Stretch, fail
from bench.progress import Progress
from bench.request import Request
from bench.rows import as_json, request_rows, workload_columns
from bench.telemetry import procfs

# Flags of a load run that speak of its design (too few samples, no window), not of this engine start.
DESIGN_FLAGS = frozenset({
    "few_samples_p95", "few_samples_p99", "few_requests_per_slot", "fewer_requests_than_slots", "no_steady_state",
    "not_steady", "held_back", "shared_prefix_unused",
})  # fmt: skip
# Of a knee's trials only these: the others are what the search provokes.
_TRIAL_FLAGS = frozenset({"client_bound", "prefix_cache_hits", "token_count_mismatch"})

TOO_SLOW = "not finished within"


class WorkloadRun:
    """Runs the workloads of `request` on the engine behind `server` and fills `outcome`.

    `mark(phase)` labels the timeline; `diagnose()` says why an engine that was ready fails.
    """

    def __init__(
        self, request: Request, outcome: Outcome, server: Server, process: EngineProcess, progress: Progress,
        mark: Callable[[str], None], diagnose: Callable[[], Failure],
    ) -> None:  # fmt: skip
        self.request, self.outcome, self.engine_row = request, outcome, outcome.engine
        self.server, self.process, self.progress = server, process, progress
        self.mark, self.diagnose = mark, diagnose
        self.vocabulary = checkpoint.vocabulary_size(request.source.config)

    def run(self) -> None:
        """Every workload, in order. A dead engine ends them; a workload that failed is a row."""
        began = time.monotonic()
        for position, point in enumerate(self.request.cfg.workload.points):
            # Each workload of a list has prompts of its own: equal ones would meet a warm prefix cache.
            spec = point.spec(derive_seed(point.seed, position, "measured"))
            if point.knee is None:
                self.one(point, spec, position)
            else:
                self.knee(point, spec, position)
            if self.engine_row.get("failure_cause"):
                break
        self.engine_row["workloads_s"] = time.monotonic() - began

    # -- one load ----------------------------------------------------------------------------------------------

    def one(self, point: WorkloadPoint, spec: LoadSpec, position: int) -> None:
        """One workload; its row is filled even if the engine dies under it."""
        row = self.new_row(point)
        if not self.warm_up(point, spec, position, row):
            return
        try:
            result = self.measure(point, spec, row, f"load:{point.name}", "")
        except BadRequest as refusal:
            self.refused(row, refusal)
            return
        flags = self.engine_row["flags"]
        flags += [flag for flag in row["flags"] if flag not in DESIGN_FLAGS and flag not in flags]
        if row["status"] == "failed":
            self.failed(row, result)

    def new_row(self, point: WorkloadPoint) -> dict[str, Any]:
        """A row of the workloads table, in its place."""
        row: dict[str, Any] = {
            "run_id": self.outcome.run_id, "point_id": self.request.point_id, "workload": point.name,
            "position": len(self.outcome.workloads), "started_unix_s": time.time(),
            "warmup_requests": point.warmup_requests, "seed": point.seed,
        }  # fmt: skip
        self.outcome.workloads.append(row)
        return row

    def warm_up(self, point: WorkloadPoint, spec: LoadSpec, position: int, row: dict[str, Any]) -> bool:
        """A closed loop of the same lengths, whatever the pattern; False where nothing got through."""
        self.reset_peaks(point.name)
        if not point.warmup_requests:
            return True
        # A run of its own, so that the phase is marked while the engine idles and not inside the client's clock.
        self.mark(f"warmup:{point.name}")
        seed = derive_seed(point.seed, position, "warmup")
        result = self.load(point, spec.for_warmup(point.warmup_requests, seed), "")
        if result.completed:
            return True
        row["status"] = "failed"
        self.failed(row, result)
        return False

    def measure(self, point: WorkloadPoint, spec: LoadSpec, row: dict[str, Any], phase: str, title: str) -> LoadResult:
        """Drive the engine once and fill `row` with what was seen."""
        self.mark(phase)
        try:
            result = self.load(point, spec, title)
        finally:
            self.mark("ready")
        row |= workload_columns(result)
        row |= self.worker_peaks()
        well = result.completed and not result.failed and not result.not_sent
        row["status"] = "ok" if well else "failed"
        self.outcome.stretches.append(stretch_of(row, phase, result))
        if spec.save_requests:
            self.outcome.requests += request_rows(row, result)
        return result

    def load(self, point: WorkloadPoint, spec: LoadSpec, title: str) -> LoadResult:
        """Drive the engine, showing how far it is; a dead engine or one that is too slow ends it at once."""
        began = time.monotonic()

        def show(now: LoadProgress) -> None:
            if view := self.progress.point:
                view.detail = title + progress_text(now, spec)
                rate = now.finished / now.elapsed_s if now.elapsed_s > 0 else 0.0
                view.tokens_per_s = rate * spec.output_tokens_mean or None

        def dead() -> str | None:
            status = self.process.poll()
            if status is not None:
                return f"the engine ended with {status}"
            if point.max_duration_s and time.monotonic() - began > point.max_duration_s:
                return f"{TOO_SLOW} max_duration_s={point.max_duration_s:g}"
            return None

        name = self.request.cfg.model.name
        pids = procfs.tree_pids(self.process.pid, self.process.session_id)
        result = run_load(
            self.server.base_url, name, spec, self.vocabulary, on_progress=show, should_abort=dead,
            engine_pids=sorted(pids),
        )  # fmt: skip
        if view := self.progress.point:
            view.detail, view.tokens_per_s = "", None
        return result

    # -- the knee ----------------------------------------------------------------------------------------------

    def knee(self, point: WorkloadPoint, spec: LoadSpec, position: int) -> None:
        """The highest load that meets the objective. Each trial is a row with prompts of its own."""
        config = point.knee
        assert config is not None
        search = KneeSearch.of(config)
        rows: list[dict[str, Any]] = []
        while (value := search.next_value()) is not None:
            number = len(rows) + 1
            row = self.new_row(point)
            if not rows and not self.warm_up(point, spec, position, row):
                return
            self.reset_peaks(f"{point.name}#{number}")
            title = f"trial {number} at {config.axis} {value:g}: "
            try:
                trial = trial_spec(point, spec, value, derive_seed(point.seed, position, "knee", number))
                result = self.measure(point, trial, row, f"load:{point.name}#{number}", title)
            except BadRequest as refusal:  # a limit of this client, not of the engine: what was found stays
                search.stopped = f"{value:g} cannot be sent: {refusal}"
                if not rows:
                    self.refused(row, refusal)
                    return
                self.outcome.workloads.pop()
                break
            rows.append(row)
            self.trial_failed(row, result)
            met, reason = judge(row, config)
            search.tell(value, met)
            row |= {
                "knee_trial": number, "knee_axis": config.axis, "knee_value": value, "knee_met": met,
                "knee_reason": reason or None, "knee_slo_json": as_json(dict(config.slo)),
            }  # fmt: skip
            flags = self.engine_row["flags"]
            flags += [flag for flag in row["flags"] if flag in _TRIAL_FLAGS and flag not in flags]
            if self.process.poll() is not None:
                self.failed(row, result)
                break
        self.answer(point, search, rows)

    def answer(self, point: WorkloadPoint, search: KneeSearch, rows: list[dict[str, Any]]) -> None:
        """Write what the search found into all its rows, and say it."""
        assert point.knee is not None
        knee = search.knee()
        notes = list(knee.notes)
        holding = [row for row in rows if row["knee_met"] and row["knee_value"] == knee.highest_met]
        if any(row["client_bound"] and row["knee_value"] in (knee.highest_met, knee.lowest_broken) for row in rows):
            notes.append("the client was at its limit where the knee was decided: it may be the client's")
        decided = [row for row in rows if row["knee_value"] in (knee.highest_met, knee.lowest_broken)]
        notes += few_samples(point.knee, decided)
        for row in rows:
            row |= {
                "knee_outcome": knee.outcome, "knee_highest_met": knee.highest_met, "knee_trials": knee.trials,
                "knee_lowest_broken": knee.lowest_broken, "knee_notes": "; ".join(notes) or None,
                "knee_answer": bool(holding) and row is holding[-1],
            }  # fmt: skip
        self.progress.note("; ".join([f"{point.name}: {knee.sentence(point.knee.axis)}", *notes]))

    def trial_failed(self, row: dict[str, Any], result: LoadResult) -> None:
        """A trial that did not go through is an answer, not a failure of the engine start."""
        if row["status"] != "failed":
            return
        slow = result.abort_reason.startswith(TOO_SLOW)
        row["failure_cause"] = "too_slow" if slow else "requests_failed"
        row["failure_sentence"] = result.abort_reason or requests_sentence(result)

    def refused(self, row: dict[str, Any], refusal: BadRequest) -> None:
        """A load that this client cannot make, as with too few open files; the engine was measured for memory."""
        row |= {"status": "failed", "failure_cause": "requests_failed", "failure_sentence": str(refusal)}
        fail(self.engine_row, "runtime", "requests_failed", str(refusal), status="memory_only")

    # -- what went wrong ---------------------------------------------------------------------------------------

    def failed(self, row: dict[str, Any], result: LoadResult) -> None:
        """Say why requests failed. An engine that lacks a kernel was still measured for memory."""
        if result.abort_reason.startswith(TOO_SLOW):
            done = f"{result.completed} of {_wanted(result)} requests done"
            kernels = ", ".join(self.engine_row.get("linear_kernels") or ())
            sentence = f"{result.abort_reason} of workload {row['workload']}: {done}; kernels: {kernels}"
            row |= {"failure_cause": "too_slow", "failure_sentence": sentence}
            fail(self.engine_row, "runtime", "too_slow", sentence, status="memory_only")
            return
        found = self.diagnose()
        known = found.cause != "unknown"
        row["failure_cause"] = found.cause if known else "requests_failed"
        row["failure_sentence"] = found.sentence if known else requests_sentence(result)
        status = "memory_only" if found.cause == "missing_kernel" else "failed"
        fail(self.engine_row, "runtime", row["failure_cause"], row["failure_sentence"], found.detail, status)
        self.engine_row["missing_kernel"] = found.missing_kernel
        self.engine_row["shortfall_bytes"] = found.shortfall_bytes

    # -- the engine's workers ----------------------------------------------------------------------------------

    def reset_peaks(self, name: str) -> None:
        """Let the workers' peaks begin anew."""
        with contextlib.suppress(ServerError):
            self.server.call_workers("calibrate_reset_peaks", [name])

    def worker_peaks(self) -> dict[str, Any]:
        """Peaks of the workers since the last reset, as workload columns."""
        try:
            reports = self.server.call_workers("calibrate_report")
        except ServerError:
            return {}
        return memory.runtime_peaks(reports)


def trial_spec(point: WorkloadPoint, spec: LoadSpec, value: float, seed: int) -> LoadSpec:
    """The load of one trial: the workload's own, at `value` on the knee's axis and long enough to judge it."""
    assert point.knee is not None
    knee, least = point.knee, point.num_requests or 1
    trial = dataclasses.replace(spec, seed=seed, duration_s=None, num_requests=least)
    if knee.axis == "rate":
        enough = max(least, math.ceil(value * knee.trial_s))
        return dataclasses.replace(trial, rate_per_s=value, num_requests=enough)
    enough = max(least, math.ceil(value * knee.requests_per_slot))
    return dataclasses.replace(trial, concurrency=int(value), num_requests=enough)


def few_samples(config: KneeConfig, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to say where a percentile that decided is one of too few requests."""
    told = []
    for percentile in ("p95", "p99"):
        counts = [row["completed"] for row in rows if f"few_samples_{percentile}" in row["flags"]]
        if counts and any(f"_{percentile}_" in name and not name.startswith("itl_") for name in config.slo):
            told.append(f"{percentile} of {min(counts)} requests is hardly more than their maximum; ask for more with "
                        "num_requests")  # fmt: skip
    return told


def progress_text(now: LoadProgress, spec: LoadSpec) -> str:
    """How far a load is: requests done of all; with an open loop also the rate really sent and what is in flight."""
    done = f"{now.finished}/{now.total}" if now.total is not None else f"{now.finished} done"
    if now.failed:
        done += f", {now.failed} failed"
    if not spec.is_open:
        return done
    sent = f", {now.sent / now.elapsed_s:.1f} sent/s" if now.elapsed_s > 0 and now.sent != now.total else ""
    return f"{done}, {now.in_flight} in flight{sent}"


def stretch_of(row: dict[str, Any], phase: str, result: LoadResult) -> Stretch:
    whole = steady = None
    if result.started_unix_s is not None and result.window_s:
        whole = (result.started_unix_s, result.window_s)
    if result.steady_ns is not None and result.steady_ns[1] > result.steady_ns[0]:
        begin_ns, end_ns = result.steady_ns
        steady = ((begin_ns + result.unix_offset_ns) / 1e9, (end_ns - begin_ns) / 1e9)
    return Stretch(row, phase, whole, steady)


def _wanted(result: LoadResult) -> int:
    return sum(result.outcomes.values()) + result.not_sent


def requests_sentence(result: LoadResult) -> str:
    kinds = [f"{number} {kind}" for kind, number in result.outcomes.items() if number and kind != "ok"]
    if result.not_sent:
        kinds.append(f"{result.not_sent} not sent")
    first = next(iter(result.errors.values()), "") or result.abort_reason
    return f"{', '.join(kinds)} of {_wanted(result)} requests: {first}"
