"""Wait for an engine to be ready, and end it so that nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass

from bench.engine.base import EngineProcess, ExitStatus
from bench.engine.guard import kill_session, session_members
from bench.engine.server import Server

POLL_S = 0.05
"""Readiness is known to within this."""


class StartFailed(Exception):
    """The engine did not become ready. `exit_status` is None where it still runs (a time-out)."""

    def __init__(self, exit_status: ExitStatus | None, timed_out: bool) -> None:
        super().__init__("timed out" if timed_out else f"ended with {exit_status}")
        self.exit_status = exit_status
        self.timed_out = timed_out


@dataclass(frozen=True)
class StopReport:
    """How an engine ended: seconds it took, the strongest signal used, processes that would not go."""

    seconds: float
    stopped_by: str
    survivors: tuple[int, ...]


def wait_ready(process: EngineProcess, server: Server, timeout_s: float) -> float:
    """Seconds until /health answered. Raises `StartFailed`."""
    began = time.monotonic()
    while True:
        status = process.poll()
        if status is not None:
            raise StartFailed(status, timed_out=False)
        if server.healthy():
            return time.monotonic() - began
        if time.monotonic() - began > timeout_s:
            raise StartFailed(None, timed_out=True)
        time.sleep(POLL_S)


def stop(process: EngineProcess, timeout_s: float) -> StopReport:
    """SIGTERM to the API server, which ends its children in order; SIGKILL to the session where that fails."""
    began = time.monotonic()
    stopped_by = "SIGTERM"
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
    # The leader may be dead already and its children still alive: the session is what must become empty.
    while session_members(process.session_id):
        if time.monotonic() - began > timeout_s:
            stopped_by = "SIGKILL"
            survivors = kill_session(process.session_id)
            return StopReport(time.monotonic() - began, stopped_by, tuple(survivors))
        if process.poll() is not None and time.monotonic() - began > 1.0:
            # The API server is gone; what is left of its session has no one to end it in order.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.session_id, signal.SIGTERM)
        time.sleep(0.02)
    process.poll()
    return StopReport(time.monotonic() - began, stopped_by, ())
