"""One load run: deal the plan out, drive it, read the engine's counters around it, sum up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from bench.load.affinity import Placement, choose_placement, engine_kept_to, on_cores
from bench.load.drive import DriveOutcome, drive
from bench.load.engine_watch import EngineWatch
from bench.load.monitor import Progress
from bench.load.plan import DrivePlan, make_plans
from bench.load.records import RequestRecord
from bench.load.result import LoadResult, build_result
from bench.load.selfcheck import ClientCheck
from bench.load.spec import LoadSpec
from bench.load.wire import Target

UNKNOWN_ENGINE = Placement((), (), "not pinned: the engine's processes are not known")


def run_load(
    base_url: str,
    model: str,
    spec: LoadSpec,
    vocab_size: int,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    should_abort: Callable[[], str | None] | None = None,
    engine_pids: Sequence[int] = (),
    metrics_url: str | None = None,
) -> LoadResult:
    """Run ``spec`` against the engine at ``base_url`` (``http://HOST:PORT``) and measure it.

    ``vocab_size`` is the model's; prompts are drawn from it as token ids. ``on_progress`` is called and
    ``should_abort`` asked about four times a second, on the thread that times the tokens: both must be quick.
    When ``should_abort`` gives a sentence, requests in flight end as ``aborted`` with it and no others are sent.
    ``engine_pids``: the engine's processes on this machine, whose cores the client keeps off. ``metrics_url``: the
    engine itself, where ``base_url`` is a router's.

    Returns a :class:`LoadResult` whatever the engine does, even if no request gets through. Raises
    :class:`BadRequest` if the run cannot be made as asked; what the two functions raise, and ``KeyboardInterrupt``,
    come through with all connections closed. Must not be called on a thread whose event loop is running.
    """
    plans = make_plans(base_url, model, spec, vocab_size, spec.workers or _free_workers(spec))
    unix_offset_ns = time.time_ns() - time.perf_counter_ns()
    with EngineWatch(Target.parse(metrics_url) if metrics_url else plans[0].target) as watch:
        gone = bool(should_abort and should_abort())  # then nobody would answer, or worse: accept and say nothing
        before = None if gone else watch.settled_snapshot()
        if not gone:
            watch.start()
        outcomes = _drive(plans, on_progress, should_abort, engine_pids)
        gauges = watch.stop()
        abort_reason = next((outcome.abort_reason for outcome in outcomes if outcome.abort_reason), "")
        after = None if abort_reason else watch.settled_snapshot()
    records = sorted((r for outcome in outcomes for r in outcome.records), key=lambda record: record.index)
    return build_result(
        spec,
        records,
        _client(outcomes, records),
        start_ns=min(outcome.start_ns for outcome in outcomes),
        unix_offset_ns=unix_offset_ns,
        not_sent=sum(outcome.not_sent for outcome in outcomes),
        abort_reason=abort_reason,
        peak_in_flight=sum(outcome.peak_in_flight for outcome in outcomes),
        slots=sum(plan.slots for plan in plans),
        before=before,
        after=after,
        gauges=gauges,
    )


def _drive(
    plans: Sequence[DrivePlan],
    on_progress: Callable[[Progress], None] | None,
    should_abort: Callable[[], str | None] | None,
    engine_pids: Sequence[int],
) -> list[DriveOutcome]:
    if len(plans) == 1:
        placement = choose_placement(1, engine_pids) if engine_pids else UNKNOWN_ENGINE
        with engine_kept_to(placement.engine, engine_pids), on_cores(placement.of_worker(0)):
            outcome = drive(plans[0], on_progress=on_progress, should_abort=should_abort)
        return [replace(outcome, client=replace(outcome.client, placement=placement.text))]
    from bench.load.workers import drive_all  # processes of its own: not for those who need none

    return drive_all(plans, on_progress=on_progress, should_abort=should_abort, engine_pids=engine_pids)


def _free_workers(spec: LoadSpec) -> int:
    from bench.load.workers import choose_workers

    return choose_workers(spec)


def _client(outcomes: Sequence[DriveOutcome], records: Sequence[RequestRecord]) -> ClientCheck:
    if len(outcomes) == 1:
        return outcomes[0].client
    from bench.load.selfcheck import merge_checks

    return merge_checks([outcome.client for outcome in outcomes], records)
