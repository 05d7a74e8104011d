"""Runs a tool that may start engines of its own, and leaves none of them behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

from bench.engine.base import merged_env
from bench.engine.command import MARK, OWNER, shared_env
from bench.engine.guard import kill_session
from bench.engine.shared_memory import remove_leaked_shared_memory, shared_memory_names
from bench.errors import BenchError
from bench.request import Request
from bench.telemetry.procfs import all_stats, read_bytes, tree_pids
from tests.benchmarks.engines import require_clean

WATCH_S = 2.0
"""How often what a running tool has started is looked up."""
GRACE_S = 20.0
"""How long an interrupted tool may take to end its own engines."""

Known = tuple[int, int]
"""A process: its number, and when it began in ticks since boot."""


def run_tool(words: list[str], request: Request, scratch: Path, log: Path, timeout_s: float) -> float:
    """Run a command that may start engines of its own, to its end; returns its wall seconds.

    It gets the environment that the harness gives its engines (threads, offline). Whatever it left running is ended
    after the clock has stopped. Raises `BenchError` with the end of its output where it fails.
    """
    require_clean(request)
    mark = f"benchmark-{uuid.uuid4().hex[:12]}"
    env = shared_env(request) | request.cfg.engine.env
    env |= {MARK: mark, OWNER: str(os.getpid()), "TMPDIR": str(scratch), "VLLM_RPC_BASE_PATH": str(scratch)}
    segments = shared_memory_names()
    seen: set[Known] = set()
    began = time.monotonic()
    with open(log, "ab") as out:
        process = subprocess.Popen(
            words, cwd=scratch, env=merged_env(env), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
    try:
        while (code := _wait(process, WATCH_S)) is None:
            seen |= _below(process.pid)
            if time.monotonic() - began > timeout_s:
                raise BenchError(f"{' '.join(words[:4])} ...: not finished within {timeout_s:.0f} s; raise --timeout")
        wall_s = time.monotonic() - began
    finally:
        _end(process, seen, mark)
        remove_leaked_shared_memory(segments)
    if code:
        lines = log.read_text(errors="replace").strip().splitlines()[-8:]
        raise BenchError(f"{' '.join(words[:4])} ... ended with {code}; the end of its output:\n" + "\n".join(lines))
    return wall_s


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _below(root_pid: int) -> set[Known]:
    """A process and its descendants: an engine stays what it was after its parent has gone."""
    stats = all_stats()
    return {(pid, stats[pid].start_ticks) for pid in tree_pids(root_pid, stats=stats)}


def _end(process: subprocess.Popen[bytes], seen: set[Known], mark: str) -> None:
    """End a tool that still runs, in order if it will, and then whatever of it is left.

    Left is what was seen below it or carries the mark that its children inherit (vLLM's workers overwrite theirs, so
    the mark alone would miss them), and the rest of their sessions. A session is only taken from a process that lives
    and is known by its start time too: numbers of processes that have ended are soon given to others.
    """
    if process.poll() is None:
        seen = seen | _below(process.pid)
        process.terminate()
        _wait(process, GRACE_S)
    stats = all_stats()
    sessions = {
        stat.session_id
        for pid, stat in stats.items()
        if not stat.is_dead
        and ((pid, stat.start_ticks) in seen or mark.encode() in (read_bytes(f"/proc/{pid}/environ") or b""))
    }
    for session_id in sessions - {stats[os.getpid()].session_id}:
        if left := kill_session(session_id):
            print(f"still running: {', '.join(map(str, left))}", file=sys.stderr)
    process.wait()
