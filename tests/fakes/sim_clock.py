"""The simulated server's one timer."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable


class Clock:
    """What is due when, for all streams together: one timer of the loop for the earliest."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0

    def at(self, when_ns: int, what: Callable[[], None]) -> None:
        """Call ``what`` at ``when_ns``, or as soon after as the process runs."""
        self._count += 1
        heapq.heappush(self._due, (when_ns, self._count, what))
        if self._timer is None or when_ns < self._timer_ns:
            self._arm()

    def shift(self, by_ns: int) -> None:
        """All that is not due yet comes so much later."""
        self._due = [(when_ns + by_ns, count, what) for when_ns, count, what in self._due]

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._due:
            self._timer_ns = self._due[0][0]
            wait_s = max(0.0, (self._timer_ns - time.perf_counter_ns()) / 1e9)
            self._timer = self._loop.call_later(wait_s, self._run)

    def _run(self) -> None:
        # What comes due meanwhile waits for the next turn: requests must get in between.
        now_ns = self._timer_ns = time.perf_counter_ns()
        while self._due and self._due[0][0] <= now_ns:
            heapq.heappop(self._due)[2]()
        self._arm()
