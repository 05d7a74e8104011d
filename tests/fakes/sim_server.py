"""A completions server whose delays are known exactly: real HTTP, real event streams, no model.

It answers ``POST /v1/completions`` the way vLLM does and writes down, for every request, when it really sent
each chunk. Those times, not the nominal delays, are the truth to hold a client against: the machine may be
busy, and both clocks are ``time.perf_counter_ns()``, which on Linux is one clock for all processes.

From a test::

    with SimServer(ttft_s=0.05, itl_s=0.01, faults={3: {"drop": 5}}) as sim:
        ...  # drive sim.base_url
        truth = sim.truth()

By hand: ``python -m tests.fakes.sim_server '{"port": 8000, "truth_path": "truth.jsonl", "itl_s": 0.02}'``. It
prints its port and runs until SIGTERM or until its standard input closes, so that it never outlives a test.

``faults`` changes single requests, ``behaviour`` all of them; both are made of the keys of
:class:`tests.fakes.sim_behaviour.Behaviour`. Requests are numbered from 0 in the order of their arrival.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

from tests.fakes.sim_behaviour import Settings
from tests.fakes.sim_stream import Server

_ROOT = Path(__file__).resolve().parents[2]


class SimServer:
    """Runs the server in a process of its own. Options: those of :class:`Settings` and :class:`Behaviour`."""

    def __init__(self, **options: Any) -> None:
        Settings.of(**options)  # a wrong option shows here, not in the child
        self._options = options
        self._folder = tempfile.TemporaryDirectory(prefix="sim-")
        self._truth = Path(self._folder.name) / "truth.jsonl"
        self._process: subprocess.Popen[str] | None = None
        self.base_url = ""

    def __enter__(self) -> SimServer:
        options = json.dumps({**self._options, "truth_path": str(self._truth)})
        command = [sys.executable, "-m", "tests.fakes.sim_server", options]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT
        )
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        if not port:
            raise RuntimeError(f"The simulated server did not start; exit code {self._process.wait()}.")
        self.base_url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill(signal.SIGTERM)
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the process and wait for it; a second call does nothing."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(how)
        with contextlib.suppress(OSError):
            process.communicate(timeout=10)

    def truth(self) -> list[dict[str, Any]]:
        """What the server did, by request number. Its records of finished requests are complete at once."""
        return sorted(self._lines(), key=lambda line: line["number"])

    def _lines(self) -> Iterator[dict[str, Any]]:
        if self._truth.exists():
            for line in self._truth.read_text().splitlines():
                yield json.loads(line)


def free_port() -> int:
    """A port of this machine that nothing listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def main(options: str) -> None:
    """Serve until told to stop. ``options`` is a JSON object."""
    settings = Settings.of(**json.loads(options))
    with contextlib.ExitStack() as stack:
        truth = None
        if settings.truth_path:
            truth = stack.enter_context(open(settings.truth_path, "a", buffering=1))
        # The loop only reads and keeps time: writes do not wait for the end of its turn, as uvloop's own would.
        uvloop.run(Server(settings, truth).serve())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "{}")
