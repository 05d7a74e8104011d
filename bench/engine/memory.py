"""Memory of an engine as a sum of terms: read from the probe, from /metrics and from the log, and merged.

Each source gives a partial `MemoryTerms`; `merge` keeps the better source term by term (probe, then metrics,
then log) and warns where two sources contradict each other.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.engine.logs import GIB, ROUNDING_BYTES, LogFacts
from bench.engine.readings import (
    cuda_peaks,
    number,
    phase_named,
    read_probe_reports,
    runtime_peaks,
    startup_phases,
)

__all__ = [
    "MemoryTerms", "from_log", "from_metrics", "from_probe", "merge", "read_probe_reports", "runtime_peaks",
]  # fmt: skip

Source = Literal["probe", "metrics", "log"]


@dataclass
class MemoryTerms:
    """Terms of one engine start, of its largest rank; None is not known. `_bytes` are bytes, blocks and
    tokens counts.

    On CUDA the device memory in use is (outside the budget) the context, plus `weights_bytes`,
    `non_torch_bytes`, `kv_cache_bytes`, `cuda_graph_bytes` and a transient of up to `activation_peak_bytes`.
    """

    weights_bytes: int | None = None
    """As vLLM accounts for them: growth of device memory while loading. None on the CPU backend."""
    weights_tensor_bytes: int | None = None
    """Unique storages of parameters and buffers, before kernels repack them."""
    weights_parameter_bytes: int | None = None
    weights_buffer_bytes: int | None = None
    weights_resident_bytes: int | None = None
    """CUDA: unique storages after repacking. CPU: growth of the worker's RSS while loading, because prepacked
    weights leave the list of parameters."""
    activation_peak_bytes: int | None = None
    """Without the CUDA-graph estimate. Where vLLM profiles, its own figure: 0.25 and 0.26 the rise of torch's
    peak over the loaded model, 0.32 and later the part of it that is freed again. With a fixed pool vLLM
    measures nothing; then torch's peak in the profiling forward minus what stays allocated after it."""
    non_torch_bytes: int | None = None
    total_consumed_bytes: int | None = None
    cuda_graph_estimate_bytes: int | None = None
    cuda_graph_bytes: int | None = None
    requested_bytes: int | None = None
    available_kv_cache_bytes: int | None = None
    kv_cache_bytes: int | None = None
    kv_cache_blocks: int | None = None
    kv_block_size_tokens: int | None = None
    kv_cache_tokens: int | None = None
    """(blocks - 1) // cache groups x tokens per block: block 0 is vLLM's null block and holds no request's
    tokens.
    """
    kv_cache_reported_tokens: int | None = None
    """vLLM's own: requests of max_model_len that fit, times max_model_len. Not blocks x block size."""
    kv_bytes_per_block: int | None = None
    torch_allocated_peak_bytes: int | None = None
    torch_reserved_peak_bytes: int | None = None
    runtime_activation_peak_bytes: int | None = None
    """Peak under load above the level when the peaks were reset. CUDA: torch's allocator; CPU: the worker's
    RSS.
    """
    worker_rss_start_bytes: int | None = None
    worker_rss_load_bytes: int | None = None
    worker_rss_kv_bytes: int | None = None
    worker_rss_ready_bytes: int | None = None
    worker_rss_load_peak_bytes: int | None = None
    worker_rss_runtime_peak_bytes: int | None = None
    init_free_bytes: int | None = None
    init_total_bytes: int | None = None
    model_runner: str | None = None
    attention_backend: str | None = None
    linear_kernels: list[str] = field(default_factory=list)
    effective_max_num_seqs: int | None = None
    effective_max_num_batched_tokens: int | None = None
    effective_max_model_len: int | None = None
    sources: dict[str, Source] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    ranks: list[dict[str, Any]] = field(default_factory=list)
    """Terms of each rank, where there are several; the fields above are then their maxima."""

    def columns(self) -> dict[str, Any]:
        """The columns of table `engines`; every one of them, None where a term is not known."""
        row = {name: getattr(self, name) for name in TERMS if name not in _NO_COLUMN}
        row["memory_sources_json"] = json.dumps(self.sources, sort_keys=True) if self.sources else None
        row["ranks_json"] = json.dumps(self.ranks, sort_keys=True) if self.ranks else None
        return row


