"""Connections of an open load: opened ahead, used again, never waited for by a sending."""

from __future__ import annotations

import asyncio
import contextlib
import resource

from bench.load.http import Channel
from bench.load.receive import Receiver
from bench.load.wire import Target

OTHER_FILES = 256  # what else this process may have open
SPARE = 8  # idle connections kept ready
AHEAD_MOST = 512
OPEN_TIMEOUT_S = 10.0


def allow_connections(wanted: int) -> int:
    """Raise this process's soft limit on open files towards ``wanted`` connections; returns how many it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if limit > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return max(0, max(limit, soft) - OTHER_FILES)


async def open_all(channels: list[Channel]) -> None:
    """Connect before the clock starts. Whoever fails or is late tries again with its first request."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            await asyncio.gather(*(channel.open() for channel in channels))


class ChannelPool:
    """Hands out channels, the one used last first, so that a quiet load keeps few connections warm.

    ``channels`` are all there are; ``receiver`` reads those made after it was set. A few are kept open in reserve;
    where even those are taken, the request gets a fresh channel and connects as it is sent.
    """

    def __init__(self, target: Target) -> None:
        self.channels: list[Channel] = []
        self.receiver: Receiver | None = None
        self._target = target
        self._idle: list[Channel] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._numbers: dict[int, int] = {}

    async def open_ahead(self, number: int) -> None:
        """Open ``number`` connections now."""
        self._idle = [self.new() for _ in range(min(number, AHEAD_MOST))]
        await open_all(self._idle)

    def take(self) -> Channel:
        """A channel for one request, connected if one was ready."""
        channel = next((c for c in reversed(self._idle) if c.is_open), None)
        if channel is not None:
            self._idle.remove(channel)
        else:
            channel = self._idle.pop() if self._idle else self.new()
        if len(self._idle) + len(self._opening) < SPARE:
            task = asyncio.get_running_loop().create_task(self._open_one())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        return channel

    def give_back(self, channel: Channel) -> None:
        """Return a channel whose request has ended."""
        self._idle.append(channel)

    def number(self, channel: Channel) -> int:
        """Which of the pool's channels it is, from 0."""
        return self._numbers[id(channel)]

    def close(self) -> None:
        """Drop every connection."""
        for task in self._opening:
            task.cancel()
        for channel in self.channels:
            channel.close()

    def new(self) -> Channel:
        """One more channel, not yet connected; it belongs to whoever asked for it."""
        channel = Channel(self._target, self.receiver)
        self._numbers[id(channel)] = len(self.channels)
        self.channels.append(channel)
        return channel

    async def _open_one(self) -> None:
        channel = self.new()
        await channel.open()
        self._idle.append(channel)
