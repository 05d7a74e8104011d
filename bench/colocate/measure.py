"""A group of engines from a clean device to a clean device: up in order, driven, down in reverse, and its rows."""

from __future__ import annotations

import contextlib
import time
import traceback
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bench.colocate.processes import RouterProcess
from bench.colocate.request import members, router_config
from bench.colocate.rows import group_columns, memory_columns, router_columns, speed_columns
from bench.colocate.streams import Streams
from bench.engine.guard import Guard
from bench.engine.launchers import Launchers
from bench.measure import EngineStart, begin, held
from bench.outcome import Outcome
from bench.progress import Progress
from bench.record.store import ResultSet
from bench.request import Request
from bench.scratch import scratch_dir


@dataclass
class GroupOutcome:
    """The rows of one group: its own, those of each engine, and those of streams that several engines share."""

    row: dict[str, Any]
    outcomes: list[Outcome] = field(default_factory=list)
    workloads: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)

    def write(self, results: ResultSet) -> None:
        """Engines first, the group last: it counts as recorded once its row is there. Raises `StoreError`."""
        for one in self.outcomes:
            results.write(one.run_id, one.engine, one.workloads, one.samples, one.requests)
        results.write_group(self.row, self.workloads, self.requests)


def measure_group(
    request: Request, environment: dict[str, Any], results: ResultSet, launchers: Launchers, guard: Guard,
    progress: Progress,
) -> GroupOutcome:  # fmt: skip
    """Measure one group. Never raises for what an engine does; a recipe that cannot work is an outcome like any."""
    began = time.time()
    stamp = datetime.fromtimestamp(began, UTC).strftime("%Y%m%dT%H%M%S")
    run_id = f"{request.point_id}-r{request.cfg.repeat}-{stamp}{int(began * 1000) % 1000:03d}"
    told = ("environment_id", "device_kind", "device_name", "vllm_version")
    row: dict[str, Any] = {"run_id": run_id, "started_unix_s": began, "flags": []}
    row |= {name: environment.get(name) for name in told}
    group = GroupOutcome(row)
    run = _GroupRun(request, group, results, launchers, guard, progress)
    run.measure(environment)
    row |= group_columns(request, group.outcomes) | memory_columns(group.outcomes)
    row["status"] = row.get("status") or "ok"
    row["flags"] = sorted({*row["flags"], *(flag for one in group.outcomes for flag in one.engine["flags"])})
    row["ended_unix_s"] = time.time()
    return group


class _GroupRun:
    """One group in progress."""

    def __init__(
        self, request: Request, group: GroupOutcome, results: ResultSet, launchers: Launchers, guard: Guard,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.request, self.group, self.row = request, group, group.row
        self.results, self.launchers, self.guard, self.progress = results, launchers, guard, progress

    def measure(self, environment: dict[str, Any]) -> None:
        """Start the engines one after the other, drive them if all are there, stop them in reverse."""
        engines: dict[str, EngineStart] = {}
        running: list[EngineStart] = []
        whole = members(self.request)
        with contextlib.ExitStack() as stack:
            for one in whole:
                assert one.colocation is not None
                outcome, expectation = begin(one, environment)
                place = one.colocation
                outcome.engine |= {
                    "colocation_id": self.row["run_id"], "colocation": place.group, "colocation_member": place.member,
                    "colocation_point_id": self.request.point_id,
                    "colocation_position": place.position, "colocation_members": place.members,
                }  # fmt: skip
                self.group.outcomes.append(outcome)
                if view := self.progress.point:
                    view.detail = f"{place.member} ({place.position + 1} of {place.members})"
                engine = stack.enter_context(
                    held(one, outcome, expectation, self.results, self.launchers, self.guard, self.progress, running)
                )
                if engine is None:
                    break
                engines[place.member] = engine
            if len(engines) == len(whole):
                self._drive(engines)
        self._judge(engines, len(whole))

    def _drive(self, engines: dict[str, EngineStart]) -> None:
        """The router up, the streams through it, the router down."""
        if not self.request.cfg.colocate.streams:
            return
        for engine in engines.values():
            engine.phase("ready")
        time.sleep(self.request.cfg.telemetry.idle_s)  # all at rest: what the group holds before any load
        with scratch_dir(self.request.cfg.paths.scratch) as folder:
            try:
                urls = {name: one.server.base_url for name, one in engines.items() if one.server}
                config = router_config(self.request.cfg.colocate, urls)
                router = RouterProcess(config, folder, self.guard)
                streams = Streams(self.request, self.row["run_id"], engines, router, config, folder, self.progress)
                try:
                    streams.run()
                finally:
                    stats = router.stats()
                    router.stop()
                self.group.workloads, self.group.requests = streams.loose, streams.loose_requests
                self.row |= speed_columns(streams.driven, [one.name for one in streams.streams])
                self.row |= router_columns(streams, stats)
                if streams.failure:
                    member, cause, sentence = streams.failure
                    self._fail(member, "runtime", cause, sentence)
            except Exception as error:  # a defect of ours must not lose what the engines showed until then
                sentence = f"the harness itself failed: {type(error).__name__}: {error}"
                self._fail(None, "unknown", "harness_error", sentence)
                self.progress.note(traceback.format_exc())

    def _judge(self, engines: dict[str, EngineStart], wanted: int) -> None:
        """The first engine that failed is why the group did."""
        if self.row.get("failure_cause"):
            return
        for outcome in self.group.outcomes:
            row = outcome.engine
            if row.get("failure_cause") is None:
                continue
            member = row["colocation_member"]
            beside = [one for one in engines if one != member]
            before = f", beside {' and '.join(beside)}" if beside else ""
            sentence = f"engine {member}{before}: {row['failure_sentence']}"
            self._fail(member, row["failure_phase"], row["failure_cause"], sentence, row["status"])
            self.row["shortfall_bytes"] = row.get("shortfall_bytes")
            for other in self.group.outcomes:
                if other is not outcome and len(engines) < wanted:
                    other.engine["flags"].append("sibling_failed")
            return

    def _fail(self, member: str | None, phase: str, cause: str, sentence: str, status: str = "failed") -> None:
        if self.row.get("failure_cause") is None:
            status = "pruned" if status == "pruned" else "failed"
            self.row |= {"status": status, "failure_member": member, "failure_phase": phase, "failure_cause": cause,
                         "failure_sentence": sentence}  # fmt: skip
