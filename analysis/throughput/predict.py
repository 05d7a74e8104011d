"""Throughput and latency of an engine at a stated load, with intervals and what bounds them.

A closed loop of C clients keeps B = min(C, max_num_seqs, requests that the KV pool holds) requests in service; the
others wait. In an open loop of rate r, Little's law B = r x (time in service at B) is solved for B; where no B that
the engine admits reaches r it is saturated, and its queue grows as long as the load lasts. Below that an arrival waits
for a free slot as in a queue of that many servers (Erlang C).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from analysis.calibration import CalibrationError
from analysis.estimate import Basis, Estimate
from analysis.gpus import Sheet
from analysis.throughput.calibration import Choice, Metric
from analysis.throughput.observations import features
from analysis.throughput.roofline import (
    COEFFICIENTS,
    Limits,
    Turn,
    Vector,
    erlang_c,
    seconds,
    turn,
    waiting_turns,
)
from analysis.throughput.work import Work

_MOST_SERVERS = 4096
"""Of the Erlang formula; with more, an arrival that finds no slot below saturation is out of the ordinary."""
_MOST_STEPS = 60
_TOLERANCE = 1e-7

_PARTS: Final[dict[str, tuple[str, ...]]] = {
    "weights bandwidth": ("weights",), "KV bandwidth": ("kv",), "compute": ("prefill_compute", "decode_compute"),
    "overhead": ("step", "prefill_token", "sequence"),
}  # fmt: skip
"""Where the time of a turn goes, by coefficient."""
KV_CAPACITY: Final = "KV capacity"


@dataclass(frozen=True, slots=True)
class Load:
    """A closed loop (`concurrency` clients) or an open one (`rate_per_s`, Poisson); lengths in tokens."""

    input_tokens: int
    output_tokens: int
    concurrency: int | None = None
    rate_per_s: float | None = None

    def __str__(self) -> str:
        how = f"{self.concurrency:,} at once" if self.concurrency else f"{self.rate_per_s:g} requests/s"
        return f"{how}, {self.input_tokens:,} tokens in, {self.output_tokens:,} out"


@dataclass(frozen=True, slots=True)
class Speed:
    """The answer; times in seconds. `ttft` and `tpot` are means; None: without end (saturated), or no second token.

    `itl` is the gap of a step without a prompt, `itl_prefill` that of one with, which is about the longest.
    `bound` names where most of a step's time goes, or the KV capacity where that limits the requests in service.
    `shares` are those of the time of a turn. `most_requests_per_s` is the rate at which the engine saturates.
    """

    load: Load
    tokens_per_s: Estimate
    requests_per_s: float
    ttft: Estimate | None
    tpot: Estimate | None
    itl: Estimate
    itl_prefill: Estimate
    in_service: float
    limited_by: str
    saturated: bool
    most_requests_per_s: float
    bound: str
    shares: Mapping[str, float]
    ideal_tokens_per_s: float | None
    """The same by bandwidth and FLOPs of the sheet alone, MBU = MFU = 1, without any cost of a step."""
    basis: Basis
    origin: str
    warnings: tuple[str, ...] = field(default=())

    def fields(self) -> dict[str, Any]:
        """For JSON. What has no end is null."""
        found: dict[str, Any] = {}
        for name, one in (("output_tokens_per_s", self.tokens_per_s), ("ttft_s", self.ttft), ("tpot_s", self.tpot)):
            found[name] = None if one is None else _round(one.value)
            found[f"{name}_low"] = None if one is None else _round(one.low)
            found[f"{name}_high"] = None if one is None else _round(one.high)
        return found | {
            "bound": self.bound, "saturated": self.saturated, "throughput_basis": self.basis,
        }  # fmt: skip

    def details(self) -> dict[str, Any]:
        return {
            "load": {
                "concurrency": self.load.concurrency, "rate_per_s": self.load.rate_per_s,
                "input_tokens": self.load.input_tokens, "output_tokens": self.load.output_tokens,
            },
            "requests_per_s": _round(self.requests_per_s), "most_requests_per_s": _round(self.most_requests_per_s),
            "requests_in_service": _round(self.in_service), "in_service_limited_by": self.limited_by,
            "itl_s": _round(self.itl.value), "itl_with_prefill_s": _round(self.itl_prefill.value),
            "time_shares": {name: round(share, 4) for name, share in self.shares.items()},
            "ideal_output_tokens_per_s": None if self.ideal_tokens_per_s is None else _round(self.ideal_tokens_per_s),
            "throughput_calibration": self.origin,
        }  # fmt: skip


def _round(value: float) -> float | None:
    """Six significant digits."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Engine:
    """What serves the load: its pipeline ranks, what it admits at the KV pool's value and at both ends of its
    interval, its device's peaks."""

    ranks: tuple[Work, ...]
    limits: Limits
    least: Limits
    most: Limits
    sheet: Sheet | None


