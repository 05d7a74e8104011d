"""The kernel's timer as a file (Linux): readable to the microsecond, where event loops round to milliseconds."""

from __future__ import annotations

import contextlib
import ctypes
import os

_CLOCK_MONOTONIC, _TFD_TIMER_ABSTIME = 1, 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC  # the values of TFD_NONBLOCK and TFD_CLOEXEC on every Linux architecture


class _Times(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns")]


class TimerFile:
    """One timer. Times are ``time.perf_counter_ns()``, which on Linux is CLOCK_MONOTONIC."""

    def __init__(self, fd: int, libc: ctypes.CDLL) -> None:
        self.fd, self._libc = fd, libc

    @classmethod
    def open(cls) -> TimerFile | None:
        """A timer that is not set yet; None where the system has none."""
        libc = ctypes.CDLL(None, use_errno=True)
        create = getattr(libc, "timerfd_create", None)
        fd = create(_CLOCK_MONOTONIC, _FLAGS) if create is not None else -1
        return cls(fd, libc) if fd >= 0 else None

    def set(self, when_ns: int, interval_ns: int = 0) -> None:
        """Fire at ``when_ns``, and then every ``interval_ns`` if that is not 0."""
        second = 1_000_000_000
        times = _Times(interval_ns // second, interval_ns % second, when_ns // second, when_ns % second)
        self._libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, ctypes.byref(times), None)

    def clear(self) -> None:
        """Make it unreadable until it fires again."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 8)

    def close(self) -> None:
        os.close(self.fd)
