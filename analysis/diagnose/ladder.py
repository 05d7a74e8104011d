"""Changes that answer a failed start, in the order of least harm, each with its predicted gain.

The order: what costs nothing, before what costs latency under load, before what costs throughput always, before what
a request can no longer ask for, before what changes the model's answers, before what makes every step slow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.arithmetic import ArithmeticRefusal, kv_blocks_per_request, kv_bytes_per_block
from analysis.diagnose.case import TOO_LITTLE_KV, Case
from analysis.diagnose.terms import GIB, Terms, Unpredictable, terms_of, version_of

LEAST_SEQS, LEAST_TOKENS, LEAST_LENGTH = 1, 256, 256
"""Where halving a setting ends."""

_SHARE_STEP, _MOST_SHARE, _LEAST_SHARE = 0.01, 0.98, 0.10
_SIXTEEN_BIT = ("bf16", "fp16", "fp32")
_SMALLER = {"cuda": ("fp8", "awq"), "cpu": ("int8-w8a8", "awq")}


@dataclass(frozen=True, slots=True)
class Rung:
    """One change, or several at once.

    `settings` are the changed fields by the names of the row's columns. `gain_bytes` is how much memory the change is
    predicted to free where it ran out. `works`: that covers the shortfall with its margin, and nothing else is
    predicted to stop the start. `note` says why it does not work, or what it costs.
    """

    name: str
    settings: Mapping[str, Any]
    gain_bytes: float
    works: bool
    note: str

    @property
    def change(self) -> str:
        """For people: `max_num_seqs 64, max_model_len 4096`."""
        return ", ".join(f"{name} {_shown(name, value)}" for name, value in self.settings.items())

    def overrides(self) -> dict[str, Any]:
        """The change as settings of `python -m bench`."""
        return {"quantization" if name == "quantization" else f"engine.{name}": value
                for name, value in self.settings.items()}  # fmt: skip


def ladder(case: Case) -> list[Rung]:
    """Every rung, gentlest first: of each setting its smallest change that works, or its largest where none does.

    Where no single change works a last rung joins them until the prediction holds. Raises Unpredictable where nothing
    can be predicted for this row.
    """
    terms = terms_of(case)
    before = _settings(case)
    # Only where the failure did not say what was missing must the prediction itself say it.
    base = terms.lacking(before)
    short = float(case.shortfall_bytes) if case.shortfall_bytes is not None else max(base, 0.0)
    need = short + case.margin_bytes
    rungs = []
    for name, candidates in _changes(case, before, need):
        best = None
        for change, cost in candidates:
            best = _tried(name, terms, before, base, change, need, cost)
            if best is not None and best.works:
                break
        if best is not None:
            rungs.append(best)
    if rungs and not any(rung.works for rung in rungs):
        rungs += _pair(case, rungs, terms, before, base, need) or _together(rungs, terms, before, base, need)
    return rungs


def first_working(rungs: Sequence[Rung]) -> Rung | None:
    """The gentlest rung that is predicted to work."""
    return next((rung for rung in rungs if rung.works), None)


def _tried(
    name: str, terms: Terms, before: Mapping[str, Any], base: float, change: Mapping[str, Any], need: float, cost: str
) -> Rung | None:
    after = {**before, **change}
    try:
        gain = base - terms.lacking(after)
        stopped = terms.starts(after)
    except Unpredictable as why:
        return Rung(name, change, 0.0, False, f"not predicted: {why}")
    if gain < need:
        return Rung(name, change, gain, False, f"frees {gain / GIB:.2f} of {need / GIB:.2f} GiB")
    if stopped:
        return Rung(name, change, gain, False, f"would then fail otherwise: {stopped}")
    return Rung(name, change, gain, True, cost)


Candidates = Iterator[tuple[dict[str, Any], str]]
"""Changes of one setting from the smallest on, each with what it costs."""


def _changes(case: Case, before: Mapping[str, Any], need: float) -> Iterator[tuple[str, Candidates]]:
    seqs, tokens = before.get("max_num_seqs"), before.get("max_num_batched_tokens")
    pool, too_small = before.get("kv_cache_memory_bytes"), case.cause in TOO_LITTLE_KV
    usable = usable_kv_bytes(case, before)
    if usable and not too_small and (usable < pool if pool else case.on_cpu):
        change = {"kv_cache_memory_bytes": usable}
        yield "no more KV cache than can be used", iter([(change, "costs nothing: more is never used")])
    if seqs and seqs > LEAST_SEQS:
        yield "fewer sequences", _halved("max_num_seqs", int(seqs), LEAST_SEQS, "fewer requests run at once")
    if tokens and tokens > LEAST_TOKENS:
        least = max(LEAST_TOKENS, int(seqs or 1))
        yield "fewer batched tokens", _halved("max_num_batched_tokens", int(tokens), least, "slower prefill")
    if not case.on_cpu and not before.get("enforce_eager"):
        yield "no CUDA graphs", iter([({"enforce_eager": True}, "slower decoding at small batches")])
    if pool and too_small:
        yield "larger KV pool", _pools(int(pool), -need, "less is left for others on the device")
    elif pool:
        yield "smaller KV pool", _pools(int(pool), need, "fewer tokens in the KV cache")
    else:
        yield "another share of the device", _shares(case, before)
    if length := before.get("max_model_len"):
        least = max(LEAST_LENGTH, case.longest_tokens or 0)
        if length > least:
            yield "shorter requests", _lengths(int(length), least)
    if not case.on_cpu and before.get("kv_cache_dtype") in (None, "auto"):
        yield "fp8 KV cache", iter([({"kv_cache_dtype": "fp8"}, "KV entries of 8 bits; check the answers")])
    formats = _SMALLER["cpu" if case.on_cpu else "cuda"]
    if before.get("quantization") in _SIXTEEN_BIT:
        yield "smaller weights", iter([({"quantization": one}, "another checkpoint; check the answers")
                                       for one in formats])  # fmt: skip
    elif before.get("quantization") in ("fp8", "fp8-dynamic", "fp8-block", "int8-w8a8", "gptq-int8"):
        yield "smaller weights", iter([({"quantization": "awq"}, "another checkpoint; check the answers")])
    if not case.on_cpu:
        yield "weights in host memory", _offloads(case, before, need)


def _halved(name: str, value: int, least: int, cost: str) -> Candidates:
    while value > least:
        value = max(value // 2, least)
        yield {name: value}, cost


def usable_kv_bytes(case: Case, before: Mapping[str, Any]) -> int | None:
    """The pool that as many of the longest requests as may run at once fill, bytes on one rank, with vLLM's null block;
    None where a limit is not known, or with a prefix cache, which finds a use for any size."""
    seqs, length = before.get("max_num_seqs"), before.get("max_model_len")
    if not seqs or not length or case.config is None or case.row.get("enable_prefix_caching"):
        return None
    block = case.row.get("kv_block_size_tokens") or case.row.get("block_size") or (128 if case.on_cpu else 16)
    options: dict[str, Any] = {"dtype": before.get("dtype"), "kv_dtype": before.get("kv_cache_dtype") or "auto",
               "tensor_parallel_size": case.row.get("tensor_parallel_size") or 1,
               "pipeline_parallel_size": case.row.get("pipeline_parallel_size") or 1}  # fmt: skip
    try:
        blocks = int(seqs) * kv_blocks_per_request(case.config, int(length), block_tokens=block, **options) + 1
        size = blocks * kv_bytes_per_block(case.config, block, **options)
    except ArithmeticRefusal:
        return None
    return math.ceil(size / 2**20) * 2**20


def _pools(pool: int, less: float, cost: str) -> Candidates:
    """Just enough less (or more), on a whole number of MiB."""
    step = 2**20
    if (changed := math.floor((pool - less) / step) * step if less > 0 else math.ceil((pool - less) / step) * step) > 0:
        yield {"kv_cache_memory_bytes": changed}, cost


def _shares(case: Case, before: Mapping[str, Any]) -> Candidates:
    """Up where the budget was too small for the KV cache, down where something beside the budget ran out."""
    from analysis import defaults
    from analysis.arithmetic.weights import parse_version

    share = before.get("gpu_memory_utilization")
    if share is None:
        share = defaults.gpu_memory_utilization(parse_version(version_of(case.row)))
    # A CPU engine never takes its share too small: it fails where the share is more than there is.
    up = case.cause in (*TOO_LITTLE_KV, "cannot_fit") or case.phase == "kv_allocation" and not case.on_cpu
    cost = "less is left for others on the device" if up else "a smaller KV pool"
    for step in range(1, 100):
        changed = round(share + (_SHARE_STEP if up else -_SHARE_STEP) * step, 2)
        if _LEAST_SHARE <= changed <= _MOST_SHARE:
            yield {"gpu_memory_utilization": changed}, cost


def _offloads(case: Case, before: Mapping[str, Any], need: float) -> Candidates:
    """Up to half of the weights: a model that mostly lies in host memory is no answer."""
    offloaded, size = float(before.get("cpu_offload_gb") or 0), math.ceil(need / GIB) + 1
    weights = float(case.row.get("expected_weights_bytes") or case.row.get("weights_bytes") or 0)
    while (offloaded + size) * GIB <= weights / 2:
        yield {"cpu_offload_gb": offloaded + size}, "every step reads them over the bus"
        size *= 2


def _lengths(length: int, least: int) -> Candidates:
    while length > least:
        length = max(length * 3 // 4 // 16 * 16, least)
        yield {"max_model_len": length}, "longer requests are refused"


def _pair(
    case: Case, rungs: Sequence[Rung], terms: Terms, before: Mapping[str, Any], base: float, need: float
) -> list[Rung]:
    """A rung that frees enough and would then fail otherwise, with the gentlest change that mends that."""
    for rung in rungs:
        if rung.gain_bytes < need:
            continue
        for name, candidates in _changes(case, before, need):
            for change, cost in candidates:
                if set(change) & set(rung.settings):
                    continue
                both = {**rung.settings, **change}
                found = _tried(f"{rung.name} + {name}", terms, before, base, both, need, cost)
                if found is not None and found.works:
                    return [found]
    return []


def _together(
    rungs: Sequence[Rung], terms: Terms, before: Mapping[str, Any], base: float, need: float
) -> list[Rung]:
    """All rungs so far joined, gentlest first, until they are enough; empty where even all of them are not."""
    joined: dict[str, Any] = {}
    names = []
    for rung in rungs:
        if rung.gain_bytes <= 0:
            continue
        joined |= rung.settings
        names.append(rung.name)
        found = _tried(" + ".join(names), terms, before, base, dict(joined), need, "several changes at once")
        if found is not None and found.works and len(names) > 1:
            return [found]
    return []


def _settings(case: Case) -> dict[str, Any]:
    """The row's settings, those that vLLM resolved where nobody gave one."""
    row = case.row
    names = (
        "max_num_seqs", "max_num_batched_tokens", "max_model_len", "gpu_memory_utilization", "kv_cache_memory_bytes",
        "kv_cache_dtype", "enforce_eager", "quantization", "dtype", "cpu_offload_gb",
    )  # fmt: skip
    found = {name: row.get(name) for name in names}
    for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len"):
        found[name] = found[name] or row.get(f"effective_{name}")
    return {name: value for name, value in found.items() if value is not None}


def _shown(name: str, value: Any) -> str:
    if name == "kv_cache_memory_bytes":
        return f"{value / GIB:.2f} GiB" if value >= GIB else f"{value / 2**20:.0f} MiB"
    if name == "cpu_offload_gb":
        return f"{value:g} GiB"
    return f"{value:g}" if isinstance(value, float) else str(value)
