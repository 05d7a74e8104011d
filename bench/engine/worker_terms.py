"""Memory terms of one rank, out of the report that its worker's probe wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.engine.readings import cuda_peaks, phase_named, runtime_peaks, startup_phases
from bench.engine.terms import MemoryTerms


def worker_terms(report: Mapping[str, Any]) -> MemoryTerms:
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
