"""Watches a run from beside it: deadlines, the engine's life, progress, and the engine's own gauges."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from bench.load.http import Channel, Exchange
from bench.load.metrics import MetricsSnapshot, kv_cache_usage, parse_metrics
from bench.load.result import Progress
from bench.load.spec import LoadSpec
from bench.load.wire import Target

POLL_INTERVAL_S = 0.25  # for abort and progress
METRICS_INTERVAL_S = 0.5
METRICS_TIMEOUT_S = 5.0
LATE_S = 0.05
HUNG_ROUNDS = 2  # this many unanswered requests per slot in a row call the run off


class Tally:
    """Counts of a phase while it runs, and the reason to stop it, if there is one."""

    def __init__(self, phase: str, total: int, slots: int) -> None:
        self.phase, self.total = phase, total
        self.sent = self.finished = self.failed = 0
        self.abort_reason = ""
        self._hung = 0
        self._hung_limit = max(HUNG_ROUNDS * slots, 4)
        self._start_s = time.perf_counter()

    def ended(self, exchange: Exchange) -> None:
        """Count an exchange, and call the run off once the engine lets nothing but deadlines pass."""
        self.finished += 1
        self.failed += bool(exchange.failure) or exchange.status != 200
        self._hung = self._hung + 1 if exchange.failure in ("timeout", "stalled") else 0
        if self._hung >= self._hung_limit and not self.abort_reason:
            self.abort_reason = f"The last {self._hung} requests in a row got no whole answer in time."

    def progress(self) -> Progress:
        elapsed_s = time.perf_counter() - self._start_s
        return Progress(self.phase, self.total, self.sent, self.finished, self.failed, elapsed_s)


class Watchdog:
    """Ends exchanges that are over their time, and all of them when the run is called off."""

    def __init__(
        self,
        spec: LoadSpec,
        channels: Sequence[Channel],
        on_progress: Callable[[Progress], None] | None,
        should_abort: Callable[[], str | None] | None,
    ) -> None:
        self._spec, self._channels = spec, channels
        self._on_progress, self._should_abort = on_progress, should_abort
        shortest_s = min(spec.timeout_s, spec.stall_timeout_s)
        self._tick_s = min(POLL_INTERVAL_S, max(0.01, shortest_s / 20))

    def ask_abort(self) -> str:
        """The caller's reason to stop, or an empty string."""
        return (self._should_abort() or "") if self._should_abort is not None else ""

    def report(self, tally: Tally) -> None:
        """Tell the caller where the phase stands."""
        if self._on_progress is not None:
            self._on_progress(tally.progress())

    async def run(self, tally: Tally) -> None:
        """Watch until cancelled. Raises what the caller's functions raise."""
        next_poll_s = time.perf_counter() + POLL_INTERVAL_S
        skipped = False
        while True:
            slept_from_s = time.perf_counter()
            await asyncio.sleep(self._tick_s)
            late_s = time.perf_counter() - slept_from_s - self._tick_s
            # After a stall of this process bytes may lie unread: let the loop take them in before judging.
            skipped = late_s > LATE_S and not skipped
            if not skipped:
                self._sweep(tally.abort_reason)
            if time.perf_counter() >= next_poll_s:
                next_poll_s = time.perf_counter() + POLL_INTERVAL_S
                tally.abort_reason = tally.abort_reason or self.ask_abort()
                self.report(tally)
                if tally.abort_reason:
                    self._sweep(tally.abort_reason)

    def _sweep(self, abort_reason: str) -> None:
        now_ns = time.perf_counter_ns()
        for channel in self._channels:
            if channel.begun_ns == 0:
                continue
            last_ns = channel.last_body_byte_ns()
            if abort_reason:
                channel.interrupt("aborted", abort_reason)
            elif (now_ns - channel.begun_ns) / 1e9 > self._spec.timeout_s:
                channel.interrupt("timeout", f"No whole answer within timeout_s={self._spec.timeout_s:g}.")
            elif last_ns is not None and (now_ns - last_ns) / 1e9 > self._spec.stall_timeout_s:
                channel.interrupt("stalled", f"Silent for stall_timeout_s={self._spec.stall_timeout_s:g}.")


class EngineWatch:
    """Reads the engine's metrics page around and during the measured window, on a connection of its own.

    An engine without such a page, or one that stops answering it, costs the numbers and nothing else.
    """

    def __init__(self, target: Target) -> None:
        self._request = target.get("/metrics")
        self._channel = Channel(target)
        self._absent = False
        self.kv_cache_usage_max_ratio: float | None = None

    async def snapshot(self) -> MetricsSnapshot | None:
        """The counters now; None if the engine gives none."""
        page = await self._page()
        return None if page is None else parse_metrics(page.decode(errors="replace"))

    async def settled_snapshot(self) -> MetricsSnapshot | None:
        """The counters once the engine is idle: it books the last tokens a moment after sending them."""
        for _ in range(20):
            snapshot = await self.snapshot()
            if snapshot is None or not (snapshot.num_requests_running or snapshot.num_requests_waiting):
                return snapshot
            await asyncio.sleep(0.05)
        return snapshot

    async def run(self) -> None:
        """Keep the highest KV-cache use seen, until cancelled or the server says it has no such page."""
        while not self._absent:
            # Only this gauge: reading the whole page would hold up the loop that stamps the tokens.
            usage = kv_cache_usage(await self._page() or b"")
            if usage is not None:
                self.kv_cache_usage_max_ratio = max(usage, self.kv_cache_usage_max_ratio or 0.0)
            await asyncio.sleep(METRICS_INTERVAL_S)

    def close(self) -> None:
        self._channel.close()

    async def _page(self) -> bytes | None:
        try:
            async with asyncio.timeout(METRICS_TIMEOUT_S):
                exchange = await self._channel.exchange(self._request, time.perf_counter_ns())
        except TimeoutError:
            return None
        if exchange.failure:
            return None
        self._absent = exchange.status != 200
        return None if self._absent else b"".join(exchange.pieces)
