"""Work that runs beside the report's own Python, in processes of their own: drawing, and the calculator's tables.

Drawing holds one lock in a process, whatever the number of threads, so a second core needs a second process.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Final

MOST: Final = 4
"""Processes, at most; each takes some 150 MB and a second to start."""


class Job:
    """A call that is under way in another process, or is made here when its result is asked for."""

    def __init__(self, pool: ProcessPoolExecutor | None, function: Callable[..., Any], *args: Any) -> None:
        self._call = (function, args)
        self._future: Future[Any] | None = None
        if pool is not None:
            try:
                self._future = pool.submit(function, *args)
            except (BrokenProcessPool, OSError):  # no more processes are to be had: it is made here
                self._future = None

    def result(self) -> Any:
        """What the call returned; raises what it raised."""
        if self._future is not None:
            try:
                return self._future.result()
            except BrokenProcessPool:  # a process was ended, as for want of memory
                self._future = None
        function, args = self._call
        return function(*args)


class Workers:
    """`start` makes a job in a process beside this one; functions and arguments must be ones that pickle takes."""

    def __init__(self, count: int | None = None) -> None:
        wanted = min(os.cpu_count() or 1, MOST) if count is None else count
        # Not forked: the libraries that read files have threads of their own by then.
        self._pool = ProcessPoolExecutor(wanted, multiprocessing.get_context("spawn")) if wanted > 1 else None

    def start(self, function: Callable[..., Any], *args: Any) -> Job:
        return Job(self._pool, function, *args)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=kind is not None)
