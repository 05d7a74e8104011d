"""The closed loop: a fixed number of slots, each with one request in flight at any time."""

from __future__ import annotations

import asyncio
import gc
import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bench.errors import BadRequest
from bench.load.http import Channel, Exchange
from bench.load.metrics import MetricsSnapshot
from bench.load.monitor import EngineWatch, Tally, Watchdog
from bench.load.records import RequestRecord, to_record
from bench.load.result import LoadResult, Progress, build_result
from bench.load.selfcheck import SelfCheck
from bench.load.spec import LoadSpec
from bench.load.wire import Job, Target, build_jobs

OPEN_TIMEOUT_S = 10.0
RAW_BYTES_LIMIT = (
    512 << 20
)  # unread responses kept; beyond it they are read at once, and the client's cost shows it


def run_closed_loop(
    base_url: str,
    model: str,
    spec: LoadSpec,
    vocab_size: int,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    should_abort: Callable[[], str | None] | None = None,
) -> LoadResult:
    """Run ``spec`` against the engine at ``base_url`` (``http://HOST:PORT``) and measure it.

    ``vocab_size`` is the model's; prompts are drawn from it as token ids. ``on_progress`` is called and
    ``should_abort`` asked about four times a second, on the thread that times the tokens: both must be quick.
    When ``should_abort`` gives a sentence, requests in flight end as ``aborted`` with it and no others are
    sent.

    Returns a :class:`LoadResult` whatever the engine does, even if no request gets through. Raises
    :class:`BadRequest` if the run cannot be made as asked; what the two functions raise, and
    ``KeyboardInterrupt``, come through with all connections closed. Must not be called on a thread whose
    event loop is running.
    """
    target = Target.parse(base_url)
    _allow_open_files(spec.slots)
    # The measured prompts come first, so that they do not depend on the number of warm-up requests.
    jobs = build_jobs(target, model, spec, vocab_size, range(spec.num_requests))
    last = spec.num_requests + spec.warmup_requests
    warmup_jobs = build_jobs(target, model, spec, vocab_size, range(spec.num_requests, last))
    loop_name, loop_factory = _event_loop()
    run = _Run(target, spec, on_progress, should_abort)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection would stop the loop for milliseconds and show up as latency
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(run.main(warmup_jobs, jobs))
    finally:
        if collecting:
            gc.enable()
    records, warmup = run.measured.records(), run.warmup.records()
    client = run.check.result(loop_name, records, run.measured.parse_cpu_s)
    usage = run.engine.kv_cache_usage_max_ratio
    return build_result(
        spec, records, warmup, client, run.abort_reason, run.before, run.after, usage, run.unix_offset_ns
    )


class _Collector:
    """Keeps what came back until the clock has stopped, then turns it into records."""

    def __init__(self, output_tokens: int) -> None:
        self.parse_cpu_s = 0.0
        self._output_tokens = output_tokens
        self._raw: list[tuple[int, int, Exchange]] = []
        self._raw_bytes = 0
        self._records: list[RequestRecord] = []

    def add(self, index: int, slot: int, exchange: Exchange) -> None:
        self._raw.append((index, slot, exchange))
        self._raw_bytes += exchange.body_bytes
        if self._raw_bytes > RAW_BYTES_LIMIT:
            self._read(self._raw.pop())
            self._raw_bytes -= exchange.body_bytes

    def records(self) -> list[RequestRecord]:
        """All records, in the order of their prompts."""
        while self._raw:
            self._read(self._raw.pop())
        return sorted(self._records, key=lambda record: record.index)

    def _read(self, raw: tuple[int, int, Exchange]) -> None:
        started_ns = time.thread_time_ns()
        self._records.append(to_record(*raw, self._output_tokens))
        self.parse_cpu_s += (time.thread_time_ns() - started_ns) / 1e9


