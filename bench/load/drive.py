"""Send one worker's part of a load, on one event loop, and keep what came back."""

from __future__ import annotations

import asyncio
import gc
import importlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench.errors import BadRequest
from bench.load.clock import Alarm
from bench.load.http import Channel, Exchange
from bench.load.monitor import POLL_INTERVAL_S, Progress, Tally, Watchdog
from bench.load.plan import DrivePlan, Job, JobQueue
from bench.load.pool import ChannelPool, allow_connections, open_all
from bench.load.receive import Receiver
from bench.load.records import RequestRecord, to_record
from bench.load.schedule import PlannedRequest
from bench.load.selfcheck import ClientCheck, SelfCheck

LEAD_S = 0.02  # from "all is ready" to the start, where nobody else says when
RAW_BYTES_LIMIT = 512 << 20  # unread responses kept; beyond it they are read at once, and the client's cost shows it
OPEN_AHEAD_S = 1.0  # connections of an open load to begin with: as many as are due within this time


@dataclass
class DriveOutcome:
    """What one worker found. ``start_ns`` is ``time.perf_counter_ns()``, one clock for all processes of a machine.
    ``not_sent``: requests that an abort left over."""

    worker: int
    start_ns: int
    client: ClientCheck
    not_sent: int
    abort_reason: str
    peak_in_flight: int
    records: list[RequestRecord] = field(repr=False)


def drive(
    plan: DrivePlan,
    *,
    on_ready: Callable[[], int] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_abort: Callable[[], str | None] | None = None,
) -> DriveOutcome:
    """Send ``plan`` and return what came of it, whatever the engine does.

    Prompts are made and connections opened first. Then ``on_ready`` is called once; it may block, and returns the
    ``time.perf_counter_ns()`` at which to start. ``on_progress`` is called and ``should_abort`` asked about four times
    a second, on the thread that times the tokens: both must be quick. When ``should_abort`` gives a sentence, requests
    in flight end as ``aborted`` with it and no others are sent.

    Raises :class:`BadRequest`, before ``on_ready``, if the load cannot be made as asked; what the functions raise, and
    ``KeyboardInterrupt``, come through with all connections closed. Must not be called on a thread whose event loop
    is running.
    """
    connections = _allow_files(plan)
    jobs = JobQueue(plan)
    run = (_OpenLoop if plan.spec.is_open else _ClosedLoop)(plan, jobs, on_progress, should_abort)
    run.most_connections = connections
    loop_name, loop_factory = _event_loop()
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection would stop the loop for milliseconds and show up as latency
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(run.main(on_ready))
    finally:
        if collecting:
            gc.enable()
    records = run.kept.records()
    tally = run.tally
    left = (plan.total or tally.sent) - tally.sent if tally.abort_reason else 0
    stamped_share = run.pool.receiver.stamped_share if run.pool.receiver is not None else 0.0
    client = run.check.result(loop_name, records, run.kept.parse_cpu_s, stamped_share)
    return DriveOutcome(
        plan.worker, run.start_ns, client, left, tally.abort_reason, tally.peak_in_flight, records
    )  # fmt: skip


class _Kept:
    """Keeps what came back until the clock has stopped, then turns it into records."""

    def __init__(self, worker: int) -> None:
        self.parse_cpu_s = 0.0
        self._worker = worker
        self._raw: list[tuple[PlannedRequest, int, Exchange, int]] = []
        self._raw_bytes = 0
        self._records: list[RequestRecord] = []

    def add(self, request: PlannedRequest, slot: int, exchange: Exchange, released_ns: int) -> None:
        self._raw.append((request, slot, exchange, released_ns))
        self._raw_bytes += exchange.body_bytes
        if self._raw_bytes > RAW_BYTES_LIMIT:
            self._read(*self._raw.pop())
            self._raw_bytes -= exchange.body_bytes

    def records(self) -> list[RequestRecord]:
        """All records, in the order of their prompts."""
        while self._raw:
            self._read(*self._raw.pop())
        return sorted(self._records, key=lambda record: record.index)

    def _read(self, request: PlannedRequest, slot: int, exchange: Exchange, released_ns: int) -> None:
        started_ns = time.thread_time_ns()
        self._records.append(to_record(request, self._worker, slot, exchange, released_ns))
        self.parse_cpu_s += (time.thread_time_ns() - started_ns) / 1e9


