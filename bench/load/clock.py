"""Wake the event loop at an exact time.

Event loops round their timers to a millisecond (epoll's and libuv's unit), which at 1,000 requests/s is a whole gap.
Linux has a timer that is a file and fires to some tens of microseconds; where there is none, the loop's own will do,
and the send delay of every request says what it cost.
"""

from __future__ import annotations

import asyncio
import time

from bench.load.timerfile import TimerFile


class Alarm:
    """One waiting at a time. Made on a running event loop; a context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Future[None] | None = None
        self._timer = TimerFile.open()
        if self._timer is not None:
            self._loop.add_reader(self._timer.fd, self._fired)

    def __enter__(self) -> Alarm:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._timer is not None:
            self._loop.remove_reader(self._timer.fd)
            self._timer.close()
            self._timer = None

    async def until(self, when_ns: int) -> None:
        """Return at ``when_ns`` of ``time.perf_counter_ns()``, or after one turn of the loop if that is past."""
        wait_ns = when_ns - time.perf_counter_ns()
        if wait_ns <= 0:
            await asyncio.sleep(0)
        elif self._timer is None:
            await asyncio.sleep(wait_ns / 1e9)
        else:
            self._waiting = self._loop.create_future()
            self._timer.set(when_ns)
            await self._waiting

    def _fired(self) -> None:
        assert self._timer is not None
        self._timer.clear()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
