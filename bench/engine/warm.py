"""The warm launcher: a parent process imports vLLM once and forks each engine, so a start skips the imports."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from bench.engine.base import EngineProcess, ExitStatus, LaunchRefused, LaunchRequest, merged_env


class WarmLauncher:
    """Forks engines from a warm parent; raises `LaunchRefused` where a fork would not be safe.

    `env` is what the parent imports vLLM under: settings that libraries read once, such as OMP_NUM_THREADS, must be
    in it, since a forked engine cannot change them any more.
    """

    name = "warm"

    def __init__(self, device_kind: str, env: dict[str, str | None], log_path: Path, ready_timeout_s: float = 180.0):
        self._env = env
        self._exits: dict[int, ExitStatus] = {}
        self._buffer = b""
        self.import_s: float | None = None
        """Seconds the parent took to import vLLM, known once it has answered."""
        ours, theirs = socket.socketpair()
        with open(log_path, "ab", buffering=0) as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.engine.warm_parent", str(theirs.fileno()), device_kind],
                env=merged_env(env),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        theirs.close()
        self._socket = ours
        self._log_path = log_path
        self._ready_deadline = time.monotonic() + ready_timeout_s
        self._ready = False

    @property
    def session_id(self) -> int:
        """The parent's own session, for the guard."""
        return self._process.pid

    def launch(self, request: LaunchRequest) -> EngineProcess:
        """Fork an engine; waits for the parent's imports on the first call. See `LaunchRequest`."""
        self.await_ready()
        message = {
            "op": "launch",
            "argv": list(request.argv),
            # Only what differs from the parent's own environment: the rest it has already.
            "env": {k: v for k, v in request.env.items() if self._env.get(k, object()) != v},
            "log": str(request.log_path),
            "cwd": str(request.cwd),
        }
        self._send(message)
        while True:
            event = self._receive(timeout_s=30.0)
            if event is None:
                raise LaunchRefused("the warm parent did not answer within 30 s")
            if event["event"] == "started":
                pid = event["pid"]
                return EngineProcess(pid, pid, self.name, partial(self._poll, pid))
            if event["event"] == "refused":
                raise LaunchRefused(event["reason"])
            self._note(event)

    def close(self) -> None:
        """End the parent and the engines it still holds."""
        self._socket.close()
        # Its engines are ended by now, or the guard ends them; tearing vLLM's imports down in order takes seconds.
        self._process.kill()
        self._process.wait()

    def await_ready(self) -> None:
        """Wait for the parent's imports. Raises `LaunchRefused` where they fail or leave it unsafe to fork."""
        while not self._ready:
            event = self._receive(timeout_s=max(0.0, self._ready_deadline - time.monotonic()))
            if event is None:
                raise LaunchRefused(f"the warm parent was not ready in time; see {self._log_path}")
            if event["event"] == "ready":
                self._ready = True
                self.import_s = event["import_s"]
                if event["unsafe"]:
                    raise LaunchRefused(event["unsafe"])

    def _poll(self, pid: int) -> ExitStatus | None:
        try:
            while event := self._receive(timeout_s=0.0):
                self._note(event)
        except LaunchRefused:  # the parent is gone, and nobody can tell any more how its children end
            if not Path(f"/proc/{pid}").exists():
                return self._exits.setdefault(pid, ExitStatus(None, 9))
        return self._exits.get(pid)

    def _note(self, event: dict) -> None:
        if event["event"] == "exited":
            self._exits[event["pid"]] = ExitStatus.from_returncode(event["returncode"])

    def _send(self, message: dict) -> None:
        try:
            self._socket.settimeout(30.0)
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise LaunchRefused(f"the warm parent is gone ({error}); see {self._log_path}") from error

    def _receive(self, timeout_s: float) -> dict | None:
        """The next event, or None when none came in time."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            # A zero time-out would make the socket non-blocking and raise another exception for "nothing there".
            self._socket.settimeout(max(0.0005, deadline - time.monotonic()))
            try:
                chunk = self._socket.recv(1 << 16)
            except TimeoutError:
                return None
            except OSError as error:
                raise LaunchRefused(f"the warm parent is gone ({error}); see {self._log_path}") from error
            if not chunk:
                raise LaunchRefused(f"the warm parent ended; see {self._log_path}")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)
