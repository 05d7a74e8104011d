"""Was it the client that was slow? What the load client itself cost and how late it was."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.load.records import RequestRecord
from bench.load.timerfile import TimerFile

LAG_INTERVAL_S = 0.005
STAMPED_LAG_INTERVAL_S = 0.01  # where lateness moves no latency, a coarser look will do, for half the wake-ups

# Below these the client is held to be no part of the result, which is to say: p50 of TTFT and ITL is within 1 ms of
# what the engine did, p99 within 3 ms. Where the loop stamps what it reads, a token is stamped late by what the loop
# was doing when its bytes came, and the probe of `SelfCheck` waits in the same queue as the bytes. If at most 1 % of
# the probes are more than 2 ms late, then at most about 1 % of the stamps are, and a percentile is moved by at most
# that much (a gap has a late end, or a late beginning that makes it look short); the rest of the 3 ms pays for the
# samples being few. The limit on the median keeps a loop that is always half a millisecond behind from passing as one
# that never is much.
LAG_P50_LIMIT_S = 0.0005
LAG_P99_LIMIT_S = 0.002
# Where the kernel stamps, a late loop blurs nothing, until it is later than the gap between two tokens of a stream and
# takes them for one. Engines rarely give a stream more than a token in 5 ms.
STAMPED_LAG_P50_LIMIT_S = 0.002
STAMPED_LAG_P99_LIMIT_S = 0.005
STAMPED_SHARE = 0.999  # of all readings: the kernel stamps
SEND_DELAY_LIMIT_S = 0.010  # more than the turn of a loop that keeps up
CORE_SHARE_LIMIT = 0.7  # one thread near its limit queues what arrives in a burst
WAIT_SHARE_LIMIT = 0.05  # of the window spent ready to run, without a core


@dataclass(frozen=True, slots=True)
class ClientCheck:
    """The client's own cost during the measured window.

    ``cpu_s`` is the CPU time of the threads that ran the event loops (other threads of the process are not the
    client); ``cpu_us_per_token`` divides it by all output tokens received. ``core_share`` is the part of one core that
    the busiest worker took (at 1 it is the bottleneck, since it is one thread), ``share_of_machine`` the part of all
    cores that all of them took. ``parse_cpu_s`` was spent on reading the responses, after the clock had stopped.

    ``cpu_wait_s`` is how long the worst worker was ready to run but had no core: time that other processes of the
    machine took from it (Linux; None elsewhere).

    ``kernel_stamped_share`` is the part of all readings that have the kernel's time instead of the loop's (of the worst
    worker; None without a reading).

    ``loop_lag_*`` (of the worst worker) is how late the loop came to an event due every 5 ms (10 where the kernel
    stamps): the error that a busy or starved loop adds to a time stamp of its own. A long stall counts once for every
    event that fell into it, so that percentiles are over time. ``send_delay_*`` is from when a request was due, and let
    through by a cap on the requests in flight, to when it was written.

    ``workers`` is how many processes sent; ``placement`` says which cores they and the engine had, or why all had any.
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
    workers: int = 1
    placement: str = ""
    kernel_stamped_share: float | None = 0.0

    @property
    def kernel_stamps(self) -> bool:
        """Latencies are by the kernel's time stamps."""
        return (self.kernel_stamped_share or 0.0) >= STAMPED_SHARE


def client_bound(check: ClientCheck, window_s: float | None) -> list[str]:
    """Why the figures of a run of ``window_s`` seconds may be the client's and not the engine's: names of row flags.

    Empty where nothing says so. The limits are the constants of this module.
    """
    own = (LAG_P50_LIMIT_S, LAG_P99_LIMIT_S)
    p50_limit_s, p99_limit_s = (STAMPED_LAG_P50_LIMIT_S, STAMPED_LAG_P99_LIMIT_S) if check.kernel_stamps else own
    late = (check.loop_lag_p50_s or 0.0) > p50_limit_s or (check.loop_lag_p99_s or 0.0) > p99_limit_s
    found = {
        "client_lag": late,
        "client_starved": bool(window_s) and (check.cpu_wait_s or 0.0) > WAIT_SHARE_LIMIT * (window_s or 0.0),
        "client_cpu_bound": (check.core_share or 0.0) > CORE_SHARE_LIMIT,
        "send_delay": (check.send_delay_p99_s or 0.0) > SEND_DELAY_LIMIT_S,
    }
    return [name for name, held in found.items() if held]


