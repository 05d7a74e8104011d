"""Ends the engines of a harness that died.

vLLM's engine core does not watch its parent: after `kill -9` of the harness it would hold the device for good.
The guard is a small process of its own that reads from a pipe which only the harness holds open. When the pipe
closes, whatever the reason, every process of the sessions still on its list is killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


def session_members(session_id: int) -> list[int]:
    """PIDs of the live (not zombie) processes in a session, from /proc."""
    members = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as f:
                # The command may hold spaces and brackets: fields count from the last ')'.
                fields = f.read().rsplit(b")", 1)[1].split()
        except (OSError, IndexError):
            continue
        if fields[0] != b"Z" and int(fields[3]) == session_id:
            members.append(int(entry))
    return members


def kill_session(session_id: int, patience_s: float = 5.0) -> list[int]:
    """SIGKILL every process of a session until none is left; returns those left after `patience_s`."""
    deadline = time.monotonic() + patience_s
    while members := session_members(session_id):
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            except PermissionError:
                return members
        if time.monotonic() > deadline:
            return members
        time.sleep(0.02)
    return []


def mapped_segments(pid: int) -> set[str]:
    """Names in /dev/shm that Python's multiprocessing gave and that a process maps."""
    try:
        with open(f"/proc/{pid}/maps") as maps:
            return set(re.findall(r"/dev/shm/(psm_[0-9a-f]+)$", maps.read(), re.MULTILINE))
    except OSError:
        return set()


class Guard:
    """The harness's end of the pipe. One guard serves a whole sweep."""

    def __init__(self) -> None:
        self._watched: dict[int, str] = {}
        self._process = self._start()

    @staticmethod
    def _start() -> subprocess.Popen[bytes]:
        # -S -E: no site packages, so it starts in milliseconds and holds little memory through a long sweep.
        # A session of its own: Ctrl-C at the terminal must reach the harness, not the guard.
        return subprocess.Popen(
            [sys.executable, "-S", "-E", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def watch(self, session_id: int, scratch: Path | None = None) -> None:
        """End this session, and remove its `scratch` folder, should the harness die."""
        self._watched[session_id] = f"watch {session_id} {scratch or ''}"
        self._send(self._watched[session_id])

    def forget(self, session_id: int) -> None:
        """The session was ended in the ordinary way."""
        self._watched.pop(session_id, None)
        self._send(f"forget {session_id}")

    def close(self) -> None:
        """End the guard, and with it every session still watched."""
        if self._process.stdin and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait(timeout=30)

    def _send(self, line: str) -> None:
        try:
            self._write(line)
        except BrokenPipeError:  # the guard was killed: another one takes its place, with all that is watched now
            self.close()
            self._process = self._start()
            for watched in self._watched.values():
                self._write(watched)

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.rstrip().encode() + b"\n")
        self._process.stdin.flush()


def main() -> None:
    """Read `watch SESSION [SCRATCH]` and `forget SESSION` lines until the pipe closes, then clean up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watched: dict[int, str] = {}
    for line in sys.stdin:
        words = line.strip().split(" ", 2)
        if words[0] == "watch":
            watched[int(words[1])] = words[2] if len(words) > 2 else ""
        elif words[0] == "forget":
            watched.pop(int(words[1]), None)
    segments = set().union(*(mapped_segments(pid) for session in watched for pid in session_members(session)))
    for session_id in watched:
        kill_session(session_id)
    # Nobody is left to unlink them, and /dev/shm is memory until the next boot. What another process maps stays.
    for entry in os.listdir("/proc") if segments else ():
        if entry.isdigit():
            segments -= mapped_segments(int(entry))
    for name in segments:
        with contextlib.suppress(OSError):
            os.unlink(f"/dev/shm/{name}")
    for scratch in watched.values():
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
