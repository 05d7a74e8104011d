"""Watches a run from beside it: counts, deadlines, the caller's wish to stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.load.http import Channel, Exchange
from bench.load.spec import LoadSpec

POLL_INTERVAL_S = 0.25  # for abort and progress
SWEEP_INTERVAL_S = 1.0  # for deadlines of 20 s and more, which are noticed so much late: it looks at every connection
LATE_S = 0.05
HUNG_ROUNDS, HUNG_LEAST = 2, 4  # so many unanswered requests in a row, for each in flight, call the run off


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands. ``total`` is None where only its duration ends it. ``failed``: known to have failed; reading
    the responses may add to it."""

    total: int | None
    sent: int
    finished: int
    failed: int
    elapsed_s: float

    @property
    def in_flight(self) -> int:
        return self.sent - self.finished

    @classmethod
    def merged(cls, parts: Sequence[Progress]) -> Progress:
        """Several workers' progress as one."""
        totals = [part.total for part in parts if part.total is not None]
        return cls(
            sum(totals) if len(totals) == len(parts) else None,
            sum(part.sent for part in parts),
            sum(part.finished for part in parts),
            sum(part.failed for part in parts),
            max((part.elapsed_s for part in parts), default=0.0),
        )


class Tally:
    """Counts of a run while it lasts, and the reason to stop it, if there is one."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.sent = self.finished = self.failed = self.peak_in_flight = 0
        self.abort_reason = ""
        self.start_ns = time.perf_counter_ns()
        self._hung = 0

    @property
    def in_flight(self) -> int:
        return self.sent - self.finished

    def begun(self) -> None:
        """Count a request that goes out."""
        self.sent += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    def ended(self, exchange: Exchange) -> None:
        """Count an exchange, and call the run off once the engine lets nothing but deadlines pass."""
        self.finished += 1
        self.failed += bool(exchange.failure) or exchange.status != 200
        self._hung = self._hung + 1 if exchange.failure in ("timeout", "stalled") else 0
        if self._hung >= max(HUNG_ROUNDS * self.peak_in_flight, HUNG_LEAST) and not self.abort_reason:
            self.abort_reason = f"The last {self._hung} requests in a row got no whole answer in time."

    def progress(self) -> Progress:
        elapsed_s = max(0.0, (time.perf_counter_ns() - self.start_ns) / 1e9)
        return Progress(self.total, self.sent, self.finished, self.failed, elapsed_s)


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
        self._sweep_s = min(SWEEP_INTERVAL_S, max(0.01, shortest_s / 20))
        self._tick_s = min(POLL_INTERVAL_S, self._sweep_s)

    def ask_abort(self) -> str:
        """The caller's reason to stop, or an empty string."""
        return (self._should_abort() or "") if self._should_abort is not None else ""

    def report(self, tally: Tally) -> None:
        """Tell the caller where the run stands."""
        if self._on_progress is not None:
            self._on_progress(tally.progress())

    async def run(self, tally: Tally) -> None:
        """Watch until cancelled. Raises what the caller's functions raise."""
        next_poll_s = time.perf_counter() + POLL_INTERVAL_S
        next_sweep_s = time.perf_counter() + self._sweep_s
        skipped = False
        while True:
            slept_from_s = time.perf_counter()
            await asyncio.sleep(self._tick_s)
            late_s = time.perf_counter() - slept_from_s - self._tick_s
            # After a stall of this process bytes may lie unread: let the loop take them in before judging.
            skipped = late_s > LATE_S and not skipped
            if not skipped and (tally.abort_reason or time.perf_counter() >= next_sweep_s - self._tick_s / 2):
                next_sweep_s = time.perf_counter() + self._sweep_s
                self._sweep(tally.abort_reason)
            # A loop's timers are rounded: a tick a little early must not put the poll off by a whole one.
            if time.perf_counter() >= next_poll_s - self._tick_s / 2:
                next_poll_s = time.perf_counter() + POLL_INTERVAL_S
                tally.abort_reason = tally.abort_reason or self.ask_abort()
                self.report(tally)
                if tally.abort_reason:
                    self._sweep(tally.abort_reason)

    def _sweep(self, abort_reason: str) -> None:
        now_ns = time.perf_counter_ns()
        for channel in list(self._channels):
            if channel.begun_ns == 0:
                continue
            last_ns = channel.last_body_byte_ns()
            if abort_reason:
                channel.interrupt("aborted", abort_reason)
            elif (now_ns - channel.begun_ns) / 1e9 > self._spec.timeout_s:
                channel.interrupt("timeout", f"No whole answer within timeout_s={self._spec.timeout_s:g}.")
            elif last_ns is not None and (now_ns - last_ns) / 1e9 > self._spec.stall_timeout_s:
                channel.interrupt("stalled", f"Silent for stall_timeout_s={self._spec.stall_timeout_s:g}.")
