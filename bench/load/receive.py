"""Take bytes in with the time at which the kernel had them (Linux).

An event loop stamps what it reads when it comes to it: behind whatever else it was doing, and later still where it
had no core. The kernel stamps every packet as it arrives and hands the stamp out with the bytes (``SO_TIMESTAMPNS``,
socket(7)), so neither moves a latency. And since being late costs no accuracy any more, a loop that many streams keep
busy may look once a millisecond and take in what has gathered, instead of waking up for every token.

What one reading takes in has one stamp, that of its last packet: where a loop is later than the gap between two tokens
of one stream, they come as one.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; the module `socket` does not name it before Python 3.14
_ARCHITECTURES = ("x86_64", "aarch64", "riscv64", "ppc64le", "s390x")  # that have it by that number, 64 bits wide
_TIMESPEC = struct.Struct("@qq")
_unpack = _TIMESPEC.unpack
_ANCILLARY = socket.CMSG_SPACE(_TIMESPEC.size) if hasattr(socket, "CMSG_SPACE") else 0

BUFFER_BYTES = 1 << 16
AT_ONCE = 1024
"""Sockets of one turn: between turns the loop does what else is due."""

HOLD_S = 0.001
"""How long a busy receiver leaves sockets alone: a request that follows another goes out so much later at most."""
BUSY_WINDOW_NS, BUSY_READINGS = 5_000_000, 20
"""Readings in such a window from which it is busy: 4,000 a second. Below, every wake-up is worth its cost."""

FIRST_PAIRS = 16
"""Readings of both clocks to begin with, to know how close together they can be."""
TRIES = 4
SLACK_NS = 1_000
"""What a pair may be wider, and twice as wide at most, than the narrowest: half of it is the most it is wrong by."""
STEP_LIMIT_NS = 1_000_000
"""The clock of the stamps moved against the other by more: it was set, and stamps of before are of another time."""


class Reader(Protocol):
    """Who takes the bytes of one socket. Each call may end the connection, and with it the watch."""

    def arrived(self, data: bytes, at_ns: int) -> None:
        """``data`` was there at ``at_ns`` of ``time.perf_counter_ns()``."""

    def ended(self, error: Exception | None) -> None:
        """The other side closed the connection, or reset it, or this reader raised ``error``. It is watched no more."""


_Watched = tuple[Callable[..., Any], Reader, socket.socket]


class Receiver:
    """Reads sockets that are given to it, on the running event loop.

    ``stamped`` and ``unstamped`` count readings with and without a time of the kernel.
    """

    def __init__(self) -> None:
        self.stamped = self.unstamped = 0
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._readers: dict[int, _Watched] = {}
        self._offset_ns: int | None = None  # from the clock of the stamps to perf_counter_ns
        self._narrowest_ns = 1 << 62
        self._holding: asyncio.TimerHandle | None = None
        self._busy, self._since_ns, self._recent, self._unstamped_before = False, 0, 0, 0
        for _ in range(FIRST_PAIRS):
            self._offset()
        self._loop.add_reader(self._epoll.fileno(), self._ready)

    @classmethod
    def open(cls) -> Receiver | None:
        """One for the running loop; None where the system has no such stamps."""
        known = sys.platform == "linux" and platform.machine() in _ARCHITECTURES and sys.maxsize > 1 << 32
        return cls() if known else None

    @property
    def stamped_share(self) -> float | None:
        """Part of all readings whose time is the kernel's; None before the first."""
        readings = self.stamped + self.unstamped
        return self.stamped / readings if readings else None

    def watch(self, fd: int, reader: Reader) -> None:
        """Read a connected TCP socket for ``reader`` until :meth:`forget`. Nobody else may; its owner closes it."""
        # No family or type is looked up: recvmsg needs neither.
        borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=fd)
        with contextlib.suppress(OSError):  # a sandbox may refuse: its readings count as unstamped
            borrowed.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._readers[fd] = (borrowed.recvmsg, reader, borrowed)
        self._epoll.register(fd, select.EPOLLIN)

    def forget(self, fd: int) -> None:
        """Read it no more. A second call does nothing."""
        watched = self._readers.pop(fd, None)
        if watched is not None:
            with contextlib.suppress(OSError):  # its owner closed it first
                self._epoll.unregister(fd)
            watched[2].detach()

    def close(self) -> None:
        """Read nothing more. A second call does nothing."""
        for fd in list(self._readers):
            self.forget(fd)
        if self._holding is not None:
            self._holding.cancel()
            self._holding = None
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _ready(self) -> None:
        self._read()
        if self._busy and not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._holding = self._loop.call_later(HOLD_S, self._held)

    def _held(self) -> None:
        self._holding = None
        try:
            self._read()
        finally:  # whatever a reader did, the others are waiting
            if self._epoll.closed:
                pass
            elif self._busy:
                self._holding = self._loop.call_later(HOLD_S, self._held)
            else:
                self._loop.add_reader(self._epoll.fileno(), self._ready)

    def drain(self, fd: int) -> None:
        """Read now what has come for one socket, as before it is closed by its owner."""
        while self._take(((fd, 0),), time.perf_counter_ns()):
            pass

    def _read(self) -> None:
        """One reading of every socket that has something."""
        events, now_ns = self._epoll.poll(0, AT_ONCE), time.perf_counter_ns()
        self._take(events, now_ns)
        self._count(len(events), now_ns)

    def _take(self, events: Iterable[tuple[int, int]], now_ns: int) -> int:
        """Read each of these sockets once; returns how many had bytes. ``now_ns``: before any of them was asked.

        This is what a token costs besides the kernel's part, hence one function, and local names.
        """
        offset_ns, find = self._offset(), self._readers.get
        taken = stamped = 0
        second, began_ns = -1, 0  # of the stamps, and on our clock; almost all of a turn are of one
        for fd, _ in events:
            watched = find(fd)
            if watched is None:  # ended by what an earlier one brought
                continue
            receive, reader, _ = watched
            try:
                data, ancillary, _, _ = receive(BUFFER_BYTES, _ANCILLARY)
            except BlockingIOError:
                continue
            except OSError as error:
                self._end(fd, reader, error)
                continue
            if not data:
                self._end(fd, reader, None)
                continue
            taken += 1
            if ancillary and offset_ns is not None:
                stamped += 1
                seconds, rest_ns = _unpack(ancillary[0][2])
                if seconds != second:
                    second, began_ns = seconds, seconds * 1_000_000_000 + offset_ns
                at_ns = began_ns + rest_ns
                if at_ns > now_ns:  # it came while this turn was under way, or the clocks were read apart
                    at_ns = min(at_ns, time.perf_counter_ns())
            else:
                at_ns = time.perf_counter_ns()
            try:
                reader.arrived(data, at_ns)
            except Exception as error:  # a defect of one reader must not stop the others
                self._loop.call_exception_handler({"message": "A reader of a load failed", "exception": error})
                self._end(fd, reader, error)
        self.stamped += stamped
        self.unstamped += taken - stamped
        return taken

    def _end(self, fd: int, reader: Reader, error: Exception | None) -> None:
        self.forget(fd)
        reader.ended(error)

    def _offset(self) -> int | None:
        """From the clock of the stamps to ours; None where the stamps' was set since the last time.

        Only a pair of readings about as close together as any before is taken: between those of a wider one the thread
        had lost its core, and the offset is wrong by up to half of that.
        """
        last_ns = self._offset_ns
        for _ in range(TRIES):  # the first after a sleep often finds cold caches
            before_ns, stamp_ns, after_ns = time.perf_counter_ns(), time.time_ns(), time.perf_counter_ns()
            width_ns = after_ns - before_ns
            if width_ns <= 2 * self._narrowest_ns + SLACK_NS:
                self._narrowest_ns = min(self._narrowest_ns, width_ns)
                self._offset_ns = offset_ns = (before_ns + after_ns) // 2 - stamp_ns
                return offset_ns if last_ns is None or abs(offset_ns - last_ns) < STEP_LIMIT_NS else None
        return last_ns

    def _count(self, readings: int, now_ns: int) -> None:
        """Decides whether to look only now and then. Never without the kernel's stamps: the times would be late."""
        self._recent += readings
        if now_ns - self._since_ns >= BUSY_WINDOW_NS:
            busy = self._recent >= BUSY_READINGS and now_ns - self._since_ns < 2 * BUSY_WINDOW_NS
            self._busy = busy and self.unstamped == self._unstamped_before
            self._since_ns, self._recent, self._unstamped_before = now_ns, 0, self.unstamped