class _Run:
    """One run on its event loop: open connections, warm up, measure."""

    def __init__(
        self,
        target: Target,
        spec: LoadSpec,
        on_progress: Callable[[Progress], None] | None,
        should_abort: Callable[[], str | None] | None,
    ) -> None:
        self.spec = spec
        self.channels = [Channel(target) for _ in range(spec.slots)]
        self.watchdog = Watchdog(spec, self.channels, on_progress, should_abort)
        self.engine = EngineWatch(target)
        self.check = SelfCheck()
        self.warmup, self.measured = _Collector(spec.output_tokens), _Collector(spec.output_tokens)
        self.before: MetricsSnapshot | None = None
        self.after: MetricsSnapshot | None = None
        self.abort_reason = ""
        self.unix_offset_ns = time.time_ns() - time.perf_counter_ns()

    async def main(self, warmup_jobs: Sequence[Job], jobs: Sequence[Job]) -> None:
        try:
            self.abort_reason = self.watchdog.ask_abort()
            if self.abort_reason:
                return
            await self._open()
            if warmup_jobs:
                await self._phase("warmup", warmup_jobs, self.warmup)
            if self.abort_reason:
                return
            self.before = await self.engine.settled_snapshot()
            watch = asyncio.create_task(self.engine.run())
            self.check.start()
            try:
                await self._phase("measure", jobs, self.measured)
            finally:
                self.check.stop()
                await _cancel(watch)
            if not self.abort_reason:
                self.after = await self.engine.settled_snapshot()
        finally:
            self.check.stop()
            for channel in self.channels:
                channel.close()
            self.engine.close()
            await asyncio.sleep(0)  # lets the transports close before the loop does

    async def _open(self) -> None:
        """Connect every slot before the clock starts. Whoever fails tries again with its first request."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await asyncio.gather(*(channel.open() for channel in self.channels))
        except TimeoutError:
            pass

    async def _phase(self, name: str, jobs: Sequence[Job], collector: _Collector) -> None:
        tally = Tally(name, len(jobs), len(self.channels))
        queue = iter(jobs)
        self.watchdog.report(tally)
        slots = asyncio.gather(
            *(self._slot(slot, queue, tally, collector) for slot in range(len(self.channels)))
        )
        watch = asyncio.create_task(self.watchdog.run(tally))
        try:
            await asyncio.wait((slots, watch), return_when=asyncio.FIRST_COMPLETED)
            if not slots.done():
                watch.result()  # raises what a caller's function raised
            slots.result()
        finally:
            await _cancel(watch)
            await _cancel(slots)
        self.abort_reason = tally.abort_reason
        self.watchdog.report(tally)

    async def _slot(self, slot: int, queue: Iterator[Job], tally: Tally, collector: _Collector) -> None:
        channel = self.channels[slot]
        free_ns = time.perf_counter_ns()
        for job in queue:
            if tally.abort_reason:
                return
            tally.sent += 1
            exchange = await channel.exchange(job.wire, free_ns)
            free_ns = exchange.end_ns
            tally.ended(exchange)
            collector.add(job.index, slot, exchange)
            if exchange.sent_ns == 0:
                await asyncio.sleep(0.001)  # nobody listens: do not spin through the rest of the requests


async def _cancel(future: asyncio.Future[Any]) -> None:
    """Cancel and wait until it has stopped; whatever it was doing is no longer of interest."""
    future.cancel()
    await asyncio.gather(future, return_exceptions=True)


def _event_loop() -> tuple[str, Callable[[], asyncio.AbstractEventLoop]]:
    try:
        return "uvloop", importlib.import_module("uvloop").new_event_loop
    except ImportError:
        return "asyncio", asyncio.new_event_loop


def _allow_open_files(slots: int) -> None:
    """Raise this process's soft limit on open files if the slots need more. Raises :class:`BadRequest`."""
    import resource

    needed = slots + 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise BadRequest(
            f"concurrency is {slots}, but this process may open only {hard} files; raise `ulimit -n`."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
