"""One engine behind the router: how many requests it holds, who waits for it, whether it answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator

from bench.router.config import BackendConfig

OUTCOMES = (
    "ok",  # forwarded whole, status below 400
    "client_error",  # the engine answered 4xx
    "server_error",  # the engine answered 5xx
    "unreachable",  # no connection to the engine
    "broken_stream",  # the engine went away while it answered
    "client_gone",  # the client went away
    "queue_full",  # refused here: 429
    "queue_timeout",  # waited here for too long: 503
)


class Refused(Exception):
    """No slot for this request: `queue_full` or `queue_timeout`."""

    def __init__(self, outcome: str) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class Backend:
    """Counts are of this router's life; `alive` turns false when a connection fails, and true when one works again."""

    def __init__(self, config: BackendConfig, queue_timeout_s: float) -> None:
        self.config = config
        self.name = config.name
        self.url = config.url.rstrip("/").removesuffix("/v1").rstrip("/")
        self.alive = True
        self.in_flight = self.peak_in_flight = self.peak_queued = 0
        self.outcomes: Counter[str] = Counter()
        self.output_bytes = 0
        self._queue_timeout_s = queue_timeout_s
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @property
    def load(self) -> int:
        """Requests under way or waiting."""
        return self.in_flight + self.queued

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold one of the engine's slots, first come first served. Raises Refused."""
        await self._enter()
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self) -> None:
        if self.in_flight < self.config.max_in_flight:
            self.in_flight += 1
            return
        if self.queued >= self.config.max_queued:
            raise Refused("queue_full")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self.peak_queued = max(self.peak_queued, self.queued)
        try:
            await asyncio.wait_for(asyncio.shield(turn), self._queue_timeout_s)
        except BaseException as error:
            if turn.done():  # the slot was handed over in the same instant: it must not be lost
                self._leave()
            else:
                turn.cancel()
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise Refused("queue_timeout") from None
            raise

    def _leave(self) -> None:
        """Give the slot to who waited longest, or free it."""
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self.in_flight -= 1

    def stats(self) -> dict[str, object]:
        return {
            "url": self.config.url, "model": self.config.model, "alive": self.alive, "in_flight": self.in_flight,
            "queued": self.queued, "peak_in_flight": self.peak_in_flight, "peak_queued": self.peak_queued,
            "output_bytes": self.output_bytes,
            "outcomes": {name: self.outcomes.get(name, 0) for name in OUTCOMES},
        }  # fmt: skip