def merge_checks(checks: Sequence[ClientCheck], records: Sequence[RequestRecord]) -> ClientCheck:
    """The checks of several workers as one: costs add up; of what makes a figure wrong, the worst worker counts.

    ``records`` are those of all workers. A worker that is faultless does not make up for one that is late, so lags are
    not averaged. Raises ``ValueError`` without a check.
    """
    if len(checks) == 1:
        return checks[0]
    if not checks:
        raise ValueError("no worker's check to merge")
    cpu_s, tokens = sum(check.cpu_s for check in checks), sum(record.output_tokens for record in records)
    shares = [check.share_of_machine for check in checks if check.share_of_machine is not None]

    def worst(name: str) -> float | None:
        return max((value for check in checks if (value := getattr(check, name)) is not None), default=None)

    delays_s = _send_delays_s(records)
    return replace(
        checks[0],
        event_loop=", ".join(sorted({check.event_loop for check in checks} - {""})),
        cpu_s=cpu_s,
        cpu_us_per_token=cpu_s * 1e6 / tokens if tokens else None,
        share_of_machine=sum(shares) if shares else None,
        parse_cpu_s=sum(check.parse_cpu_s for check in checks),
        send_delay_p99_s=_percentile(delays_s, 99),
        send_delay_max_s=max(delays_s, default=None),
        workers=sum(check.workers for check in checks),
        kernel_stamped_share=min(
            (check.kernel_stamped_share for check in checks if check.kernel_stamped_share is not None), default=None
        ),
        **{name: worst(name) for name in _WORST},
    )


_WORST = ("core_share", "cpu_wait_s", "loop_lag_p50_s", "loop_lag_p99_s", "loop_lag_max_s")


class SelfCheck:
    """Measures from :meth:`start` to :meth:`stop`, both called on the event loop's thread."""

    def __init__(self) -> None:
        self._lags_s: list[float] = []
        self._probe: _Probe | None = None
        self._cpu_ns = self._wall_ns = 0
        self._wait_start_ns: int | None = None
        self._wait_end_ns: int | None = None

    def start(self, kernel_stamps: bool = False) -> None:
        """Begin anew, forgetting what came before. ``kernel_stamps``: a late loop moves no latency."""
        self.stop()
        self._lags_s.clear()
        self._wait_start_ns = _run_queue_wait_ns()
        self._cpu_ns, self._wall_ns = -time.thread_time_ns(), -time.perf_counter_ns()
        self._probe = _Probe(self._lags_s, STAMPED_LAG_INTERVAL_S if kernel_stamps else LAG_INTERVAL_S)

    def stop(self) -> None:
        """End; a second call does nothing."""
        if self._probe is None:
            return
        self._probe.close()
        self._probe = None
        self._cpu_ns += time.thread_time_ns()
        self._wall_ns += time.perf_counter_ns()
        self._wait_end_ns = _run_queue_wait_ns()

    def result(
        self, event_loop: str, records: Sequence[RequestRecord], parse_cpu_s: float, stamped_share: float | None = 0.0
    ) -> ClientCheck:
        """What was measured, for a run that gave ``records``. Call after :meth:`stop`."""
        cpu_s, wall_s = self._cpu_ns / 1e9, self._wall_ns / 1e9
        tokens = sum(r.output_tokens for r in records)
        wait_s = None
        if self._wait_start_ns is not None and self._wait_end_ns is not None:
            wait_s = (self._wait_end_ns - self._wait_start_ns) / 1e9
        core_share = cpu_s / wall_s if wall_s > 0 else None
        delays_s = _send_delays_s(records)
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
            kernel_stamped_share=stamped_share,
        )


class _Probe:
    """Something due every ``interval_s``, and how late the loop came to it.

    Where there is one, the kernel's timer file: it becomes readable to the microsecond and then waits in the same
    queue as a socket whose bytes have come. The loop's own timers would not do: they are rounded to a millisecond, and
    a loop serves them apart from its sockets.
    """

    def __init__(self, lags_s: list[float], interval_s: float) -> None:
        self._lags_s = lags_s
        self._loop = asyncio.get_running_loop()
        self._interval_ns = round(interval_s * 1e9)
        self._due_ns = time.perf_counter_ns() + self._interval_ns
        self._timer: asyncio.TimerHandle | None = None
        self._file = TimerFile.open()
        if self._file is not None:
            self._file.set(self._due_ns, self._interval_ns)
            self._loop.add_reader(self._file.fd, self._fired)
        else:
            self._schedule()

    def close(self) -> None:
        """Stop, and count what is overdue: a loop that ends blocked never came to it."""
        if self._file is not None:
            self._loop.remove_reader(self._file.fd)
            self._file.close()
            self._file = None
        if self._timer is not None:
            self._timer.cancel()
        self._take(time.perf_counter_ns())

    def _fired(self) -> None:
        if self._file is not None:
            self._file.clear()
        self._take(time.perf_counter_ns())

    def _tick(self) -> None:
        self._take(time.perf_counter_ns())
        self._schedule()

    def _schedule(self) -> None:
        wait_s = max(0.0, (self._due_ns - time.perf_counter_ns()) / 1e9)
        self._timer = self._loop.call_later(wait_s, self._tick)

    def _take(self, now_ns: int) -> None:
        while self._due_ns <= now_ns:  # more than one where a stall lasted
            self._lags_s.append((now_ns - self._due_ns) / 1e9)
            self._due_ns += self._interval_ns


def _send_delays_s(records: Sequence[RequestRecord]) -> list[float]:
    return [(r.sent_ns - r.released_ns) / 1e9 for r in records if r.sent_ns]


def _run_queue_wait_ns() -> int | None:
    """Nanoseconds this thread has waited for a core since it began (the kernel's schedstat, field 2)."""
    try:
        with open("/proc/thread-self/schedstat") as file:
            return int(file.read().split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _percentile(samples: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(samples, percent)) if samples else None
