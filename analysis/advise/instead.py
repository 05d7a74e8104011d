"""What would serve the load where nothing does: the smallest single departures from the question, each predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from analysis import gpus
from analysis.advise.ask import Ask
from analysis.advise.candidates import Candidate, candidates
from analysis.advise.rank import ranked
from analysis.plan.instead import largest
from analysis.predict.request import RequestError
from analysis.predict.settings import DEFAULT_GPU

SHORTEST_INPUT = 64
"""Prompt tokens below which a shorter prompt is no answer."""

_SMALL = ("fp8", "awq", "gptq")
"""Formats that are tried where the user named others."""


def changes(ask: Ask) -> list[str]:
    """Sentences, gentlest first: fewer requests, shorter prompts, another format, two cards, a larger card. Every
    format of the question, and an fp8 KV cache, is tried with each."""
    return [sentence for sentence in (*_load(ask), *_formats(ask), *_cards(ask)) if sentence]


def _serves(ask: Ask, tensor_parallel_size: int = 1) -> Candidate | None:
    """The best candidate, where it serves the load."""
    try:
        order = ranked(candidates(ask, tensor_parallel_size), ask)
    except RequestError:  # such as a rate that is no rate any more
        return None
    return order[0] if order and order[0].grade in ("meets", "likely") else None


def _load(ask: Ask) -> Iterator[str]:
    if ask.concurrency is not None:
        whole = ask.concurrency
        yield _found(lambda many: replace(ask, concurrency=many), 1, whole - 1, lambda many: (
            f"fewer requests at once: {many} instead of {whole}"))  # fmt: skip
    else:
        rate = ask.rate_per_s or 0.0
        yield _found(lambda percent: replace(ask, rate_per_s=rate * percent / 100), 1, 99, lambda percent: (
            f"fewer requests: {rate * percent / 100:.3g} a second instead of {rate:g}"))  # fmt: skip
    steps = (ask.input_tokens - 1) // SHORTEST_INPUT
    yield _found(lambda step: replace(ask, input_tokens=step * SHORTEST_INPUT), 1, steps, lambda step: (
        f"shorter prompts: {step * SHORTEST_INPUT:,} tokens instead of {ask.input_tokens:,}"))  # fmt: skip


def _found(asked: Callable[[int], Ask], low: int, high: int, said: Callable[[int], str]) -> str:
    """The sentence for the largest value that serves; empty where none does."""
    best = largest(lambda value: _serves(asked(value)) is not None, low, high)
    served = _serves(asked(best)) if best is not None else None
    return f"{said(best)}, {_as(served)}" if best is not None and served else ""


def _formats(ask: Ask) -> Iterator[str]:
    others = tuple(name for name in _SMALL if name not in ask.formats)
    if others and (served := _serves(replace(ask, formats=others))):
        yield f"another weight format, {_as(served)}"


def _cards(ask: Ask) -> Iterator[str]:
    if served := _serves(ask, 2):
        yield f"two such cards with --tensor-parallel-size 2, {_as(served)}"
    for card in sorted(gpus.GPUS, key=lambda one: one.total_bytes):
        if card.total_bytes <= _size(ask):
            continue
        if served := _serves(replace(ask, gpu=card.name, gpu_total_gib=None)):
            yield f"a larger card: {card.name} ({card.total_bytes / gpus.GIB:.0f} GiB), {_as(served)}"
            return


def _size(ask: Ask) -> int:
    if ask.gpu_total_gib is not None:
        return round(ask.gpu_total_gib * gpus.GIB)
    return gpus.find(ask.gpu or DEFAULT_GPU).total_bytes


def _as(one: Candidate) -> str:
    kv = " and an fp8 KV cache" if one.kv_cache_dtype != "auto" else ""
    return f"with {one.model}:{one.quantization}{kv}"
