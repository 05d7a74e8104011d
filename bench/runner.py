"""Carries a sweep through: what is recorded already, what to start, what to say at the end."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console
from rich.text import Text

from bench import environment, mitigate
from bench.colocate.label import group_labels
from bench.colocate.measure import measure_group
from bench.colocate.summary import group_figures, group_peak_bytes, print_groups
from bench.engine.gate import device_lock, end_orphans
from bench.engine.guard import Guard
from bench.engine.launchers import Launchers
from bench.measure import measure
from bench.progress import Progress
from bench.record.store import ResultSet, StoreError
from bench.request import Request
from bench.resume import settled
from bench.summary import best_speed, figures, peak_bytes, print_summary

ROOT = Path(__file__).resolve().parent.parent


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
        self._groups_failed = 0
        self._started: dict[tuple[str, str, int], dict[str, Any]] = {}
        self._stored: dict[Path, dict[tuple[str, int], str]] = {}
        self._answerable: list[Request] = []
        self._labels: dict[tuple[str, str, int], str] = {}
        self._answered: set[str] = set()
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
        todo, again, walks = [], 0, 0
        for request in requests:
            results = self._results(request)
            if results.root not in done:
                here = self._environment(request)["environment_id"]
                rows = [row for row in results.recorded() if row.environment_id == here]
                done[results.root] = {(r.point_id, r.repeat) for r in rows if settled(r, request.cfg)}
                tried |= {(results.root, r.point_id, r.repeat) for r in rows if r.status == "failed"}
            stands = (request.point_id, request.cfg.repeat) in done[results.root]
            if stands and self._unanswered(request):
                todo.append(request)
                walks += 1
            elif not stands:
                todo.append(request)
                again += (results.root, request.point_id, request.cfg.repeat) in tried
        self._labels = group_labels(requests)
        names = sorted({request.cfg.set for request in requests})
        title = f"{requests[0].cfg.sweep.name} -> {', '.join(names)}"
        skipped = len(requests) - len(todo)
        self._answerable = [request for request in requests if request.cfg.on_oom == "mitigate"]
        first = requests[0]
        version = self._environment(first)["vllm_version"]
        points = f"{len(requests)} point{'s' if len(requests) > 1 else ''}"
        notes = [f"{again} of them failed before"] if again else []
        notes += [f"{walks} of them only to be answered"] if walks else []
        told = f" ({', '.join(notes)})" if notes else ""
        print(f"{title}: {points}, {skipped} recorded before, {len(todo)} to start{told} "
              f"(vLLM {version} on {first.device_kind}, launcher {first.launcher})", file=sys.stderr)  # fmt: skip
        if first.cfg.dry_run:
            for request in requests:
                label = self._labels.get(request.key, request.label)
                print(f"{request.point_id} {'to start' if request in todo else 'recorded'}  {label}")
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
        if request.cfg.colocate.active:
            return self._start_group(request)
        if request.cfg.on_oom != "mitigate":
            return str(self._start(request)["status"])
        row = self._standing(request)
        if row is not None and self._progress:
            self._progress.more(-1)  # recorded before, or as a rung of another point's walk
        row = row or self._start(request)
        self._mitigate(request, row)
        return str(row["status"])

    def _start(
        self, request: Request, rung: mitigate.Step | None = None, failed: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Measure and record; returns the row of the engine start."""
        results = self._results(request)
        try:
            results.create()
            self._prepare(request)
        except StoreError as error:
            self._broken = error
            raise
        progress = self._progress or Progress(1, 0, request.cfg.set)
        self._progress = progress
        progress.start(f"{request.label}, rung {rung.number}: {rung.name}" if rung else request.label)
        assert self._launchers and self._guard
        outcome = measure(request, self._environment(request), results, self._launchers, self._guard, progress)
        if rung and failed:
            outcome.engine |= rung.columns(failed)
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
        self._started[request.key] = outcome.engine
        return outcome.engine

    def _start_group(self, request: Request) -> str:
        """Measure and record several engines at once; returns the status of the group."""
        results = self._results(request)
        try:
            results.create()
            self._prepare(request)
            self._progress = self._progress or Progress(1, 0, request.cfg.set)
            self._progress.start(self._labels.get(request.key, request.label))
            assert self._launchers and self._guard
            group = measure_group(
                request, self._environment(request), results, self._launchers, self._guard, self._progress
            )
            group.write(results)
        except StoreError as error:
            self._broken = error
            raise
        members = [str(one.engine["status"]) for one in group.outcomes]
        status = str(group.row["status"])
        self._statuses += members
        self._groups_failed += status == "failed" and "failed" not in members
        self._progress.finish(status, group_figures(group.row), group_peak_bytes(group.row),
                              group.row.get("joint_output_tokens_per_s"))  # fmt: skip
        return status

    def _mitigate(self, request: Request, row: Mapping[str, Any]) -> None:
        """Walk down the ladder from a row that failed for memory, to a rung that works or to the end."""
        assert self._progress
        while (walk := mitigate.examine(request, row, self._standing)) and walk.pending and walk.pending.row is None:
            self._progress.more()
            self._start(walk.pending.request, walk.pending, row)
        if walk is None:
            return
        self._progress.note(walk.sentence())
        if walk.answer:
            here = {started["run_id"] for started in self._started.values()}
            passed = [row, *(step.row for step in walk.steps if step.row)]
            self._answered |= {one["run_id"] for one in passed if one["status"] == "failed"} & here

    def _unanswered(self, request: Request) -> bool:
        """Whether a recorded point failed for memory and the walk that answers it is not over."""
        row = self._standing(request) if request.cfg.on_oom == "mitigate" else None
        walk = mitigate.examine(request, row, self._standing) if row else None
        return walk is not None and walk.pending is not None

    def _standing(self, request: Request) -> Mapping[str, Any] | None:
        """The row of a point that stands: started by this process, or recorded before."""
        results = self._results(request)
        if request.key not in self._started:
            if results.root not in self._stored:
                here = self._environment(request)["environment_id"]
                rows = [row for row in results.recorded() if row.environment_id == here and settled(row, request.cfg)]
                # In the order of their names, which end in the time.
                self._stored[results.root] = {(row.point_id, row.repeat): row.run_id for row in rows}
            run_id = self._stored[results.root].get((request.point_id, request.cfg.repeat))
            return results.engine(run_id) if run_id else None
        return self._started[request.key]

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
            # Engines of a group are told with it.
            rows = [row for row in latest(results.rows("engines")) if row["colocation_id"] is None]
            if rows:
                print_summary(console, rows, results.rows("workloads"), str(_shown(results.root)))
            print_groups(console, latest(results.rows("colocations")), results.rows, str(_shown(results.root)))
        for request in self._answerable:
            row = self._standing(request)
            if row and (walk := mitigate.examine(request, row, self._standing)):
                console.print(Text(walk.sentence()))
        started, failed = len(self._statuses), self._statuses.count("failed") - len(self._answered)
        took = time.monotonic() - self._began
        failed += self._groups_failed
        if started:
            tail = f", {failed} failed" if failed else ""
            tail += f", {len(self._answered)} failed for memory and answered" if self._answered else ""
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


def _shown(path: Path) -> Path:
    with contextlib.suppress(ValueError):
        return path.resolve().relative_to(Path.cwd())
    return path

