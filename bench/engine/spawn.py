"""The ordinary launcher: one `vllm serve` process, as a user would start it."""

from __future__ import annotations

import subprocess
import sys

from bench.engine.base import EngineProcess, ExitStatus, LaunchRequest, merged_env


class SpawnLauncher:
    """Starts each engine as a new interpreter."""

    name = "spawn"

    def launch(self, request: LaunchRequest) -> EngineProcess:
        """Start `vllm serve`; see `LaunchRequest`."""
        with open(request.log_path, "ab", buffering=0) as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "vllm.entrypoints.cli.main", *request.argv],
                env=merged_env(request.env),
                cwd=request.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

        def poll() -> ExitStatus | None:
            code = process.poll()
            return None if code is None else ExitStatus.from_returncode(code)

        return EngineProcess(process.pid, process.pid, self.name, poll)

    def close(self) -> None:
        """Nothing outlives an engine."""
