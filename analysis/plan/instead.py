"""What would fit instead: the smallest departures from a plan that does not hold, each planned anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from analysis.plan import hardware
from analysis.plan.card import Mode, Plan, plan
from analysis.plan.engine import Card, Engine, with_load
from analysis.predict.request import RequestError

SHORTEST_LENGTH = 256
"""Tokens below which a shorter request is no answer."""

_FOUR_BIT = "awq"
_EVERY = "every unquantized model"
_SIXTEEN_BIT = (None, "bf16", "fp16", "fp32")


@dataclass(frozen=True, slots=True)
class Change:
    """A change that is predicted to work, and the plan it leads to."""

    sentence: str
    plan: Plan


def changes(
    engines: Sequence[Engine], card: Card, spare_bytes: int = 0, *, mode: Mode = "utilization", keep_order: bool = False
) -> list[Change]:
    """Single changes after which the plan fits, gentlest first; empty where none alone is enough. Each is planned as
    `plan` is asked to: with these shares or pools, in this order."""

    def planned(changed: Sequence[Engine]) -> Plan | None:
        try:
            return plan(changed, card, mode=mode, spare_bytes=spare_bytes, keep_order=keep_order)
        except RequestError:  # such as a model that has no such format
            return None

    found: list[Change] = []
    for sentence, changed in _candidates(engines, card, planned):
        if sentence.startswith(_EVERY) and any(_FOUR_BIT in one.sentence for one in found):
            continue
        done = planned(changed)
        if done is not None and done.verdict == "fits":
            found.append(Change(sentence, done))
    return found


def _candidates(
    engines: Sequence[Engine], card: Card, planned: Callable[[Sequence[Engine]], Plan | None]
) -> Iterator[tuple[str, Sequence[Engine]]]:
    if any(hardware.lacking(card.request(one)) for one in engines):
        yield from _runnable(engines, card)
        return  # no smaller load makes a card run what it lacks

    def fits(changed: Sequence[Engine]) -> bool:
        done = planned(changed)
        return done is not None and done.verdict == "fits"

    def at_load(percent: int) -> list[Engine]:
        return [with_load(one, concurrency=max(one.concurrency * percent // 100, 1)) for one in engines]

    if best := largest(lambda percent: fits(at_load(percent)), 1, 99):
        fewer = at_load(best)
        yield f"fewer requests at once: {_each(fewer, lambda one: one.concurrency)}", fewer

    def at_length(tokens: int) -> list[Engine]:
        return [with_load(one, length=min(one.length, tokens)) for one in engines]

    longest = max(one.length for one in engines)
    if best := largest(lambda tokens: fits(at_length(tokens)), SHORTEST_LENGTH, longest - 1):
        best = best // 16 * 16
        yield f"shorter requests: at most {best:,} tokens", at_length(best)
    if any("kv_cache_dtype" not in dict(one.settings) for one in engines):
        yield "an fp8 KV cache in every engine", [
            one if "kv_cache_dtype" in dict(one.settings)
            else replace(one, settings=(*one.settings, ("kv_cache_dtype", "fp8")))
            for one in engines
        ]  # fmt: skip
    for place, one in enumerate(engines):
        if one.quantization in _SIXTEEN_BIT:
            smaller = [*engines[:place], replace(one, quantization=_FOUR_BIT), *engines[place + 1 :]]
            yield f"{one.model} in {_FOUR_BIT}", smaller
    if sum(one.quantization in _SIXTEEN_BIT for one in engines) > 1:
        yield f"{_EVERY} in {_FOUR_BIT}", [
            replace(one, quantization=_FOUR_BIT) if one.quantization in _SIXTEEN_BIT else one for one in engines
        ]  # fmt: skip


def _runnable(engines: Sequence[Engine], card: Card) -> Iterator[tuple[str, Sequence[Engine]]]:
    """Every engine that the card does not run, in the nearest format that it does."""
    formats = [hardware.nearest(card.request(one)) for one in engines]
    if any(formats):
        told = ", ".join(f"{one.model} in {name}" for one, name in zip(engines, formats, strict=True) if name)
        yield told, [replace(one, quantization=name) if name else one
                     for one, name in zip(engines, formats, strict=True)]  # fmt: skip


def largest(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """The largest of low..high for which `holds`, taken to be monotone; None where `low` already fails."""
    if high < low or not holds(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _each(engines: Sequence[Engine], of: Callable[[Engine], int]) -> str:
    return ", ".join(f"{of(one)} for {one.name}" for one in engines)
