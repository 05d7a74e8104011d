"""Carries a sweep through: what is recorded already, what to start, what to say at the end."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console

from bench import environment
from bench.engine.gate import device_lock, end_orphans
from bench.engine.guard import Guard
from bench.engine.launchers import Launchers
from bench.measure import measure
from bench.progress import Progress
from bench.record.store import Recorded, ResultSet, StoreError
from bench.request import Request
from bench.summary import best_speed, figures, peak_bytes, print_summary

ROOT = Path(__file__).resolve().parent.parent

# Causes that lie in the moment, not in the point: worth another try without being asked.
TRANSIENT = frozenset({"device_not_clean", "port_in_use", "insufficient_free_memory", "interrupted", "harness_error"})


class Runner:
    """One process's part of a sweep. A Hydra launcher may run several in as many processes."""

    _current: ClassVar[Runner | None] = None

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._guard: Guard | None = None
        self._launchers: Launchers | None = None
        self._environments: dict[str, dict[str, Any]] = {}
        self._progress: Progress | None = None
        self._sets: dict[Path, ResultSet] = {}
        self._statuses: list[str] = []
        self._broken: StoreError | None = None
        self._planned_only = False
        self._began = time.monotonic()

    @classmethod
    def current(cls) -> Runner:
        """This process's runner; a process that some launcher started gets one of its own."""
        if cls._current is None:
            import atexit

            runner = cls().__enter__()
            atexit.register(runner.__exit__)
        assert cls._current is not None
        return cls._current

    def __enter__(self) -> Runner:
        Runner._current = self
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.close()
        self._stack.close()
        Runner._current = None

    # -- before ------------------------------------------------------------------------------------------------

    def plan(self, requests: list[Request]) -> list[Request]:
        """The requests that still need an engine start, in order; announces what will happen."""
        done: dict[Path, set[tuple[str, int]]] = {}
        tried: set[tuple[Path, str, int]] = set()
        todo, again = [], 0
        for request in requests:
            results = self._results(request)
            if results.root not in done:
                here = self._environment(request)["environment_id"]
                rows = [row for row in results.recorded() if row.environment_id == here]
                done[results.root] = {(r.point_id, r.repeat) for r in rows if _settled(r, request.cfg.rerun)}
                tried |= {(results.root, r.point_id, r.repeat) for r in rows if r.status == "failed"}
            if (request.point_id, request.cfg.repeat) not in done[results.root]:
                todo.append(request)
                again += (results.root, request.point_id, request.cfg.repeat) in tried
        names = sorted({request.cfg.set for request in requests})
        title = f"{requests[0].cfg.sweep.name} -> {', '.join(names)}"
        skipped = len(requests) - len(todo)
        first = requests[0]
        version = self._environment(first)["vllm_version"]
        points = f"{len(requests)} point{'s' if len(requests) > 1 else ''}"
        again = f" ({again} of them failed before)" if again else ""
        print(f"{title}: {points}, {skipped} recorded before, {len(todo)} to start{again} "
              f"(vLLM {version} on {first.device_kind}, launcher {first.launcher})", file=sys.stderr)  # fmt: skip
        if first.cfg.dry_run:
            for request in requests:
                print(f"{request.point_id} {'to start' if request in todo else 'recorded'}  {request.label}")
            self._sets.clear()
            self._planned_only = True
            return []
        for request in todo:
            # Before Hydra makes the folder of its own, which would end in a stack trace where it cannot.
            self._results(request).create()
        if todo:
            self._progress = Progress(len(todo), skipped, title)
        return todo

    # -- one point ---------------------------------------------------------------------------------------------

    def run(self, request: Request) -> str:
        """Measure one point and record it; returns its status. Called by Hydra's launcher for each job."""
        if self._broken:
            return "not started"
        results = self._results(request)
        try:
            results.create()
            self._prepare(request)
        except StoreError as error:
            self._broken = error
            raise
        progress = self._progress or Progress(1, 0, request.cfg.set)
        self._progress = progress
        progress.start(request.label)
        assert self._launchers and self._guard
        outcome = measure(request, self._environment(request), results, self._launchers, self._guard, progress)
        try:
            results.write(outcome.run_id, outcome.engine, outcome.workloads, outcome.samples, outcome.requests)
        except StoreError as error:
            # Without a place for results there is no point in starting more engines.
            self._broken = error
            raise
        status = str(outcome.engine["status"])
        self._statuses.append(status)
        told = figures(outcome.engine, outcome.workloads)
        progress.finish(status, told, peak_bytes(outcome.engine), best_speed(outcome.workloads))
        return status

    # -- after -------------------------------------------------------------------------------------------------

    def finish(self) -> int:
        """Print the summary of every set touched; returns the exit code."""
        if self._progress:
            self._progress.close()
        if self._broken:
            raise self._broken
        if self._planned_only:
            return 0
        console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
        for results in self._sets.values():
            rows = latest(results.rows("engines"))
            if rows:
                print_summary(console, rows, results.rows("workloads"), str(_shown(results.root)))
        started, failed = len(self._statuses), self._statuses.count("failed")
        took = time.monotonic() - self._began
        if started:
            tail = f", {failed} failed" if failed else ""
            console.print(f"{started} engine start{'s' if started > 1 else ''} in {took:.0f} s{tail}")
        else:
            console.print("nothing to start: every point is recorded (rerun=failed or rerun=all starts them again)")
        return 1 if failed else 0

    def interrupted(self) -> None:
        """Ctrl-C: say what is safe."""
        if self._progress:
            self._progress.close()
        print("interrupted: finished points are recorded; the same command goes on with the rest", file=sys.stderr)

    # -- parts -------------------------------------------------------------------------------------------------

    def _results(self, request: Request) -> ResultSet:
        # Relative to the checkout, not to the caller's folder: the same command must find the same set.
        root = ROOT / request.cfg.paths.results / request.cfg.set
        return self._sets.setdefault(root, ResultSet(root))

    def _environment(self, request: Request) -> dict[str, Any]:
        key = repr(request.cfg.device)
        if key not in self._environments:
            self._environments[key] = environment.collect(request.cfg.device)
        return self._environments[key]

    def _prepare(self, request: Request) -> None:
        """Take the device and start what serves all points, once."""
        if self._guard is None:
            gpus = environment.gpu_names(request.cfg.device) if request.device_kind == "cuda" else ()
            for name in [f"gpu-{gpu}" for gpu in gpus] or ["cpu"]:
                self._stack.enter_context(device_lock(name))
            end_orphans()
            self._guard = Guard()
            self._stack.callback(self._guard.close)
            self._launchers = Launchers(self._results(request).logs, self._guard)
            self._stack.callback(self._launchers.close)


def latest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest row of each point, restart and environment; older ones are tries that were repeated."""
    newest: dict[tuple, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda r: r["started_unix_s"]):
        newest[(row["point_id"], row["repeat"], row["environment_id"])] = row
    return list(newest.values())


def _settled(row: Recorded, rerun: str) -> bool:
    """Whether a recorded row stands, or its point is to be started again."""
    if rerun == "all":
        return False
    if row.status != "failed":
        return True
    return rerun == "transient" and row.failure_cause not in TRANSIENT


def _shown(path: Path) -> Path:
    with contextlib.suppress(ValueError):
        return path.resolve().relative_to(Path.cwd())
    return path

