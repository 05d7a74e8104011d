"""Memory of an engine as a sum of terms: read from the probe, from /metrics and from the log, and merged.

Each source gives a partial `MemoryTerms`; `merge` keeps the better source term by term (probe, then metrics,
then log) and warns where two sources contradict each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bench.engine.logs import GIB, ROUNDING_BYTES, LogFacts
from bench.engine.readings import number, read_probe_reports, runtime_peaks
from bench.engine.terms import TERMS, MemoryTerms, known_terms
from bench.engine.worker_terms import worker_terms

__all__ = [
    "MemoryTerms", "from_log", "from_metrics", "from_probe", "merge", "read_probe_reports", "runtime_peaks",
]  # fmt: skip

_CAPACITIES = ("kv_cache_blocks", "kv_cache_tokens", "available_kv_cache_bytes", "init_free_bytes")


def from_probe(probe_dir: str | Path) -> MemoryTerms:
    """Terms from the workers' files; empty ones if there are none."""
    ranks = [worker_terms(report) for report in read_probe_reports(probe_dir)]
    if not ranks:
        return MemoryTerms()
    by_rank = [known_terms(rank) for rank in ranks]
    terms = ranks[0]
    for name in TERMS if len(ranks) > 1 else ():
        known = [value for rank in ranks if (value := getattr(rank, name)) is not None]
        if known and all(isinstance(value, int) for value in known):
            # Capacity is what the smallest rank has; the rest is a cost, where the largest rank decides.
            setattr(terms, name, min(known) if name in _CAPACITIES else max(known))
    terms.ranks = by_rank if len(ranks) > 1 else []
    terms.sources = {name: "probe" for name in known_terms(terms)}
    return terms


def from_metrics(labels: Mapping[str, str]) -> MemoryTerms:
    """Terms from the labels of the gauge `vllm:cache_config_info`, whose values are all strings."""

    def whole(name: str) -> int | None:
        value = number(labels.get(name))
        return None if value is None else int(value)

    blocks = whole("num_gpu_blocks")
    # 0.32 and later resolve the size for the attention layers into a label of its own.
    size = whole("effective_attention_block_size") or whole("block_size")
    terms = MemoryTerms(
        kv_cache_blocks=blocks,
        kv_block_size_tokens=size,
        kv_cache_tokens=(blocks - 1) * size if blocks and size else None,
        kv_cache_reported_tokens=whole("kv_cache_size_tokens"),
    )
    terms.sources = {name: "metrics" for name in known_terms(terms)}
    return terms


def from_log(facts: LogFacts) -> MemoryTerms:
    """Terms from a parsed log, each rounded to 0.01 GiB."""
    terms = MemoryTerms(
        weights_bytes=facts.weights_bytes,
        activation_peak_bytes=facts.activation_peak_bytes,
        non_torch_bytes=facts.non_torch_bytes,
        total_consumed_bytes=facts.total_consumed_bytes,
        cuda_graph_estimate_bytes=facts.cuda_graph_estimate_bytes,
        cuda_graph_bytes=facts.cuda_graph_bytes,
        requested_bytes=facts.requested_bytes,
        available_kv_cache_bytes=facts.available_kv_cache_bytes,
        kv_cache_reported_tokens=facts.kv_cache_tokens,
        init_free_bytes=facts.init_free_bytes,
        init_total_bytes=facts.init_total_bytes,
        model_runner=facts.model_runner,
        attention_backend=facts.attention_backend,
        linear_kernels=facts.linear_kernels + facts.moe_backends,
    )
    terms.sources = {name: "log" for name in known_terms(terms)}
    return terms


def merge(probe: MemoryTerms | None, metrics: MemoryTerms | None, log: MemoryTerms | None) -> MemoryTerms:
    """Term by term the first source that knows it. Contradictions become `warnings`."""
    given = [terms for terms in (probe, metrics, log) if terms is not None]
    merged = MemoryTerms()
    for terms in given:
        for name, value in known_terms(terms).items():
            if name not in merged.sources:
                setattr(merged, name, value)
                merged.sources[name] = terms.sources.get(name, "log")
        merged.ranks = merged.ranks or terms.ranks
        merged.warnings += [warning for warning in terms.warnings if warning not in merged.warnings]
    for better, worse in ((probe, metrics), (probe, log), (metrics, log)):
        if better is not None and worse is not None:
            merged.warnings += _contradictions(better, worse)
    return merged


_COMPARED = (
    "weights_bytes", "activation_peak_bytes", "non_torch_bytes", "total_consumed_bytes", "cuda_graph_bytes",
    "cuda_graph_estimate_bytes", "requested_bytes", "available_kv_cache_bytes", "init_free_bytes",
    "init_total_bytes", "kv_cache_blocks", "kv_block_size_tokens", "kv_cache_reported_tokens",
)  # fmt: skip


def _contradictions(better: MemoryTerms, worse: MemoryTerms) -> list[str]:
    """Terms that two sources give and that differ by more than the worse one's rounding."""
    found = []
    for name in _COMPARED:
        ours, theirs = getattr(better, name), getattr(worse, name)
        if ours is None or theirs is None:
            continue
        values = [rank[name] for rank in better.ranks if rank.get(name) is not None] or [ours]
        slack = 0
        if worse.sources.get(name) == "log" and name.endswith("_bytes"):
            slack = 2 * ROUNDING_BYTES  # a term may be the difference of two rounded figures
        if min(values) - slack <= theirs <= max(values) + slack:
            continue
        left, right = better.sources.get(name), worse.sources.get(name)
        if name.endswith("_bytes"):
            found.append(f"{name}: the {left} says {ours / GIB:.3f} GiB, the {right} {theirs / GIB:.3f} GiB")
        else:
            found.append(f"{name}: the {left} says {ours}, the {right} {theirs}")
    return found
