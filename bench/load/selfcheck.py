"""Was it the client that was slow? What the load client itself cost and how late it was."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.load.records import RequestRecord

LAG_INTERVAL_S = 0.01


@dataclass(frozen=True, slots=True)
class ClientCheck:
    """The client's own cost during the measured window.

    ``cpu_s`` is the CPU time of the thread that ran the event loop (other threads of the process are not the
    client); ``cpu_us_per_token`` divides it by all output tokens received. ``core_share`` is its part of one
    core (at 1 the client is the bottleneck, since it is one thread), ``share_of_machine`` its part of all
    cores. ``parse_cpu_s`` was spent on reading the responses, after the clock had stopped.

    ``cpu_wait_s`` is how long that thread was ready to run but had no core: time that other processes of the
    machine took from it (Linux; None elsewhere).

    ``loop_lag_*`` is how late a callback due every 10 ms ran: the error that a busy or starved loop adds to a
    time stamp. A long stall counts once for every callback that fell into it, so that percentiles are over
    time. Timers themselves are good to about 1 ms. ``send_delay_*`` is from when a request was due to when it
    was written.
    """

    event_loop: str
    cpu_s: float
    cpu_us_per_token: float | None
    core_share: float | None
    share_of_machine: float | None
    cpu_wait_s: float | None
    parse_cpu_s: float
    loop_lag_p50_s: float | None
    loop_lag_p99_s: float | None
    loop_lag_max_s: float | None
    send_delay_p99_s: float | None
    send_delay_max_s: float | None


class SelfCheck:
    """Measures from :meth:`start` to :meth:`stop`, both called on the event loop's thread."""

    def __init__(self) -> None:
        self._lags_s: list[float] = []
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        self._cpu_ns = self._wall_ns = 0
        self._wait_start_ns: int | None = None
        self._wait_end_ns: int | None = None
        self._running = False

    def start(self) -> None:
        """Begin anew, forgetting what came before."""
        self._lags_s.clear()
        self._running = True
        self._wait_start_ns = _run_queue_wait_ns()
        self._cpu_ns, self._wall_ns = -time.thread_time_ns(), -time.perf_counter_ns()
        self._schedule()

    def stop(self) -> None:
        """End; a second call does nothing."""
        if not self._running:
            return
        self._running = False
        self._cpu_ns += time.thread_time_ns()
        self._wall_ns += time.perf_counter_ns()
        self._wait_end_ns = _run_queue_wait_ns()
        if self._timer is not None:
            self._timer.cancel()

    def result(self, event_loop: str, records: Sequence[RequestRecord], parse_cpu_s: float) -> ClientCheck:
        """What was measured, for a run that gave ``records``. Call after :meth:`stop`."""
        cpu_s, wall_s = self._cpu_ns / 1e9, self._wall_ns / 1e9
        tokens = sum(r.output_tokens for r in records)
        wait_s = None
        if self._wait_start_ns is not None and self._wait_end_ns is not None:
            wait_s = (self._wait_end_ns - self._wait_start_ns) / 1e9
        core_share = cpu_s / wall_s if wall_s > 0 else None
        delays_s = [(r.sent_ns - r.scheduled_ns) / 1e9 for r in records if r.sent_ns]
        return ClientCheck(
            event_loop=event_loop,
            cpu_s=cpu_s,
            cpu_us_per_token=cpu_s * 1e6 / tokens if tokens else None,
            core_share=core_share,
            share_of_machine=core_share / (os.cpu_count() or 1) if core_share is not None else None,
            cpu_wait_s=wait_s,
            parse_cpu_s=parse_cpu_s,
            loop_lag_p50_s=_percentile(self._lags_s, 50),
            loop_lag_p99_s=_percentile(self._lags_s, 99),
            loop_lag_max_s=max(self._lags_s, default=None),
            send_delay_p99_s=_percentile(delays_s, 99),
            send_delay_max_s=max(delays_s, default=None),
        )

    def _schedule(self) -> None:
        self._due_s = time.perf_counter() + LAG_INTERVAL_S
        self._timer = asyncio.get_running_loop().call_later(LAG_INTERVAL_S, self._tick)

    def _tick(self) -> None:
        # Event loops may round a timer to a millisecond, early too: that is not negative lag.
        lag_s = max(0.0, time.perf_counter() - self._due_s)
        self._lags_s.append(lag_s)
        while (lag_s := lag_s - LAG_INTERVAL_S) > 0:  # the callbacks that would have been due meanwhile
            self._lags_s.append(lag_s)
        self._schedule()


def _run_queue_wait_ns() -> int | None:
    """Nanoseconds this thread has waited for a core since it began (the kernel's schedstat, field 2)."""
    try:
        with open("/proc/thread-self/schedstat") as file:
            return int(file.read().split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _percentile(samples: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(samples, percent)) if samples else None
