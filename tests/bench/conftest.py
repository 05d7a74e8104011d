"""Runs the command line as a user does, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def bench():
    """`bench("sweep=cpu", ...)` -> CompletedProcess with text output."""

    def run(*words: str, timeout_s: float = 400, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "bench", *words], cwd=ROOT, env=os.environ | env, capture_output=True, text=True,
            timeout=timeout_s,
        )  # fmt: skip

    return run