@dataclass(frozen=True, slots=True)
class _State:
    """One solution: a steady state as a request finds it, itself included, the mean number in service, the mean wait
    before it."""

    turn: Turn
    in_service: float
    requests_per_s: float
    wait_s: float
    saturated: bool
    most_per_s: float


def speed(engine: Engine, load: Load, choice: Choice) -> Speed:
    """Raises CalibrationError where the calibration cannot be used on this device."""
    rates = choice.rates.seconds_per_unit(engine.sheet)
    state = _solve(engine, engine.limits, load, rates)
    cap, limit = engine.limits.cap()
    at_cap = state.saturated or (load.concurrency is not None and load.concurrency > cap)
    beyond = choice.rates.outside(features(engine.ranks[0], max(state.turn.batch, 1.0), load.input_tokens,
                                           load.output_tokens))  # fmt: skip
    widths: dict[Metric, float] = {
        metric: choice.rates.half_width(metric, choice.distance, beyond) for metric in ("tpot", "ttft", "throughput")
    }
    # Of public coefficients the rows are not here, so no answer by them counts as calibrated.
    own = choice.rates.kind != "public"
    exact = own and choice.distance == 0 and not beyond and len(engine.ranks) == 1
    basis: Basis = "calibrated" if exact else "extrapolated"

    # Slower and faster engines meet the load differently: the ends are solved anew, with the pool's ends.
    pace = widths["throughput"]
    states = [state]
    if load.rate_per_s is not None:
        for limits, by in ((engine.least, pace), (engine.most, -pace)):
            states.append(_solve(engine, limits, load, tuple(rate * math.exp(by) for rate in rates)))
    elif load.concurrency is not None and load.concurrency > engine.least.cap()[0]:
        states += [_solve(engine, limits, load, rates) for limits in (engine.least, engine.most)]

    def estimate(value: Callable[[_State], float], width: float) -> Estimate:
        values = [value(one) for one in states]
        return Estimate(values[0], min(values) * math.exp(-width), max(values) * math.exp(width), basis)

    output = load.output_tokens
    delivered = 0.0 if load.rate_per_s is not None and not any(one.saturated for one in states) else pace
    tokens = estimate(lambda one: one.requests_per_s * output, delivered)
    if load.rate_per_s is not None:  # no engine delivers more than is asked of it
        tokens = Estimate(tokens.value, tokens.low, min(tokens.high, load.rate_per_s * output), basis)
    endless = load.rate_per_s is not None and state.saturated
    ttft = None if endless else estimate(
        lambda one: seconds(one.turn.ttft, rates) + one.wait_s if not (load.rate_per_s and one.saturated) else math.inf,
        widths["ttft"],
    )  # fmt: skip
    tpot = None
    if state.turn.tpot is not None:
        tpot = estimate(lambda one: seconds(one.turn.tpot or (), rates), widths["tpot"])

    spent = _shares(state.turn.cycle, rates)
    dominant = max(spent, key=spent.__getitem__)
    warnings = list(choice.notes)
    if beyond:
        told = ", ".join(f"{name.replace('_', ' ')} by a factor of {factor:.2g}" for name, factor in beyond.items())
        warnings.append(f"beyond the loads of {choice.rates.name}: {told}; intervals are widened")
    if len(engine.ranks) > 1:
        warnings.append("pipeline parallelism: no calibration has seen it")
    if endless:
        warnings.append(
            f"saturated: {load.rate_per_s:g} requests/s are asked and about {state.most_per_s:.3g} can be served; "
            "the queue and the time to the first token grow as long as the load lasts"
        )
    elif load.rate_per_s is not None and any(one.saturated for one in states):
        warnings.append(f"within the error the engine may saturate: it serves about {state.most_per_s:.3g} requests/s")
    return Speed(
        load=load, tokens_per_s=tokens, requests_per_s=state.requests_per_s, ttft=ttft, tpot=tpot,
        itl=estimate(lambda one: seconds(one.turn.itl, rates), widths["tpot"]),
        itl_prefill=estimate(lambda one: seconds(one.turn.itl_prefill, rates), widths["tpot"]),
        in_service=state.in_service, limited_by=limit if at_cap else "load", saturated=state.saturated,
        most_requests_per_s=state.most_per_s, bound=KV_CAPACITY if at_cap and limit == "kv_capacity" else dominant,
        shares=spent, ideal_tokens_per_s=_ideal(engine, load), basis=basis, origin=choice.rates.name,
        warnings=tuple(warnings),
    )  # fmt: skip