_CAPACITIES = ("kv_cache_blocks", "kv_cache_tokens", "available_kv_cache_bytes", "init_free_bytes")
_ABOUT = ("sources", "warnings", "ranks")
TERMS = tuple(f.name for f in dataclasses.fields(MemoryTerms) if f.name not in _ABOUT)
_NO_COLUMN = frozenset({"weights_parameter_bytes", "weights_buffer_bytes"})


def from_probe(probe_dir: str | Path) -> MemoryTerms:
    """Terms from the workers' files; empty ones if there are none."""
    ranks = [_rank_terms(report) for report in read_probe_reports(probe_dir)]
    if not ranks:
        return MemoryTerms()
    terms = ranks[0]
    for name in TERMS if len(ranks) > 1 else ():
        known = [value for rank in ranks if (value := getattr(rank, name)) is not None]
        if known and all(isinstance(value, int) for value in known):
            # Capacity is what the smallest rank has; everything else is a cost, where the largest rank
            # decides.
            setattr(terms, name, min(known) if name in _CAPACITIES else max(known))
    if len(ranks) > 1:
        terms.ranks = [_known(rank) for rank in map(_rank_terms, read_probe_reports(probe_dir))]
    terms.sources = {name: "probe" for name in _known(terms)}
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
    terms.sources = {name: "metrics" for name in _known(terms)}
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
    terms.sources = {name: "log" for name in _known(terms)}
    return terms


def merge(probe: MemoryTerms | None, metrics: MemoryTerms | None, log: MemoryTerms | None) -> MemoryTerms:
    """Term by term the first source that knows it. Contradictions become `warnings`."""
    given = [terms for terms in (probe, metrics, log) if terms is not None]
    merged = MemoryTerms()
    for terms in given:
        for name, value in _known(terms).items():
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


def _known(terms: MemoryTerms) -> dict[str, Any]:
    return {name: value for name in TERMS if (value := getattr(terms, name)) not in (None, [])}


def _rank_terms(report: Mapping[str, Any]) -> MemoryTerms:
    """The terms of one worker's report."""
    config, budget = report.get("config") or {}, report.get("budget") or {}
    kv, profile = report.get("kv_cache") or {}, budget.get("profile") or {}
    terms = MemoryTerms(
        weights_bytes=budget.get("model_memory_usage"),
        cuda_graph_estimate_bytes=budget.get("cudagraph_memory_estimate"),
        total_consumed_bytes=budget.get("total_consumed"),
        available_kv_cache_bytes=budget.get("available_kv_cache_memory_bytes"),
        kv_cache_bytes=kv.get("allocated_bytes"),
        kv_cache_blocks=kv.get("num_blocks"),
        kv_bytes_per_block=kv.get("bytes_per_block"),
        model_runner=(report.get("runner") or {}).get("version"),
        effective_max_num_seqs=config.get("max_num_seqs"),
        effective_max_num_batched_tokens=config.get("max_num_batched_tokens"),
        effective_max_model_len=config.get("max_model_len"),
    )
    _budget_terms(terms, report, budget, profile)
    _weight_terms(terms, report)
    _kv_terms(terms, report, kv, config)
    _process_terms(terms, report)
    _kernel_terms(terms, report.get("kernels") or {})
    return terms


def _budget_terms(
    terms: MemoryTerms, report: Mapping[str, Any], budget: Mapping[str, Any], profile: Mapping[str, Any]
) -> None:
    on_cuda = "init_snapshot" in budget
    fixed_pool = (report.get("config") or {}).get("kv_cache_memory_bytes") is not None
    initial = budget.get("init_snapshot") or {}
    terms.init_free_bytes, terms.init_total_bytes = initial.get("free_memory"), initial.get("total_memory")
    terms.requested_bytes = budget.get("requested_memory")
    if not on_cuda and not fixed_pool:
        terms.requested_bytes = budget.get("requested_cpu_memory")
        measured = phase_named(report, "determine_available_memory")
        terms.available_kv_cache_bytes = measured.get("result") if measured else None
    if "total_consumed" in budget:
        terms.activation_peak_bytes = profile.get("transient_peak_headroom")
    else:
        terms.activation_peak_bytes = budget.get("peak_activation_memory")
    terms.non_torch_bytes = budget.get("non_torch_memory", profile.get("non_torch_increase"))
    forward = phase_named(report, "runner.profile_run")
    after = ((forward or {}).get("after") or {}).get("cuda")
    if after and not profile and not (forward or {}).get("error"):
        if terms.activation_peak_bytes is None:
            terms.activation_peak_bytes = after["allocated_peak_bytes"] - after["allocated_bytes"]
        if terms.non_torch_bytes is None and "non_torch_memory" in initial:
            # vLLM's own definition: in use on the device, less what torch has reserved, since its first look.
            outside = after["total_bytes"] - after["free_bytes"] - after["reserved_bytes"]
            terms.non_torch_bytes = outside - initial["non_torch_memory"]
    captures = [phase for phase in startup_phases(report) if phase["name"] == "runner.capture_model"]
    # Estimating captures a few graphs as well.
    captures = [phase for phase in captures if "runner.profile_cudagraph_memory" not in phase["inside"]]
    warm = phase_named(report, "compile_or_warm_up_model")
    if captures:
        terms.cuda_graph_bytes = captures[-1].get("result")
    elif on_cuda and warm and warm.get("end_unix_s") and not warm.get("error"):
        terms.cuda_graph_bytes = 0  # eager: there was nothing to capture


