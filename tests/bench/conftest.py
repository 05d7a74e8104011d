"""Runs the command line as a user does, in a process of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def bench():
    """`bench("sweep=cpu", ...)` -> CompletedProcess with text output."""

    def run(*words: str, timeout_s: float = 400, wait: bool = True, **env: str) -> subprocess.CompletedProcess:
        if wait:
            _wait_for_the_device()
        return subprocess.run(
            [sys.executable, "-m", "bench", *words], cwd=ROOT, env=os.environ | env, capture_output=True, text=True,
            timeout=timeout_s,
        )  # fmt: skip

    return run


def _wait_for_the_device(patience_s: float = 900) -> None:
    """A sweep that a person runs beside the tests holds the device; the tests wait for it, and fail no test by it."""
    from bench.engine.gate import DeviceBusy, device_lock

    deadline = time.monotonic() + patience_s
    while True:
        try:
            with device_lock("cpu"):
                return
        except DeviceBusy:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
