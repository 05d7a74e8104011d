"""The one interface behind which an engine is launched: a request goes in, a process comes out."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class LaunchRequest:
    """Everything one `vllm serve` process gets.

    `argv`: the words after `vllm`. `env`: changes to the harness's own environment, None removes a variable.
    `log_path`: receives stdout and stderr. `cwd`: a folder of the engine's own.
    """

    argv: tuple[str, ...]
    env: dict[str, str | None]
    log_path: Path
    cwd: Path


@dataclass(frozen=True)
class ExitStatus:
    """How a process ended: `code` for an exit, `signal` for a kill; the other one is None."""

    code: int | None
    signal: int | None

    @classmethod
    def from_returncode(cls, returncode: int) -> ExitStatus:
        """From `subprocess`'s convention, negative for a signal."""
        return cls(None, -returncode) if returncode < 0 else cls(returncode, None)

    def __str__(self) -> str:
        if self.signal is None:
            return f"exit code {self.code}"
        try:
            return signal.Signals(self.signal).name
        except ValueError:
            return f"signal {self.signal}"


@dataclass
class EngineProcess:
    """A launched engine: the API server, leader of a session of its own that all its processes share."""

    pid: int
    session_id: int
    launcher: str
    poll: Callable[[], ExitStatus | None]
    """How it ended, or None while it runs."""


class Launcher(Protocol):
    """Starts engines one way."""

    name: str

    def launch(self, request: LaunchRequest) -> EngineProcess:
        """Start an engine; returns at once. Raises `LaunchRefused` where this way is not safe now."""

    def close(self) -> None:
        """End what the launcher itself keeps running."""


class LaunchRefused(Exception):
    """A launcher will not start this engine now; the sentence says why. Another launcher may."""


def merged_env(changes: dict[str, str | None], base: dict[str, str] | None = None) -> dict[str, str]:
    """`base` (by default this process's environment) with `changes` made."""
    env = dict(os.environ if base is None else base)
    for key, value in changes.items():
        if value is None:
            env.pop(key, None)
        else:
            env[key] = value
    return env