def _shares(cycle: Vector, rates: Vector) -> dict[str, float]:
    times = {name: driver * rate for name, driver, rate in zip(COEFFICIENTS, cycle, rates, strict=True)}
    whole = sum(times.values()) or 1.0
    return {part: sum(times[name] for name in names) / whole for part, names in _PARTS.items()}


def _ideal(engine: Engine, load: Load) -> float | None:
    if engine.sheet is None:
        return None
    byte, flop = 1.0 / engine.sheet.bandwidth_bytes_per_s, 1.0 / engine.sheet.flops_16bit_per_s
    peak = (0.0, byte, byte, flop, 0.0, 0.0, 0.0)
    if load.rate_per_s is not None:
        return min(load.rate_per_s, _most_per_s(engine, engine.limits, load, peak)) * load.output_tokens
    return _solve(engine, engine.limits, load, peak).requests_per_s * load.output_tokens


def _solve(engine: Engine, limits: Limits, load: Load, rates: Vector) -> _State:
    if load.rate_per_s is not None:
        return _open_loop(engine, limits, load, rates)
    assert load.concurrency is not None
    batch = min(float(load.concurrency), limits.cap()[0])
    steady = turn(engine.ranks, limits, load.input_tokens, load.output_tokens, batch)
    cycle = seconds(steady.cycle, rates)
    per_s = batch / cycle
    cap, _ = limits.cap()
    most = per_s if batch >= cap else _most_per_s(engine, limits, load, rates)
    return _State(steady, batch, per_s, waiting_turns(load.concurrency, batch) * cycle, load.concurrency > cap, most)


def _most_per_s(engine: Engine, limits: Limits, load: Load, rates: Vector) -> float:
    cap, _ = limits.cap()
    full = turn(engine.ranks, limits, load.input_tokens, load.output_tokens, cap, one_by_one=load.concurrency is None)
    return cap / seconds(full.cycle, rates)


def _open_loop(engine: Engine, limits: Limits, load: Load, rates: Vector) -> _State:
    rate = load.rate_per_s or 0.0
    cap, _ = limits.cap()

    def at(batch: float) -> tuple[Turn, float]:
        found = turn(engine.ranks, limits, load.input_tokens, load.output_tokens, batch, one_by_one=True)
        return found, seconds(found.cycle, rates)

    full, longest = at(cap)
    most = cap / longest
    if rate >= most:
        return _State(full, cap, most, 0.0, True, most)
    # A request finds the mean number of others in service (Poisson arrivals see time averages), and itself. The time
    # it takes grows with their number; what it has to stay below is the number that Little's law then makes of it.
    others = _root(lambda others: rate * at(min(others + 1.0, cap))[1] - others, cap, rate * longest - cap)
    steady, service = at(min(others + 1.0, cap))
    servers = min(max(math.floor(cap), 1), _MOST_SERVERS)
    offered = min(rate * service, servers * (1 - 1e-9))
    wait = erlang_c(servers, offered) * service / (servers - offered) if offered < servers else 0.0
    return _State(steady, rate * service, rate, wait, False, most)


def _root(excess: Callable[[float], float], high: float, at_high: float) -> float:
    """Where `excess` changes its sign between 0, where it is positive, and `high`, where it is `at_high`, negative.

    Regula falsi with the Illinois rule: nearly linear as the excess is, a few steps do.
    """
    low, at_low, place, side = 0.0, excess(0.0), high, 0
    for _ in range(_MOST_STEPS):
        before, place = place, (low * at_high - high * at_low) / (at_high - at_low)
        if abs(place - before) <= _TOLERANCE * place:
            break
        found = excess(place)
        if found > 0.0:
            low, at_low, at_high, side = place, found, at_high / (2 if side > 0 else 1), 1
        else:
            high, at_high, at_low, side = place, found, at_low / (2 if side < 0 else 1), -1
    return place


__all__ = ["CalibrationError", "Engine", "Load", "Speed", "speed"]
