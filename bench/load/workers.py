"""A load from several processes: one event loop is one thread, and one thread is one core.

Each worker gets its :class:`~bench.load.plan.DrivePlan` and runs :func:`~bench.load.drive.drive` on it. This process
gives the common start once all are ready, merges their progress, spreads an abort, and collects what they found. A
worker that dies or falls silent becomes an outcome that says so; the others go on.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from bench.errors import BadRequest
from bench.load.affinity import choose_placement, engine_kept_to, on_cores
from bench.load.drive import DriveOutcome, drive
from bench.load.monitor import POLL_INTERVAL_S, Progress
from bench.load.plan import DrivePlan
from bench.load.selfcheck import ClientCheck
from bench.load.spec import LoadSpec

LEAD_S = 0.05  # from "all are ready" to the common start
STREAMS_PER_WORKER = 512
READY_TIMEOUT_S = 300.0  # imports, prompts and connections
SILENCE_LIMIT_S = 120.0  # a worker reports four times a second while it sends, and is silent only while it reads
STOP_TIMEOUT_S = 5.0


def choose_workers(spec: LoadSpec) -> int:
    """How many processes a load wants: one for each :data:`STREAMS_PER_WORKER` streams, on a quarter of the cores.

    An open load counts by its rate, taking a request to last a second; a machine of few cores gets one worker, because
    others would only take the engine's time.
    """
    streams = spec.concurrency or max(spec.rate_per_s or 1, spec.rate_end_per_s or 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(math.ceil(streams / STREAMS_PER_WORKER), cores // 4))


def drive_all(
    plans: Sequence[DrivePlan],
    *,
    on_progress: Callable[[Progress], None] | None = None,
    should_abort: Callable[[], str | None] | None = None,
    engine_pids: Iterable[int] = (),
) -> list[DriveOutcome]:
    """Run one process per plan and return what each found, in the order of ``plans``.

    ``on_progress`` and ``should_abort`` are called in this process, about four times a second. ``engine_pids`` are the
    engine's processes: meanwhile they are kept off the client's cores where there are enough to divide. A worker that
    dies is an outcome without records, all its requests ``not_sent``, and an ``abort_reason`` of its own.

    Raises :class:`BadRequest` if a worker refuses its plan; what the functions raise, and ``KeyboardInterrupt``, come
    through. However it ends, no worker is left running.
    """
    pids = list(engine_pids)
    placement = choose_placement(len(plans), pids)
    with engine_kept_to(placement.engine, pids):
        team = [_Member(plan, placement.of_worker(i)) for i, plan in enumerate(plans)]
        try:
            outcomes = _Team(team, on_progress, should_abort).run()
        finally:
            for member in team:
                member.stop()
    return [replace(o, client=replace(o.client, placement=placement.text)) for o in outcomes]


class _Member:
    """One worker process as its parent sees it."""

    def __init__(self, plan: DrivePlan, cores: Sequence[int]) -> None:
        context = multiprocessing.get_context("spawn")
        self.plan = plan
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_work, args=(theirs, plan, tuple(cores)), name=f"load-worker-{plan.worker}", daemon=True
        )
        self.process.start()
        theirs.close()
        self.ready = False
        self.progress = Progress(plan.total, 0, 0, 0, 0.0)
        self.outcome: DriveOutcome | None = None
        self.heard_s = time.monotonic()

    def take(self) -> None:
        """Read what it said, or notice that it is gone. Raises :class:`BadRequest` if it refused its plan."""
        try:
            kind, content = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(STOP_TIMEOUT_S)
            self.lose(f"it ended with {_ending(self.process.exitcode)}")
            return
        except Exception as error:  # what a half-written message unpickles to is anybody's guess
            self.lose(f"its last message cannot be read ({type(error).__name__})")
            return
        self.heard_s = time.monotonic()
        if kind == "ready":
            self.ready = True
        elif kind == "progress":
            self.progress = content
        elif kind == "outcome":
            self.outcome = content
        elif kind == "refused":
            raise BadRequest(content)
        else:
            self.lose(content)

    def check_silence(self) -> None:
        """Give it up if it said nothing for too long."""
        limit_s = SILENCE_LIMIT_S if self.ready else READY_TIMEOUT_S
        if time.monotonic() - self.heard_s > limit_s:
            self.lose(f"it was silent for {limit_s:g} s")

    def lose(self, how: str) -> None:
        """Write it off: what it had measured is lost with it."""
        plan, sent = self.plan, self.progress.sent
        reason = f"Load worker {plan.worker} of {plan.workers} was lost after {sent} requests: {how}."
        total = plan.total if plan.total is not None else sent
        self.outcome = DriveOutcome(plan.worker, time.perf_counter_ns(), _no_check(), total, reason, 0, [])
        self.stop()

    def tell(self, message: tuple[str, object]) -> None:
        with contextlib.suppress(OSError):  # gone: the next reading notices
            self.pipe.send(message)

    def stop(self) -> None:
        """End the process, gently only where it has given all it had."""
        self.process.join(STOP_TIMEOUT_S if self.outcome is not None and self.outcome.records else 0)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()


class _Team:
    """All workers of one load."""

    def __init__(
        self,
        members: Sequence[_Member],
        on_progress: Callable[[Progress], None] | None,
        should_abort: Callable[[], str | None] | None,
    ) -> None:
        self._members = members
        self._on_progress, self._should_abort = on_progress, should_abort
        self._abort_reason = ""
        self._next_poll_s = 0.0

    def run(self) -> list[DriveOutcome]:
        self._until(lambda member: member.ready)
        start_ns = time.perf_counter_ns() + round(LEAD_S * 1e9)
        for member in self._open(lambda member: True):
            member.tell(("abort", self._abort_reason) if self._abort_reason else ("start", start_ns))
            member.heard_s = time.monotonic()
        self._until(lambda member: False)
        self._report()
        return [member.outcome for member in self._members if member.outcome is not None]

    def _until(self, enough: Callable[[_Member], bool]) -> None:
        """Listen until every worker is far enough, or has ended."""
        while waiting := self._open(lambda member: not enough(member)):
            pipes = {member.pipe: member for member in waiting}
            for pipe in wait(list(pipes), timeout=POLL_INTERVAL_S / 2):
                pipes[pipe].take()  # type: ignore[index]
            for member in waiting:
                if member.outcome is None:
                    member.check_silence()
            self._poll()

    def _open(self, keep: Callable[[_Member], bool]) -> list[_Member]:
        return [member for member in self._members if member.outcome is None and keep(member)]

    def _poll(self) -> None:
        if time.monotonic() < self._next_poll_s:
            return
        self._next_poll_s = time.monotonic() + POLL_INTERVAL_S
        if not self._abort_reason and self._should_abort is not None:
            self._abort_reason = self._should_abort() or ""
            if self._abort_reason:
                for member in self._open(lambda member: member.ready):
                    member.tell(("abort", self._abort_reason))
        self._report()

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress.merged([member.progress for member in self._members]))


class _Aborted(Exception):
    """Called off before the start."""


def _work(pipe: Connection, plan: DrivePlan, cores: tuple[int, ...]) -> None:
    """A worker's life. It hears from its parent at the times it would ask whether to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent decides

    def on_ready() -> int:
        pipe.send(("ready", None))
        kind, content = pipe.recv()
        if kind == "abort":
            raise _Aborted(content)
        return int(content)

    def should_abort() -> str | None:
        try:
            return str(pipe.recv()[1]) if pipe.poll() else None
        except (EOFError, OSError):
            return "The process that started this load worker is gone."

    def on_progress(progress: Progress) -> None:
        with contextlib.suppress(OSError):
            pipe.send(("progress", progress))

    with contextlib.suppress(OSError, EOFError):  # no parent, nobody to tell
        try:
            with on_cores(cores):
                outcome = drive(plan, on_ready=on_ready, on_progress=on_progress, should_abort=should_abort)
            pipe.send(("outcome", outcome))  # times and counts of tokens are arrays: a few bytes per token
        except _Aborted as abort:
            none_sent = DriveOutcome(
                plan.worker, time.perf_counter_ns(), _no_check(), plan.total or 0, str(abort), 0, []
            )
            pipe.send(("outcome", none_sent))
        except BadRequest as refusal:
            pipe.send(("refused", str(refusal)))
        except (EOFError, OSError):
            raise
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            pipe.send(("lost", f"{type(error).__name__}: {error} ({os.path.basename(where.filename)}:{where.lineno})"))


def _no_check() -> ClientCheck:
    return ClientCheck("", 0.0, None, None, None, None, 0.0, None, None, None, None, None, kernel_stamped_share=None)


def _ending(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-exit_code).name
    return f"exit code {exit_code}"
