"""Reads the engine's own counters around a load run, and its gauges while it runs.

The gauges are polled on a thread of their own with a connection of its own: nothing here runs on the event loop that
stamps tokens. A whole metrics page costs the engine some 4 ms of a core, a page of three gauges a tenth of that, and
vLLM serves such a page at ``/metrics/?name[]=...`` (the exact path ``/metrics`` ignores the filter). Where a server
does not, the whole page is read, but seldom.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlencode

from bench.load.metrics import Gauges, MetricsSnapshot, parse_gauges, parse_metrics
from bench.load.wire import Target

FIRST_INTERVAL_S, FIRST_READINGS = 0.03, 33
"""A short load is over before a slow poll has looked twice, so the first second is looked at more closely."""
INTERVAL_S = 0.25
"""A reading costs client and engine about a millisecond each where they share cores: four a second, half a per cent."""
WHOLE_PAGE_INTERVAL_S = 1.0
SMALL_PAGE_BYTES = 4096
TIMEOUT_S = 5.0
SETTLE_INTERVAL_S, SETTLE_S = 0.05, 2.0

_GAUGE_NAMES = (
    "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "vllm:num_requests_running", "vllm:num_requests_waiting",
)  # fmt: skip
_GAUGES_PATH = "/metrics/?" + urlencode([("name[]", name) for name in _GAUGE_NAMES], safe=":")


@dataclass(frozen=True, slots=True)
class GaugeReadings:
    """What the polled gauges showed between :meth:`EngineWatch.start` and :meth:`EngineWatch.stop`.

    A poll sees a peak only if it lasts: ``readings`` and ``poll_hz`` (readings a second, as achieved) say how closely
    it was looked. ``kv_cache_usage_max_ratio`` is 0 to 1, None where it was never above 0: a load that ran used some,
    so 0 means that no reading fell into it. Requests are counted by the engine; ``requests_running_mean`` is over the
    readings with at least one request in the engine. ``cpu_s`` is this thread's own CPU time.
    """

    readings: int = 0
    poll_hz: float | None = None
    kv_cache_usage_max_ratio: float | None = None
    requests_running_mean: float | None = None
    requests_running_max: int | None = None
    requests_waiting_max: int | None = None
    cpu_s: float = 0.0


class EngineWatch:
    """The engine's side of one load run. An engine without a metrics page costs the numbers and nothing else.

    ``before = watch.snapshot(); watch.start(); ...the load...; watch.stop(); after = watch.settled_snapshot()``

    All methods block (a page takes milliseconds, a dead server at most :data:`TIMEOUT_S`): call them outside the
    measured window, or through ``asyncio.to_thread``. Also a context manager, which stops the thread.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._tally = _Tally()
        self.gauges = GaugeReadings()

    def __enter__(self) -> EngineWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def snapshot(self) -> MetricsSnapshot | None:
        """The counters now; None if the engine gives none."""
        connection = http.client.HTTPConnection(self._target.host, self._target.port, timeout=TIMEOUT_S)
        try:
            page = _get(connection, f"{self._target.prefix}/metrics")
        finally:
            connection.close()
        return None if page is None else parse_metrics(page.decode(errors="replace"))

    def settled_snapshot(self, alive: Callable[[], bool] = lambda: True) -> MetricsSnapshot | None:
        """The counters once the engine is idle: it books the last tokens a moment after sending them.

        After :data:`SETTLE_S`, or as soon as ``alive`` says no, the counters are given as they are.
        """
        deadline_s = time.monotonic() + SETTLE_S
        while True:
            found = self.snapshot()
            if found is None or not (found.num_requests_running or found.num_requests_waiting):
                return found
            if time.monotonic() > deadline_s or not alive():
                return found
            time.sleep(SETTLE_INTERVAL_S)

    def start(self) -> None:
        """Begin to poll the gauges. A watch is used once."""
        assert self._thread is None, "an EngineWatch is used for one run"
        self._thread = threading.Thread(target=self._run, name="engine-watch", daemon=True)
        self._thread.start()

    def stop(self) -> GaugeReadings:
        """End the polling; returns what it saw (also in :attr:`gauges`). A second call does nothing more."""
        if self._thread is not None and not self._ended.is_set():
            self._ended.set()
            self._thread.join(TIMEOUT_S + 1)
            self.gauges = self._tally.readings()
        return self.gauges

    def _run(self) -> None:
        tally, whole_path = self._tally, f"{self._target.prefix}/metrics"
        path = f"{self._target.prefix}{_GAUGES_PATH}"
        connection = http.client.HTTPConnection(self._target.host, self._target.port, timeout=TIMEOUT_S)
        tally.began_s = time.perf_counter()
        try:
            while not self._ended.is_set():
                page = _get(connection, path)
                found = Gauges() if page is None else parse_gauges(page)
                if found != Gauges():
                    tally.add(found)
                elif path == whole_path:
                    return  # it has no such page, or no gauges on it
                else:
                    path = whole_path
                    continue
                if page is not None and len(page) > SMALL_PAGE_BYTES:
                    interval_s = WHOLE_PAGE_INTERVAL_S
                else:
                    interval_s = FIRST_INTERVAL_S if tally.count < FIRST_READINGS else INTERVAL_S
                tally.ended_s, tally.cpu_s = time.perf_counter(), time.thread_time()
                self._ended.wait(interval_s)
        finally:
            connection.close()


class _Tally:
    def __init__(self) -> None:
        self.count = self.busy = self.running_sum = 0
        self.began_s = self.ended_s = self.cpu_s = 0.0
        self._usage: list[float] = []
        self._running_max: int | None = None
        self._waiting_max: int | None = None

    def add(self, found: Gauges) -> None:
        self.count += 1
        if found.kv_cache_usage_ratio is not None:
            self._usage = [max([found.kv_cache_usage_ratio, *self._usage])]
        if found.num_requests_running is not None:
            self._running_max = max(found.num_requests_running, self._running_max or 0)
            if found.num_requests_running or found.num_requests_waiting:
                self.busy += 1
                self.running_sum += found.num_requests_running
        if found.num_requests_waiting is not None:
            self._waiting_max = max(found.num_requests_waiting, self._waiting_max or 0)

    def readings(self) -> GaugeReadings:
        took_s = self.ended_s - self.began_s
        return GaugeReadings(
            readings=self.count,
            poll_hz=(self.count - 1) / took_s if self.count > 1 and took_s > 0 else None,
            kv_cache_usage_max_ratio=max(self._usage, default=0.0) or None,
            requests_running_mean=self.running_sum / self.busy if self.busy else None,
            requests_running_max=self._running_max,
            requests_waiting_max=self._waiting_max,
            cpu_s=self.cpu_s,
        )


def _get(connection: http.client.HTTPConnection, path: str) -> bytes | None:
    """A page on a kept connection; None for anything but a 200, with the connection made new next time."""
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        page = response.read()
    except (OSError, http.client.HTTPException):
        connection.close()
        return None
    return page if response.status == 200 else None
