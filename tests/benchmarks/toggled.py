"""Something switched on and off within one load, a quarter of a second at a time.

On a machine that others share, the speed of one engine wanders by 15 % within a minute, and runs that are compared one
after the other scatter by 8 %, however long they are. Neighbouring quarters of a second share most of that. So the load
goes on, long answers on the same connections, and what is looked at is switched in between; a window is a number of
tokens, timed, and windows are compared within groups of four, whose order (on off off on, off on on off, ...) takes out
every drift that is linear in time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bench.errors import BenchError
from bench.load import engine_watch
from bench.load.receive import Receiver
from tests.benchmarks.lean import SILENCE_S
from tests.benchmarks.paired import geometric_mean

GROUP = 4


class Windows:
    """Counts tokens of one load, and switches and times at the edges.

    tokens: of a window. skip: tokens before the first, the prompts and the slots getting into step. last: no window
    ends after so many, and what is switched stays on. switch: called with True for on; it is on to begin with.
    """

    def __init__(self, tokens: int, skip: int, last: int, switch: Callable[[bool], object] = lambda on: None) -> None:
        self.on = True
        self._tokens, self._last, self._switch = tokens, last, switch
        self._count, self._edge = 0, skip
        self._began: tuple[int, float] | None = None
        self._windows: list[tuple[bool, float]] = []

    def took(self, tokens: int) -> None:
        """So many more have come."""
        self._count += tokens
        if self._count < self._edge:
            return
        now_s = time.perf_counter()
        if self._began is not None:
            count, began_s = self._began
            self._windows.append((self.on, (self._count - count) / (now_s - began_s)))
        self._edge = self._count + self._tokens
        self.on = self._edge > self._last or _is_on(len(self._windows))
        self._switch(self.on)
        if self._edge > self._last:
            self._edge, self._began = 1 << 62, None
        else:
            self._began = (self._count, time.perf_counter())

    def pairs(self) -> list[tuple[float, float]]:
        """Tokens a second with it on and off, of each whole group."""
        found = []
        for at in range(0, len(self._windows) - GROUP + 1, GROUP):
            group = self._windows[at : at + GROUP]
            on, off = ([rate for state, rate in group if state is wanted] for wanted in (True, False))
            found.append((geometric_mean(on), geometric_mean(off)))
        return found

    @property
    def on_s(self) -> float:
        """Seconds of all windows with it on."""
        return sum(self._tokens / rate for state, rate in self._windows if state)


def _is_on(window: int) -> bool:
    """on off off on, and the reverse in every second group."""
    group, place = divmod(window, GROUP)
    return (place in (0, 3)) == (group % 2 == 0)


@contextlib.contextmanager
def our_reader_switched(windows: Windows) -> Iterator[None]:
    """Within, our client reads only while `windows` are on; while off, its sockets are read as the leanest client does.

    It is the whole client that rests meanwhile: its loop waits in here, and its thread that asks for the engine's
    gauges waits too. It loses the tokens of these windows and takes the next chunk, whose running count includes them,
    for one of many tokens.
    """
    take, get = Receiver._take, engine_watch._get
    reading, buffer = threading.Event(), bytearray(1 << 18)
    reading.set()

    def switched(receiver: Receiver, events: Iterable[tuple[int, int]], now_ns: int) -> int:
        taken = take(receiver, events, now_ns)
        windows.took(taken)
        if not windows.on:
            reading.clear()
            try:
                _read_lean(receiver, buffer, windows)
            finally:
                reading.set()
        return taken

    def asked(*words: Any) -> bytes | None:
        reading.wait()
        return get(*words)

    Receiver._take, engine_watch._get = switched, asked  # type: ignore[method-assign]
    try:
        yield
    finally:
        Receiver._take, engine_watch._get = take, get  # type: ignore[method-assign]


def _read_lean(receiver: Receiver, buffer: bytearray, windows: Windows) -> None:
    while not windows.on:
        events = receiver._epoll.poll(SILENCE_S)
        if not events:
            windows.on = True
            raise BenchError(f"no byte from the engine for {SILENCE_S:.0f} s")
        for fd, _ in events:
            receiver._readers[fd][2].recv_into(buffer)
        windows.took(len(events))