def _weight_terms(terms: MemoryTerms, report: Mapping[str, Any]) -> None:
    loads = (report.get("weights") or {}).get("loads") or []
    before = [load["before_repack"] for load in loads if load.get("before_repack")]
    if before:  # a draft model is a second load
        terms.weights_tensor_bytes = sum(one["total_bytes"] for one in before)
        terms.weights_parameter_bytes = sum(one["parameter_bytes"] for one in before)
        terms.weights_buffer_bytes = sum(one["buffer_bytes"] for one in before)
    phase = phase_named(report, "load_model")
    if phase is None or not phase.get("after") or phase.get("error"):
        return
    if phase["after"].get("cuda"):
        after = [load["after_repack"] for load in loads if load.get("after_repack")]
        if after:
            terms.weights_resident_bytes = sum(one["total_bytes"] for one in after)
        return
    grown = [phase[when]["host"].get("rss_bytes") for when in ("before", "after")]
    if None not in grown:
        terms.weights_resident_bytes = grown[1] - grown[0]


def _kv_terms(
    terms: MemoryTerms, report: Mapping[str, Any], kv: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    groups = kv.get("groups") or []
    sizes = [group["block_size_tokens"] for group in groups if group.get("block_size_tokens")]
    terms.kv_block_size_tokens = min(sizes) if sizes else config.get("block_size")
    if terms.kv_cache_blocks and sizes:
        terms.kv_cache_tokens = (terms.kv_cache_blocks - 1) // len(groups) * min(sizes)


def _process_terms(terms: MemoryTerms, report: Mapping[str, Any]) -> None:
    def rss(phase_name: str) -> int | None:
        phase = phase_named(report, phase_name)
        value = ((phase or {}).get("after") or {}).get("host", {}).get("rss_bytes")
        return None if value is None else int(value)

    imported = report.get("start", {}).get("host", {}).get("rss_bytes")
    terms.worker_rss_start_bytes = rss("init_device") or imported
    terms.worker_rss_load_bytes = rss("load_model")
    terms.worker_rss_kv_bytes = rss("initialize_from_config")
    terms.worker_rss_ready_bytes = rss("compile_or_warm_up_model")
    phases = startup_phases(report)
    readings = [phase[when] for phase in phases for when in ("before", "after") if phase.get(when)]
    peaks = [peak for reading in readings if (peak := reading["host"].get("rss_peak_bytes")) is not None]
    terms.worker_rss_load_peak_bytes = max(peaks, default=None)
    terms.torch_allocated_peak_bytes, terms.torch_reserved_peak_bytes = cuda_peaks(readings)
    under_load = runtime_peaks([report], all_windows=True)
    terms.runtime_activation_peak_bytes = under_load["activation_peak_bytes"]
    terms.worker_rss_runtime_peak_bytes = under_load["worker_rss_peak_bytes"]


def _kernel_terms(terms: MemoryTerms, kernels: Mapping[str, Any]) -> None:
    backends: Mapping[str, int] = kernels.get("attention_backends") or {}
    terms.attention_backend = "+".join(sorted(backends, key=lambda name: (-backends[name], name))) or None
    names: Sequence[str] = [
        "/".join([row["method"], *([row["scheme"]] if row.get("scheme") else []), *row.get("kernels", [])])
        for row in [*(kernels.get("linear") or ()), *(kernels.get("moe") or ())]
        if row["layer"] != "VocabParallelEmbedding"
    ]
    terms.linear_kernels = list(dict.fromkeys(names))
