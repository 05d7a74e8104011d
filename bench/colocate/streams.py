"""Drives the streams of a group: each alone, then all at once, and fills the rows of the workloads table.

Alone and together go the same way, through the router, with the same prompts, lengths and arrival times, so that a
difference is the others' doing. One run of each past the router says what the router itself costs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench import checkpoint
from bench.colocate.processes import RouterProcess, StreamClient
from bench.colocate.request import destinations
from bench.colocate.vitals import Vitals
from bench.config import StreamConfig
from bench.load.monitor import Progress as LoadProgress
from bench.load.prompts import derive_seed
from bench.load.result import LoadResult
from bench.load.spec import LoadSpec
from bench.measure import EngineStart
from bench.outcome import fail
from bench.progress import Progress
from bench.request import Request
from bench.router.config import RouterConfig
from bench.rows import request_rows, workload_columns
from bench.workload_run import DESIGN_FLAGS, TOO_SLOW, WorkloadRun, requests_sentence, stretch_of

_POLL_S = 0.05
DIRECT, ALONE, TOGETHER = "direct", "alone", "together"
_SPEEDS = ("output_tokens_per_s", "total_tokens_per_s", "requests_per_s", "goodput_requests_per_s")
"""Rates over the window of a run, and with `steady_` before them over its steady part."""


@dataclass
class Stream:
    """A stream and where its requests go: `members` in the order of how much each gets."""

    name: str
    config: StreamConfig
    members: list[str]
    position: int

    @property
    def prefix(self) -> str:
        """Path before /v1 that tells the router what its rules ask for."""
        parts = [("task", self.config.task), ("words", self.config.words)]
        return "".join(f"/{kind}/{quote(text, safe='')}" for kind, text in parts if text)


@dataclass
class Driven:
    """One run of one stream."""

    row: dict[str, Any]
    stream: Stream
    mode: str
    repeat: int
    result: LoadResult | None = None


@dataclass
class Streams:
    """All runs on the engines of a group. `loose` are rows of streams that several engines share."""

    request: Request
    run_id: str
    engines: dict[str, EngineStart]
    router: RouterProcess
    config: RouterConfig
    folder: Path
    progress: Progress
    driven: list[Driven] = field(default_factory=list)
    loose: list[dict[str, Any]] = field(default_factory=list)
    loose_requests: list[dict[str, Any]] = field(default_factory=list)
    failure: tuple[str, str, str] | None = None
    """Member, cause and sentence of what ended the runs early."""
    told: set[str] = field(default_factory=set)
    """Engines of whose loss the person who watches was told."""

    def __post_init__(self) -> None:
        group = self.request.cfg.colocate
        self.streams = [
            Stream(name, one, destinations(self.config, one), position)
            for position, (name, one) in enumerate(group.streams.items())
        ]
        self.vitals = Vitals(self.engines)
        self.drivers: dict[str, WorkloadRun] = {name: one.workload_run() for name, one in self.engines.items()}

    def run(self) -> None:
        """Warm up, then in turns each stream alone and all together, until an engine dies."""
        began = time.monotonic()
        group = self.request.cfg.colocate
        for stream in self.streams:
            if not self.failure:
                self._warm_up(stream)
        for repeat in range(group.repeats):
            plan = [(mode, [one]) for one in self.streams for mode in self._modes(one)]
            # The other way round in every other turn: none always meets the warmer machine.
            whole = [(TOGETHER, self.streams)] if self.streams else []
            for mode, streams in [*plan, *whole] if repeat % 2 == 0 else [*whole, *plan[::-1]]:
                if not self.failure:
                    self._drive(mode, repeat, streams)
        for engine in self.engines.values():
            engine.row["workloads_s"] = time.monotonic() - began

    def _modes(self, stream: Stream) -> list[str]:
        direct = self.request.cfg.colocate.direct and len(stream.members) == 1
        return [DIRECT, ALONE] if direct else [ALONE]

    # -- one run -----------------------------------------------------------------------------------------------

    def _warm_up(self, stream: Stream) -> None:
        load = stream.config.load
        if not load.warmup_requests:
            return
        self._mark({name: f"warmup:{stream.name}" for name in stream.members}, f"beside:{stream.name}")
        seed = derive_seed(load.seed, stream.position, "warmup")
        spec = load.spec(load.seed).for_warmup(load.warmup_requests, seed)
        result = self._together({stream.name: self._job(stream, spec, ALONE)})[stream.name]
        if not result.completed and not self.failure:
            self._failed(stream, requests_sentence(result))

    def _drive(self, mode: str, repeat: int, streams: list[Stream]) -> None:
        """Drive streams at once; a row for each."""
        runs = {one.name: Driven(self._new_row(one, mode, repeat), one, mode, repeat) for one in streams}
        labels = {}
        for name in self.engines:
            mine = [one.name for one in streams if name in one.members]
            if mine:
                labels[name] = f"load:{'+'.join(mine)}:{mode}#{repeat + 1}"
                self.drivers[name].reset_peaks(labels[name])
        self._mark(labels, f"beside:{streams[0].name}:{mode}#{repeat + 1}")
        jobs = {one.name: self._job(one, self._spec(one, mode, repeat), mode) for one in streams}
        results = self._together(jobs)
        self._mark({}, "ready")
        died = set(self.vitals.look())
        for name, run in runs.items():
            run.result = results[name]
            self._fill(run, labels.get(run.stream.members[0], ""), died)
        self.driven += runs.values()

    def _fill(self, run: Driven, label: str, died: set[str]) -> None:
        """The columns of one run, from what its client saw."""
        row, result, stream = run.row, run.result, run.stream
        assert result is not None
        row |= workload_columns(result)
        well = result.completed and not result.failed and not result.not_sent
        row["status"] = "ok" if well else "failed"
        others = died - set(stream.members)
        if others:
            row["flags"] = [*row["flags"], "sibling_died"]
        if len(stream.members) == 1:
            engine = self.engines[stream.members[0]]
            if stream.members[0] not in died:
                row |= self.drivers[stream.members[0]].worker_peaks()
            engine.outcome.stretches.append(stretch_of(row, label, result))
            flags = engine.row["flags"]
            flags += [flag for flag in row["flags"] if flag not in DESIGN_FLAGS and flag not in flags]
        if stream.config.load.save_requests:
            rows = request_rows(row, result)
            found = self.engines[stream.members[0]].outcome.requests if len(stream.members) == 1 else None
            (self.loose_requests if found is None else found).extend(rows)
        if not well:
            dead = sorted(died & set(stream.members))
            if dead:
                # Counts stand; a rate over seconds of which an engine was dead is no throughput of anything.
                row |= dict.fromkeys((*_SPEEDS, *(f"steady_{name}" for name in _SPEEDS)))
            engine_row = self.engines[dead[0]].row if dead else {}
            sentence = result.abort_reason or requests_sentence(result)
            row["failure_cause"] = engine_row.get("failure_cause") or (
                "too_slow" if result.abort_reason.startswith(TOO_SLOW) else "requests_failed"
            )
            row["failure_sentence"] = engine_row.get("failure_sentence") or sentence
            if not self.failure:
                self._failed(stream, sentence)

    def _failed(self, stream: Stream, sentence: str) -> None:
        """Requests failed although every engine lives: the figures of this group are not what was asked for."""
        self.failure = (stream.members[0], "requests_failed", f"stream {stream.name}: {sentence}")

    # -- parts of it -------------------------------------------------------------------------------------------

    def _new_row(self, stream: Stream, mode: str, repeat: int) -> dict[str, Any]:
        load, one = stream.config.load, len(stream.members) == 1
        outcome = self.engines[stream.members[0]].outcome
        rows = outcome.workloads if one else self.loose
        row = {
            "run_id": outcome.run_id if one else self.run_id,
            "point_id": outcome.engine["point_id"] if one else self.request.point_id,
            "workload": stream.name, "position": len(rows), "started_unix_s": time.time(),
            "warmup_requests": load.warmup_requests, "seed": load.seed, "colocation_id": self.run_id,
            "colocation_member": "+".join(stream.members), "colocation_mode": mode, "colocation_repeat": repeat,
        }  # fmt: skip
        rows.append(row)
        return row

    def _spec(self, stream: Stream, mode: str, repeat: int) -> LoadSpec:
        """The load of one run. The same prompts alone and together, unless an engine would remember them."""
        load = stream.config.load
        caches = any(self.engines[name].request.cfg.engine.enable_prefix_caching for name in stream.members)
        parts = (mode,) if caches else ()
        return load.spec(derive_seed(load.seed, stream.position, "measured", repeat, *parts))

    def _job(self, stream: Stream, spec: LoadSpec, mode: str) -> dict[str, Any]:
        """The arguments of `run_load`."""
        members = [self.engines[name] for name in stream.members]
        first = members[0]
        assert first.server is not None
        alone_there = all(not set(one.members) & set(stream.members) for one in self.streams if one is not stream)
        counters = len(members) == 1 and (mode != TOGETHER or alone_there)
        direct = mode == DIRECT
        return {
            "base_url": first.server.base_url if direct else self.router.base_url + stream.prefix,
            "model": first.request.cfg.model.name if direct else stream.config.model or "any",
            "spec": spec,
            # Token ids that every engine that may get the request knows.
            "vocab_size": min(checkpoint.vocabulary_size(one.request.source.config) for one in members),
            "metrics_url": first.server.base_url if counters else None,
        }

    def _mark(self, labels: dict[str, str], otherwise: str) -> None:
        for name, engine in self.engines.items():
            engine.phase(labels.get(name, otherwise))

    def _together(self, jobs: dict[str, dict[str, Any]]) -> dict[str, LoadResult]:
        """Run the clients at once; a dead engine ends the streams that have no other."""
        clients: dict[str, StreamClient] = {}
        by_name = {one.name: one for one in self.streams}
        try:
            for name, job in jobs.items():
                clients[name] = StreamClient(name, job, self.folder)
            for client in clients.values():
                client.await_ready()
            for client in clients.values():
                client.go()
            began = time.monotonic()
            while [client for client in clients.values() if client.running()]:
                self._watch_engines()
                for name, client in clients.items():
                    if why := self._why_stop(by_name[name], time.monotonic() - began):
                        client.stop(why)
                self._show(clients)
                time.sleep(_POLL_S)
            self._diagnose_lost()
            return {name: client.result() for name, client in clients.items()}
        finally:
            for client in clients.values():
                client.end()
            if view := self.progress.point:
                view.detail, view.tokens_per_s = "", None

    def _watch_engines(self) -> None:
        """Note which engines have lost a process, so that nobody drives them on."""
        for name in sorted(self.vitals.look()):
            if name not in self.told:
                self.told.add(name)
                self.progress.note(f"engine {name} has lost a process; the others serve on")

    def _diagnose_lost(self) -> None:
        """Write the death of an engine into its row, once its API server has said what it knows."""
        for name in sorted(self.vitals.look()):
            engine = self.engines[name]
            if engine.row.get("failure_cause"):
                continue
            self.vitals.await_end(name)
            status = engine.process.poll() if engine.process else None
            found = engine.failure(timed_out=False, ready=True)
            known = found.cause != "unknown"
            ended = f"the engine ended with {status}" if status else "a process of the engine ended"
            sentence = found.sentence if known else f"{ended} under load"
            fail(engine.row, "runtime", found.cause if known else "engine_died", sentence, found.detail)
            engine.row["shortfall_bytes"] = found.shortfall_bytes
            for other in self.engines.values():
                if other is not engine and "sibling_died" not in other.row["flags"]:
                    other.row["flags"].append("sibling_died")
            self.failure = self.failure or (name, str(engine.row["failure_cause"]), f"engine {name}: {sentence}")

    def _why_stop(self, stream: Stream, seconds: float) -> str | None:
        dead = [name for name in stream.members if name in self.vitals.lost]
        if len(dead) == len(stream.members):
            return f"the engine {' and '.join(dead)} ended"
        if not self.router.alive():
            return "the router ended"
        limit = stream.config.load.max_duration_s
        return f"{TOO_SLOW} max_duration_s={limit:g}" if limit and seconds > limit else None

    def _show(self, clients: dict[str, StreamClient]) -> None:
        if view := self.progress.point:
            told = [f"{name} {_counts(client.progress)}" for name, client in clients.items()]
            view.detail = ", ".join(told)


def _counts(now: LoadProgress) -> str:
    failed = f" ({now.failed} failed)" if now.failed else ""
    return f"{now.finished}/{now.total or '-'}{failed}"
