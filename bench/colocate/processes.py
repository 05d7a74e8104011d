"""The processes beside the engines: the router, and a load client for each stream. None outlives the harness."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pickle
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.engine.guard import Guard
from bench.errors import BenchError
from bench.load.monitor import Progress
from bench.load.result import LoadResult
from bench.router.config import RouterConfig

ROOT = Path(__file__).resolve().parents[2]
_START_S, _STOP_S = 30.0, 5.0


def _popen(words: list[str], log: Path, **options: Any) -> subprocess.Popen[bytes]:
    """A Python process of this project in a session of its own: Ctrl-C is for the harness, which ends it in order."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with open(log, "ab") as out:
        return subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.PIPE, stderr=out, start_new_session=True,
            env=os.environ | {"PYTHONPATH": paths}, **options,
        )  # fmt: skip


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it said nothing"


class RouterProcess:
    """`python -m bench.router` in front of the engines. `records` is complete once it was stopped."""

    def __init__(self, config: RouterConfig, folder: Path, guard: Guard) -> None:
        self._folder, self._guard, self._records = folder, guard, folder / "router.jsonl"
        content = {
            "backends": [vars(one) for one in config.backends],
            "rules": [
                {name: value for name, value in vars(rule).items() if value} | {"kind": rule.kind}
                for rule in config.rules
            ],
            "default": config.default, "queue_timeout_s": config.queue_timeout_s, "retry_down_s": config.retry_down_s,
        }  # fmt: skip
        file = folder / "router.yaml"
        file.write_text(json.dumps(content, default=list))  # JSON is YAML
        words = ["-m", "bench.router", str(file), "--port", "0", "--records", str(self._records)]
        self._process = _popen(words, folder / "router.log", stdin=subprocess.DEVNULL)
        guard.watch(self._process.pid)
        self.base_url = self._address()

    def _address(self) -> str:
        assert self._process.stdout is not None
        ready = select.select([self._process.stdout], [], [], _START_S)[0]
        line = self._process.stdout.readline().decode() if ready else ""
        if not line.startswith("router on "):
            self.stop()
            raise BenchError(f"the router did not start: {line.strip() or _tail(self._folder / 'router.log')}")
        return line.split()[2]

    def stats(self) -> dict[str, Any]:
        """What /router/stats says; empty where it does not answer."""
        connection = http.client.HTTPConnection(self.base_url.removeprefix("http://"), timeout=5)
        try:
            connection.request("GET", "/router/stats")
            return json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return {}
        finally:
            connection.close()

    def alive(self) -> bool:
        return self._process.poll() is None

    def records(self) -> Iterator[dict[str, Any]]:
        """One mapping per request that passed, see `bench.router.proxy.Record`."""
        with contextlib.suppress(OSError), open(self._records) as lines:
            for line in lines:
                with contextlib.suppress(ValueError):  # cut off where the router was killed
                    yield json.loads(line)

    def stop(self) -> None:
        """End it in order; what it still carries is cut off."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._guard.forget(self._process.pid)


class StreamClient:
    """One load under way. Started at once, it waits for `go`."""

    def __init__(self, name: str, job: Mapping[str, Any], folder: Path) -> None:
        self.name, self.progress = name, Progress(None, 0, 0, 0, 0.0)
        self.stopped = ""
        self._log, self._result = folder / f"{name}.log", folder / f"{name}.result"
        self._result.unlink(missing_ok=True)
        file = folder / f"{name}.job"
        file.write_bytes(pickle.dumps(dict(job)))
        self._process = _popen(["-m", "bench.colocate.client", str(file), str(self._result)], self._log,
                               stdin=subprocess.PIPE)  # fmt: skip
        self._received = b""

    def await_ready(self) -> None:
        """Wait until it could begin. Raises BenchError."""
        deadline = time.monotonic() + _START_S
        while b"ready\n" not in self._received:
            if not self._read(max(0.0, deadline - time.monotonic())):
                raise BenchError(f"the load client of stream {self.name} did not start: {_tail(self._log)}")
        self._received = self._received.partition(b"ready\n")[2]

    def go(self) -> None:
        """Begin now."""
        self._say("go")

    def stop(self, why: str) -> None:
        """Call the load off; what is in flight ends as aborted, with this sentence."""
        if not self.stopped:
            self.stopped = why
            self._say(f"stop {why}")

    def running(self) -> bool:
        """Whether it still drives; takes its progress in."""
        while self._read(0.0):
            pass
        *lines, self._received = self._received.split(b"\n")
        if lines:
            with contextlib.suppress(ValueError, TypeError):
                self.progress = Progress(**json.loads(lines[-1]))
        return self._process.poll() is None

    def result(self) -> LoadResult:
        """What came of it. Raises BenchError where it ended without a result."""
        if not self._result.exists():
            raise BenchError(f"the load client of stream {self.name} ended without a result: {_tail(self._log)}")
        found: LoadResult = pickle.loads(self._result.read_bytes())
        return found

    def end(self) -> None:
        """Make sure that nothing of it is left."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended already
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def _read(self, timeout_s: float) -> bool:
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        if not select.select([handle], [], [], timeout_s)[0]:
            return False
        received = os.read(handle, 1 << 16)
        self._received += received
        return bool(received)
