"""The answer to a start that failed for memory: a walk down the ladder of changes predicted to work.

A rung is a point like any other, named by its own settings: a later sweep that asks for exactly these finds it
recorded, and a walk that comes to a point that is recorded takes that row instead of starting it. So a walk has no
state of its own: it is the failed row, the ladder that `analysis.diagnose` makes of it, and the rows of the rungs.
The failed row stays as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis.diagnose.case import MEMORY_CAUSES, Case, NotForMemory
from bench.config import QuantizationConfig
from bench.errors import BadRequest
from bench.progress import gib
from bench.request import Request, one_engine
from bench.resume import passing

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """A rung of a walk. `row` is None while it is not recorded. `short_bytes` is what was short, as known before it."""

    number: int
    name: str
    change: str
    cost: str
    gain_bytes: int
    short_bytes: int | None
    request: Request
    row: Row | None = None

    @property
    def works(self) -> bool:
        """It started and its workloads went through."""
        return self.row is not None and self.row.get("status") == "ok"

    def columns(self, failed: Row) -> dict[str, Any]:
        """What the rung's own row says of the walk."""
        return {
            "mitigates_run_id": failed["run_id"], "mitigation_rung": self.number, "mitigation_name": self.name,
            "mitigation_change": self.change, "mitigation_cost": self.cost, "mitigation_gain_bytes": self.gain_bytes,
            "mitigation_short_bytes": self.short_bytes,
        }  # fmt: skip


@dataclass(frozen=True)
class Walk:
    """How far the answer to one failed row is. `steps` are the recorded rungs; `pending` is the next one to start, None
    where the walk is over. `refusal` says why nothing can be predicted, `refused` which rungs cannot be asked for."""

    case: Case
    label: str
    steps: tuple[Step, ...] = ()
    pending: Step | None = None
    refusal: str = ""
    refused: tuple[str, ...] = field(default=())
    limit: int = 0

    @property
    def answer(self) -> Step | None:
        """The rung that works."""
        return next((step for step in self.steps if step.works), None)

    def sentence(self) -> str:
        """What failed, what works, what it costs, predicted gain against what was short."""
        case = self.case
        short = f", {gib(case.shortfall_bytes)} short" if case.shortfall_bytes is not None else ""
        where = "pruned before the start" if case.row.get("status") == "pruned" else f"at {case.phase}"
        head = f"{self.label} did not fit ({where}: {case.cause}{short})"
        if found := self.answer:
            before = [step for step in self.steps if step is not found]
            tried = f" after {_tried(before)};" if before else ""
            known = f", {gib(found.short_bytes)} were short" if found.short_bytes is not None else ""
            return (f"{head}: works with {found.change} (rung {found.number}, {found.name};{tried} {found.cost}; "
                    f"predicted to free {gib(found.gain_bytes)}{known})")  # fmt: skip
        if self.refusal:
            return f"{head}: no advice: {self.refusal}; nothing was started"
        refused = f" ({'; '.join(self.refused)})" if self.refused else ""
        if not self.steps:
            none = "no change of its settings is predicted to work on this device"
            return f"{head}: {'not yet answered' if self.pending else none}{refused}; nothing was started"
        if self.pending:
            return f"{head}: {_tried(self.steps)}; the next sweep goes on"
        over = len(self.steps) >= self.limit
        end = f"that is max_rungs={self.limit}" if over else "no other change is predicted to work"
        return f"{head}: nothing tried works: {_tried(self.steps)}; {end}{refused}"


def _tried(steps: Any) -> str:
    return ", ".join(f"{step.change} ({_ended(step.row)})" for step in steps)


def _ended(row: Row) -> str:
    short = row.get("shortfall_bytes")
    still = f", still {gib(short)} short" if short is not None else ""
    return f"{row.get('failure_cause') or row.get('status')}{still}"


def is_for_memory(row: Row) -> bool:
    """Whether a row is one that a walk can answer."""
    return row.get("status") in ("failed", "pruned") and row.get("failure_cause") in MEMORY_CAUSES


def examine(request: Request, row: Row, recorded: Callable[[Request], Row | None]) -> Walk | None:
    """How far the walk for `row`, recorded of `request`, is; None for a row that did not fail for memory.

    `recorded` finds the row of a point that stands. Always the gentlest change that is still predicted to work comes
    next. A rung that failed for memory again says how much was really short: what it was to free, and what it still
    lacked; changes predicted to free less than that are passed over.
    """
    from analysis.diagnose.ladder import Rung, ladder
    from analysis.diagnose.terms import Unpredictable

    try:
        case = first = Case.of_row(row)
    except NotForMemory:
        return None
    limit = request.cfg.max_rungs
    steps: list[Step] = []
    refused: dict[str, str] = {}
    tried = {request.point_id}

    def walk(pending: Step | None = None, refusal: str = "") -> Walk:
        return Walk(first, request.label, tuple(steps), pending, refusal, tuple(refused.values()), limit)

    def next_rung() -> tuple[Rung, Request] | None:
        for rung in ladder(case):
            if not rung.works or rung.change in refused:
                continue
            try:
                asked = rung_request(request, rung.overrides())
            except BadRequest as error:
                refused[rung.change] = str(error)
                continue
            if asked.point_id not in tried:
                return rung, asked
        return None

    while len(steps) < limit:
        try:
            found = next_rung()
        except Unpredictable as why:
            return walk(refusal=str(why))
        if found is None:
            return walk()
        rung, asked = found
        tried.add(asked.point_id)
        seen = recorded(asked)
        step = Step(len(steps) + 1, rung.name, rung.change, rung.note, round(rung.gain_bytes), case.shortfall_bytes,
                    asked, seen)  # fmt: skip
        if seen is None:
            return walk(step)
        steps.append(step)
        if step.works:
            return walk()
        if passing(seen.get("failure_cause"), request.cfg):
            # Nothing was learned of this rung, and the next one may cost more for no reason.
            return walk(step)
        if is_for_memory(seen):
            truth = step.gain_bytes + (seen.get("shortfall_bytes") or 0)
            case = dataclasses.replace(case, shortfall_bytes=max(case.shortfall_bytes or 0, truth))
    return walk()


def rung_request(request: Request, overrides: Mapping[str, Any]) -> Request:
    """`request` with some settings changed, as from the command line. Raises `BadRequest` where it cannot be."""
    cfg = request.cfg
    changed = {name.removeprefix("engine."): value for name, value in overrides.items() if name != "quantization"}
    cfg = dataclasses.replace(cfg, engine=dataclasses.replace(cfg.engine, **changed))
    if wanted := overrides.get("quantization"):
        if cfg.model.source != "config":
            raise BadRequest(f"quantization={wanted}: needs another checkpoint than {cfg.model.source} names")
        cfg = dataclasses.replace(cfg, quantization=_quantization(str(wanted)))
    return one_engine(cfg, request.device_kind)


def _quantization(name: str) -> QuantizationConfig:
    """The node of `conf/quantization`."""
    from omegaconf import OmegaConf

    from analysis.catalogue import CONF

    written = OmegaConf.load(CONF / "quantization" / f"{name}.yaml")
    found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(QuantizationConfig), written))
    assert isinstance(found, QuantizationConfig)
    return found
