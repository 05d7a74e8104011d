"""The plan of one card: each engine's share, the order of their starts, and whether it holds.

vLLM gives each engine gpu_memory_utilization of the *whole* card, and refuses to start where less than that is free
(v1/worker/utils.py: `request_memory`). So the shares must leave room for what every engine holds outside its budget,
and an engine that starts later must find its budget free beside the peaks of those before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from analysis import defaults
from analysis.estimate import Estimate
from analysis.plan import hardware
from analysis.plan.engine import Card, Engine, Need, need
from analysis.predict.answer import predict
from analysis.predict.prediction import GIB, Prediction, total
from analysis.predict.request import Request, RequestError

SHARE_STEP = 0.001
"""Shares are given to a thousandth, rounded down: about 0.1 GiB of a large card."""

POOL_IN_BYTES = (0, 10, 2)
"""The first vLLM with --kv-cache-memory-bytes (engine/arg_utils.py)."""

Mode = Literal["utilization", "bytes"]
Verdict = Literal["fits", "tight", "does_not_fit", "does_not_start"]
Problem = tuple[Verdict, str, float]
"""A verdict, its sentence, and the bytes that are missing."""


@dataclass(frozen=True, slots=True)
class Placed:
    """One engine as planned. `share` is its --gpu-memory-utilization, `pool_bytes` its --kv-cache-memory-bytes in
    the mode `bytes`, else None. `prediction` is of the engine with these settings, `free` what it finds free on the
    card when it starts, its own CUDA context and what is left to others taken off."""

    need: Need
    share: float
    pool_bytes: int | None
    prediction: Prediction
    free: Estimate

    @property
    def engine(self) -> Engine:
        return self.need.engine

    @property
    def budget_bytes(self) -> int:
        return self.prediction.budget_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """Engines in the order of their starts. Sizes in bytes of the one device.

    `tight`: whether all start and hold their load changes within the intervals. `does_not_fit`: an engine does not
    start for want of memory, or does not hold its load at once. `does_not_start`: vLLM runs an engine's format not at
    all on this card, whatever the memory; `memory` is the verdict without that. `shortfall_bytes` belongs to `reason`.
    """

    card: Card
    mode: Mode
    placed: tuple[Placed, ...]
    total_bytes: int
    peak: Estimate
    verdict: Verdict
    reason: str
    shortfall_bytes: float
    memory: Verdict

    @property
    def works(self) -> bool:
        """Whether there is something to run."""
        return self.verdict in ("fits", "tight")

    @property
    def headroom(self) -> Estimate:
        """What is left of the card when every engine is at its peak."""
        return total([], [self.peak], exact=self.total_bytes)


def plan(
    engines: Sequence[Engine], card: Card, *, mode: Mode = "utilization", spare_bytes: int = 0,
    keep_order: bool = False,
) -> Plan:  # fmt: skip
    """Shares for `engines` on `card`, with `spare_bytes` of it left to others. Raises RequestError.

    Every engine first gets what its load needs, at the unfavourable end of the intervals where the card has it. What
    is then left goes to the KV pools in proportion to the loads. Largest weights start first unless `keep_order`: a
    load that fails, fails at once, and its transients find the most room.
    """
    if not engines:
        raise RequestError("there is no engine to plan; give --model once for each")
    if mode == "bytes":
        _takes_bytes(card)
    needs = [need(engine, card) for engine in engines]
    if not keep_order:
        needs.sort(key=lambda one: -one.prediction.weights_bytes)
    whole = needs[0].prediction.settings.device.total_bytes
    if not 0 <= spare_bytes < whole:
        raise RequestError(f"--spare-gib is {spare_bytes / GIB:g}; the card has {whole / GIB:.2f} GiB")
    outside = total([one.outside for one in needs])
    room = whole - spare_bytes - outside.high
    careful = [one.budget.high for one in needs]
    least = [one.budget.value for one in needs]
    # A share is rounded down, by more than a small engine's whole pool on a large card: where the card has it, every
    # need is taken up to the next share.
    whole_steps = [math.ceil(one / whole / SHARE_STEP - 1e-9) * SHARE_STEP * whole for one in careful]
    if room >= sum(whole_steps):
        budgets = _grown(whole_steps, room, needs)
    elif room >= sum(careful):
        budgets = _grown(careful, room, needs)
    elif room >= sum(least):
        # The card cannot cover every interval: what is beyond the expected needs is shared by their uncertainty.
        between = (room - sum(least)) / max(sum(careful) - sum(least), 1.0)
        budgets = [low + between * (high - low) for low, high in zip(least, careful, strict=True)]
    else:
        budgets = least
    return _placed(needs, budgets, card, whole, mode, spare_bytes)


def _takes_bytes(card: Card) -> None:
    """Raises RequestError where that vLLM has no --kv-cache-memory-bytes."""
    version = Request.of({"model": "any", "vllm_version": card.vllm_version}).vllm_version
    if defaults.parsed(version) < POOL_IN_BYTES:
        since = ".".join(map(str, POOL_IN_BYTES))
        raise RequestError(
            f"--pool is 'bytes', and vLLM {version} has no --kv-cache-memory-bytes (since {since}); "
            "plan with --pool utilization or a later --vllm-version"
        )


def _grown(budgets: Sequence[float], room: float, needs: Sequence[Need]) -> list[float]:
    """`budgets` with the rest of the room given to the KV pools, in proportion to the loads."""
    rest, kv = room - sum(budgets), sum(one.kv_bytes for one in needs)
    return [budget + rest * one.kv_bytes / max(kv, 1) for budget, one in zip(budgets, needs, strict=True)]


def _share(budget: float, whole: int) -> float:
    return min(max(math.floor(budget / whole / SHARE_STEP + 1e-9) * SHARE_STEP, SHARE_STEP), 1.0)


def _placed(
    needs: Sequence[Need], budgets: Sequence[float], card: Card, whole: int, mode: Mode, spare_bytes: int
) -> Plan:
    placed: list[Placed] = []
    problems: list[Problem] = []
    for one, budget in zip(needs, budgets, strict=True):
        share = round(_share(budget, whole), 3)
        pool = None
        if mode == "bytes":
            blocks = max(int(share * whole - one.inside.high) // one.prediction.kv_block_bytes, 0)
            pool = max(blocks * one.prediction.kv_block_bytes, min(one.kv_bytes, int(share * whole)))
        found = predict(card.request(one.engine, gpu_memory_utilization=share, kv_cache_memory_bytes=pool))
        before = total([earlier.prediction.device_peak for earlier in placed])
        free = total([], [before, found.context], exact=whole - spare_bytes)
        placed.append(Placed(one, share, pool, found, free))
        problems += _problems(placed[-1], len(placed))
    peak = total([one.prediction.device_peak for one in placed])
    limit = whole - spare_bytes
    problems += _beyond(peak, limit)
    memory = _worst(problems)
    worst = _worst([*problems, *_lacking(needs, card)])
    return Plan(card, mode, tuple(placed), whole, peak, *worst, memory[0])


def _worst(problems: Sequence[Problem]) -> Problem:
    return max(problems, key=lambda one: (_RANK[one[0]], one[2]), default=_NO_PROBLEM)


def _lacking(needs: Sequence[Need], card: Card) -> list[Problem]:
    """Engines that this card does not run, in one sentence each way they do not."""
    said: dict[str, list[str]] = {}
    for one in needs:
        if clause := hardware.lacking(card.request(one.engine)):
            said.setdefault(clause, []).append(one.engine.name)
    return [("does_not_start", f"{', '.join(names)}: {clause}", 0.0) for clause, names in said.items()]


_NO_PROBLEM: Problem = ("fits", "every engine starts and holds its load at once", 0.0)
_RANK: dict[Verdict, int] = {"fits": 0, "tight": 1, "does_not_fit": 2, "does_not_start": 3}


def _problems(one: Placed, position: int) -> list[Problem]:
    """What keeps this engine from starting or from holding its load: verdict, sentence, bytes missing."""
    engine, found = one.engine, one.prediction
    name, budget = f"engine {position} ({engine.name})", found.budget_bytes
    out: list[Problem] = []
    if one.free.value < budget:
        out.append((
            "does_not_fit" if one.free.high < budget else "tight",
            f"{name} would find {_gib(one.free.value)} free and asks for {_gib(budget)}", budget - one.free.value,
        ))  # fmt: skip
    elif one.free.low < budget:
        out.append(("tight", f"{name} may find less free than the {_gib(budget)} it asks for", 0.0))
    if found.verdict == "does_not_start":
        out.append(("does_not_fit", f"{name}: {found.reason}", _short(found)))
    requests = found.full_length_requests
    if requests.value < engine.concurrency:
        missing = (engine.concurrency - requests.value) * found.kv_blocks_per_request * found.kv_block_bytes
        out.append((
            "does_not_fit" if requests.high < engine.concurrency else "tight",
            f"{name} holds {requests.value:.1f} of the {engine.concurrency} requests of {engine.length:,} tokens at "
            "once; the others wait", missing,
        ))  # fmt: skip
    elif requests.low < engine.concurrency:
        out.append((
            "tight", f"{name} holds {requests.low:.1f} of {engine.concurrency} requests at once at the end of the "
            "interval", 0.0,
        ))  # fmt: skip
    return out


def _beyond(peak: Estimate, limit: float) -> list[Problem]:
    if peak.low > limit:
        sentence = f"the peaks sum to {_gib(peak.value)} and the card gives {_gib(limit)}"
        return [("does_not_fit", sentence, peak.value - limit)]
    if peak.value > limit:
        sentence = f"the peaks may sum to more than the card gives ({_gib(peak.value)} of {_gib(limit)})"
        return [("tight", sentence, peak.value - limit)]
    if peak.high > limit:
        return [("tight", f"the peaks sum to more than {_gib(limit)} at the end of their interval", 0.0)]
    return []


def _short(found: Prediction) -> float:
    return found.obstacle.shortfall_bytes if found.obstacle else 0.0


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
