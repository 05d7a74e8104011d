"""Picks the launcher of a request, and falls back to an ordinary start where a warm one is refused."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from bench.engine.base import EngineProcess, LaunchRefused, LaunchRequest
from bench.engine.command import MARK, OWNER, shared_env
from bench.engine.guard import Guard
from bench.engine.spawn import SpawnLauncher
from bench.engine.warm import WarmLauncher
from bench.request import Request


class Launchers:
    """The launchers of one sweep. A warm parent is started on first use and kept."""

    def __init__(self, log_dir: Path, guard: Guard) -> None:
        self._log_dir = log_dir
        self._guard = guard
        self._spawn = SpawnLauncher()
        self._warm: dict[str, WarmLauncher] = {}
        self._refused: dict[str, str] = {}

    def prepare(self, request: Request) -> None:
        """Have a warm parent ready before the clock of a start runs; a refusal shows again at the launch."""
        if request.launcher == "warm":
            with contextlib.suppress(LaunchRefused):
                self._warm_parent(request).await_ready()

    def launch(self, request: Request, launch: LaunchRequest) -> tuple[EngineProcess, str | None]:
        """Start an engine; returns it and, where the requested launcher was not used, the reason."""
        if request.launcher == "spawn":
            return self._spawn.launch(launch), None
        try:
            return self._warm_parent(request).launch(launch), None
        except LaunchRefused as reason:
            # A parent that refused once would refuse again, after another wait.
            key = self._key(request)
            self._refused[key] = str(reason)
            self._end_parent(key)
            return self._spawn.launch(launch), str(reason)

    def close(self) -> None:
        """End the warm parents."""
        for key in list(self._warm):
            self._end_parent(key)

    def _warm_parent(self, request: Request) -> WarmLauncher:
        key = self._key(request)
        if key in self._refused:
            raise LaunchRefused(self._refused[key])
        if key not in self._warm:
            # The mark lets a later sweep recognise forked engines, whose own environment the kernel does not show.
            marked = self._env(request) | {MARK: "warm-parent", OWNER: str(os.getpid())}
            self._warm[key] = WarmLauncher(request.device_kind, marked, self._log_dir / "warm-parent.log")
            self._guard.watch(self._warm[key].session_id)
        return self._warm[key]

    def _env(self, request: Request) -> dict[str, str | None]:
        return shared_env(request) | request.cfg.engine.env

    def _key(self, request: Request) -> str:
        """What the parent imported vLLM under cannot be changed for one engine: another environment, another parent."""
        return repr(sorted(self._env(request).items(), key=str))

    def _end_parent(self, key: str) -> None:
        parent = self._warm.pop(key, None)
        if parent is not None:
            parent.close()
            self._guard.forget(parent.session_id)
