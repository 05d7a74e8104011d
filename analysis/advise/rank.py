"""The order of the candidates, and the steps that led to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from analysis.advise.ask import Ask
from analysis.advise.candidates import Candidate, Grade
from analysis.plan import hardware

_ORDER: dict[Grade, int] = {
    "meets": 0, "likely": 1, "misses": 2, "waits": 3, "tight": 4, "does_not_start": 5, "unknown": 6,
}  # fmt: skip


def ranked(found: Iterable[Candidate], ask: Ask) -> list[Candidate]:
    """Of every model and format its best settings, best candidate first.

    By grade; then by quality where the user scored every candidate of a grade; then by predicted throughput; then
    by the memory that is left. Where requests wait, what holds most of them comes first. An fp8 KV cache counts below
    the model's own type where both do as well: it changes answers, and its harm is not measured here.
    """
    everything = [one for one in found if ask.least_quality is None or (one.quality or 0.0) >= ask.least_quality]
    best: dict[tuple[str, str], Candidate] = {}
    for one in sorted(everything, key=_settings_key):
        best.setdefault((one.model, one.quantization), one)
    scored = {grade: all(one.quality is not None for one in best.values() if one.grade == grade) for grade in _ORDER}

    def key(one: Candidate) -> tuple[float, ...]:
        quality = -(one.quality or 0.0) if scored[one.grade] else 0.0
        return (_ORDER[one.grade], quality, _waiting(one), -one.tokens_per_s, _left(one))

    return sorted(best.values(), key=key)


def _settings_key(one: Candidate) -> tuple[float, ...]:
    """Within one format: the grade, what holds most where requests wait, the model's own KV type, throughput to a
    hundredth, the smaller token budget."""
    speed = float(f"{one.tokens_per_s:.2g}")
    return (_ORDER[one.grade], _waiting(one), one.kv_cache_dtype != "auto", -speed, one.max_num_batched_tokens)


def _waiting(one: Candidate) -> float:
    """Less is better; to two digits, so that a sliver decides nothing."""
    return -float(f"{one.held:.2g}") if one.grade == "waits" else 0.0


def _left(one: Candidate) -> float:
    if one.prediction is None:
        return 0.0
    return one.prediction.device_peak.value - one.prediction.settings.device.total_bytes


def steps(order: Sequence[Candidate], ask: Ask) -> list[str]:
    """The decisions in words: what starts, what holds the load, what meets the targets, what is fastest."""
    told = []
    names = [f"{one.model}:{one.quantization}" for one in order]

    def listed(*grades: Grade) -> str:
        return ", ".join(name for name, one in zip(names, order, strict=True) if one.grade in grades)

    out: dict[str, list[str]] = {}
    for name, one in zip(names, order, strict=True):
        if one.grade in ("does_not_start", "unknown"):
            out.setdefault(one.why, []).append(name)
    for why, which in out.items():
        told.append(f"{', '.join(which)} {'is' if len(which) == 1 else 'are'} out: {why}")
    if late := listed("waits"):
        first = next(one for one in order if one.grade == "waits")
        kv = " with an fp8 KV cache" if first.kv_cache_dtype != "auto" else ""
        told.append(f"these would start and let requests wait: {late}; the first holds most{kv}: {first.why}")
    if missed := listed("misses"):
        told.append(f"these hold the load and miss a target: {missed}")
    good = [one for one in order if one.grade in ("meets", "likely")]
    if not good:
        told.append("nothing is predicted to serve this load within the targets on this card")
        return told
    first = good[0]
    if len(good) > 1:
        told.append(f"of what is left, {first.model}:{first.quantization} {_why_first(first, good)}")
    fewest = [one for one in good if one.quantization in ("bf16", "fp16")]
    if fewest and fewest[0] is not first:
        told.append(f"{fewest[0].model}:{fewest[0].quantization}, which gives up nothing, holds the load as well")
    if lacking := [name for name, one in zip(names, order, strict=True) if one in good and one.quality is None]:
        which = "no score was given" if len(lacking) == len(good) else f"no score was given for {', '.join(lacking)}"
        told.append(f"quality is not part of this order: {which} (--quality FILE); measure it for your task")
    for one in good:
        if note := hardware.half_note(one.quantization, ask.gpu) or hardware.slower_note(one.quantization, ask.gpu):
            told.append(f"{one.model}:{one.quantization}: {note}")
    return told


def _why_first(first: Candidate, good: Sequence[Candidate]) -> str:
    """What put `first` before the others, by the keys of `ranked` in their order."""
    grade = [one for one in good if one.grade == first.grade]
    others = [one for one in grade if one is not first]
    if not others:
        return "alone meets everything at the ends of the intervals too" if first.grade == "meets" else "comes first"
    if all(one.quality is not None for one in grade) and any(one.quality != first.quality for one in others):
        tied = [one for one in others if one.quality == first.quality]
        return "has the highest score" + (", with another of the same" if tied else "")
    if all(one.tokens_per_s < first.tokens_per_s for one in others):
        return "has the highest predicted throughput"
    tied = [one for one in others if one.tokens_per_s == first.tokens_per_s]
    names = ", ".join(f"{one.model}:{one.quantization}" for one in tied)
    if not first.tokens_per_s:
        return "leaves the most memory; no throughput is predicted"
    return f"has the same predicted throughput as {names}, and no less memory left"