class _Run:
    """One run on its event loop: open connections, wait for the start, send, await the rest."""

    def __init__(
        self,
        plan: DrivePlan,
        jobs: JobQueue,
        on_progress: Callable[[Progress], None] | None,
        should_abort: Callable[[], str | None] | None,
    ) -> None:
        self.plan, self.spec, self.jobs = plan, plan.spec, jobs
        self.pool = ChannelPool(plan.target)
        self.watchdog = Watchdog(plan.spec, self.pool.channels, on_progress, should_abort)
        self.check = SelfCheck()
        self.kept = _Kept(plan.worker)
        self.tally = Tally(plan.total)
        self.start_ns = 0
        self.most_connections = 0

    async def main(self, on_ready: Callable[[], int] | None) -> None:
        tally = self.tally
        try:
            tally.abort_reason = self.watchdog.ask_abort()
            self.pool.receiver = Receiver.open()
            if not tally.abort_reason:
                await self.connect()
            self.start_ns = on_ready() if on_ready is not None else time.perf_counter_ns() + round(LEAD_S * 1e9)
            tally.start_ns = self.start_ns
            if tally.abort_reason:
                return
            self.watchdog.report(tally)
            with Alarm() as alarm:
                await alarm.until(self.start_ns)
                self.check.start(self.pool.receiver is not None)
                await self._watched(alarm)
        finally:
            self.check.stop()
            self.pool.close()
            if self.pool.receiver is not None:
                self.pool.receiver.close()
            await asyncio.sleep(0)  # lets the transports close before the loop does
        self.watchdog.report(tally)

    async def connect(self) -> None:
        raise NotImplementedError

    async def send_all(self, alarm: Alarm) -> None:
        raise NotImplementedError

    def is_over(self, at_ns: int) -> bool:
        """Nothing that is due at ``at_ns`` is sent any more."""
        duration_s = self.spec.duration_s
        return bool(self.tally.abort_reason) or (
            duration_s is not None and at_ns - self.start_ns >= duration_s * 1e9
        )  # fmt: skip

    async def exchange(self, channel: Channel, job: Job, slot: int, due_ns: int, released_ns: int) -> Exchange:
        """Send one request on ``channel`` and keep what comes back."""
        self.tally.begun()
        exchange = await channel.exchange(job.wire, due_ns)
        self.tally.ended(exchange)
        self.kept.add(job.request, slot, exchange, released_ns)
        return exchange

    async def _watched(self, alarm: Alarm) -> None:
        sending = asyncio.create_task(self.send_all(alarm))
        watch = asyncio.create_task(self.watchdog.run(self.tally))
        try:
            await asyncio.wait((sending, watch), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                watch.result()  # raises what a caller's function raised
            sending.result()
        finally:
            await cancel(watch, sending)


class _ClosedLoop(_Run):
    """A fixed number of slots, each with one request in flight at any time."""

    async def connect(self) -> None:
        await open_all([self.pool.new() for _ in range(self.plan.slots)])

    async def send_all(self, alarm: Alarm) -> None:
        await asyncio.gather(*(self._slot(slot) for slot in range(self.plan.slots)))

    async def _slot(self, slot: int) -> None:
        channel, free_ns = self.pool.channels[slot], self.start_ns
        while not self.is_over(free_ns):
            job = self.jobs.take()
            if job is None:
                return
            asyncio.get_running_loop().call_soon(self.jobs.top_up)
            exchange = await self.exchange(channel, job, self.plan.first_slot + slot, free_ns, free_ns)
            free_ns = exchange.end_ns
            if exchange.sent_ns == 0:
                await asyncio.sleep(0.001)  # nobody listens: do not spin through the rest of the requests


class _OpenLoop(_Run):
    """Every request goes out when it is due, whatever became of those before it.

    ``slot`` of a request is the number of the connection that carried it.
    """

    async def connect(self) -> None:
        plan, rate = self.plan, self.spec.rate_per_s or 0.0
        ahead = max(8, math.ceil(rate * OPEN_AHEAD_S / plan.workers))
        await self.pool.open_ahead(min(ahead, plan.total or ahead, plan.slots or ahead, self.most_connections))

    async def send_all(self, alarm: Alarm) -> None:
        room, running = asyncio.Event(), set[asyncio.Task[None]]()
        released_ns = 0  # when the cap last let a request through: none overtakes those before it
        try:
            while (job := self.jobs.take()) is not None:
                due_ns = self.start_ns + job.request.due_ns
                await self._wait_until(due_ns, alarm)
                while self.plan.slots and self.tally.in_flight >= self.plan.slots and not self.tally.abort_reason:
                    room.clear()
                    await room.wait()
                    released_ns = time.perf_counter_ns()
                if self.tally.in_flight >= self.most_connections and not self.tally.abort_reason:
                    self.tally.abort_reason = self._too_many()
                if self.tally.abort_reason:
                    break
                task = asyncio.create_task(self._send(job, due_ns, max(due_ns, released_ns), room))
                running.add(task)
                task.add_done_callback(running.discard)
                self.jobs.top_up()
            await asyncio.gather(*running)
        finally:
            await cancel(*running)

    async def _wait_until(self, due_ns: int, alarm: Alarm) -> None:
        """Wait in short steps: a long gap in the arrivals must not outlast an abort."""
        step_ns = round(POLL_INTERVAL_S * 1e9)
        while (now_ns := time.perf_counter_ns()) + step_ns < due_ns and not self.tally.abort_reason:
            await alarm.until(now_ns + step_ns)
        if not self.tally.abort_reason:
            await alarm.until(due_ns)

    async def _send(self, job: Job, due_ns: int, released_ns: int, room: asyncio.Event) -> None:
        channel = self.pool.take()
        try:
            await self.exchange(channel, job, self.pool.number(channel), due_ns, released_ns)
        finally:
            self.pool.give_back(channel)
            room.set()

    def _too_many(self) -> str:
        return (
            f"{self.tally.in_flight} requests were in flight and this process may open no more files: the engine does "
            "not keep up. Lower rate_per_s, cap the requests in flight with concurrency, or raise `ulimit -n`."
        )


async def cancel(*futures: asyncio.Future[Any]) -> None:
    """Cancel and wait until they have stopped; whatever they were doing is no longer of interest."""
    for future in futures:
        future.cancel()
    await asyncio.gather(*futures, return_exceptions=True)


def _allow_files(plan: DrivePlan) -> int:
    """Connections this worker may open. Raises :class:`BadRequest` where its slots need more."""
    wanted = plan.slots or plan.total or 0
    allowed = allow_connections(wanted)
    if plan.slots > allowed:
        raise BadRequest(
            f"concurrency={plan.spec.concurrency}: this process may open only {allowed} connections; "
            "raise `ulimit -n` or use more workers"
        )
    return allowed


def _event_loop() -> tuple[str, Callable[[], asyncio.AbstractEventLoop]]:
    try:
        return "uvloop", importlib.import_module("uvloop").new_event_loop
    except ImportError:
        return "asyncio", asyncio.new_event_loop
