"""Turns what was measured into the columns of the tables. No decisions here, only names."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from bench.checkpoint import text_config
from bench.load.result import LoadResult
from bench.record.tables import table_schema
from bench.request import Request
from bench.telemetry.samples import Sample
from bench.telemetry.summary import PhasePeaks, TelemetrySummary


def as_json(value: Any) -> str | None:
    """Compact JSON, or None for nothing to say."""
    return None if value in (None, {}, []) else json.dumps(value, sort_keys=True, default=str)


def request_columns(request: Request) -> dict[str, Any]:
    """The configuration of a request."""
    cfg, engine = request.cfg, request.cfg.engine
    plain = (
        "max_num_seqs", "max_num_batched_tokens", "max_model_len", "gpu_memory_utilization", "kv_cache_memory_bytes",
        "kv_cache_dtype", "block_size", "enforce_eager", "enable_prefix_caching", "tensor_parallel_size",
        "pipeline_parallel_size", "cpu_offload_gb", "extra_args", "kv_pool_mode",
    )  # fmt: skip
    return {
        "set_name": cfg.set,
        "sweep": cfg.sweep.name,
        "repeat": cfg.repeat,
        "point_id": request.point_id,
        "model": cfg.model.name,
        "model_family": cfg.model.family,
        "model_hub_id": cfg.model.hub_id,
        "model_source": cfg.model.source,
        "load_format": cfg.model.load_format,
        "architecture": text_config(request.source.config).get("architectures", request.source.config["architectures"])[
            0
        ],
        "model_config_json": as_json(request.source.config),
        "quantization": cfg.quantization.name,
        "quantization_label": cfg.quantization.label,
        "weight_bits": cfg.quantization.weight_bits,
        "dtype": cfg.quantization.dtype,
        "workload": cfg.workload.name,
        "request_json": as_json(dataclasses.asdict(cfg)),
        **{name: getattr(engine, name) for name in plain},
    }


def telemetry_columns(telemetry: TelemetrySummary) -> dict[str, Any]:
    """Device, process and cost columns of an engine start."""
    load = merged_load(telemetry)
    return {
        "device_memory_baseline_bytes": telemetry.device_memory_baseline_bytes,
        "device_memory_peak_bytes": telemetry.device_memory_peak_bytes,
        "device_memory_load_peak_bytes": _largest(load, "device_memory_peak_bytes"),
        "process_memory_peak_bytes": telemetry.process_memory_peak_bytes,
        "process_memory_hidden": telemetry.process_memory_hidden_reason,
        "foreign_memory_peak_bytes": telemetry.foreign_memory_peak_bytes,
        "tree_pss_peak_bytes": telemetry.tree_pss_peak_bytes,
        "tree_rss_peak_bytes": telemetry.tree_rss_peak_bytes,
        "tree_uss_peak_bytes": telemetry.tree_uss_peak_bytes,
        "cgroup_peak_bytes": telemetry.cgroup_peak_bytes,
        "cgroup_scope": telemetry.cgroup_scope,
        "sample_hz": telemetry.achieved_hz,
        "samples": telemetry.samples,
        "missed_ticks": telemetry.missed_ticks,
        "sampler_cpu_s": telemetry.sampler_cpu_s,
        "sampler_cpu_share": telemetry.sampler_cpu_share,
        "pss_hz": telemetry.pss_hz,
        "power_mean_w": _mean(load, "power_mean_w"),
        "power_peak_w": telemetry.power_peak_w,
        "energy_j": telemetry.energy_j,
        "energy_source": telemetry.energy_source,
        "sm_clock_min_mhz": _smallest(load, "sm_clock_min_mhz"),
        "sm_clock_median_mhz": _mean(load, "sm_clock_median_mhz"),
        "temperature_peak_c": telemetry.temperature_peak_c,
        "throttle_reasons": list(telemetry.throttle_names) if telemetry.devices else None,
        "gpu_utilization_mean_pct": _mean(load, "gpu_utilization_mean_pct"),
        "gpu_lost": telemetry.gpu_lost if telemetry.devices else None,
    }


def merged_load(telemetry: TelemetrySummary) -> list[PhasePeaks]:
    """The phases under measured load."""
    return [peaks for name, peaks in telemetry.phases.items() if name.startswith("load:")]


def workload_columns(result: LoadResult) -> dict[str, Any]:
    """What the client and the engine's own counters say of one workload."""
    row: dict[str, Any] = {
        "pattern": "closed_loop",
        "completed": result.completed,
        "failed": result.failed,
        "outcomes_json": as_json(result.outcomes),
        "flags": list(result.flags),
        "window_s": result.whole.window_s,
        "output_tokens_per_s": result.whole.output_tokens_per_s,
        "total_tokens_per_s": result.whole.total_tokens_per_s,
        "requests_per_s": result.whole.requests_per_s,
        "steady_window_s": result.steady.window_s,
        "steady_output_tokens_per_s": result.steady.output_tokens_per_s,
        "preemptions": _whole(result.engine.num_preemptions),
        "prefix_cache_hit_tokens": _whole(result.engine.prefix_cache_hits_tokens),
        # Zero is not a peak: a short load ended between two looks at the gauge.
        "kv_cache_usage_peak": result.engine.kv_cache_usage_max_ratio or None,
        "queue_time_mean_s": result.engine.request_queue_time_mean_s,
        "client_cpu_us_per_token": result.client.cpu_us_per_token,
        "client_share_of_machine": result.client.share_of_machine,
        "loop_lag_p99_s": result.client.loop_lag_p99_s,
        "send_delay_p99_s": result.client.send_delay_p99_s,
    }
    for name in ("concurrency", "num_requests", "input_tokens", "output_tokens", "temperature", "top_p"):
        row[name] = getattr(result.spec, name)
    for name in ("ttft", "tpot", "itl", "e2e"):
        row |= getattr(result, f"{name}_s").columns(name)
    for surplus in ("ttft_count", "tpot_count", "e2e_count"):
        row.pop(surplus)
    return row


def workload_telemetry(peaks: PhasePeaks) -> dict[str, Any]:
    """What the sampler saw during one workload; known only when the whole run has stopped."""
    return {
        "device_memory_peak_bytes": peaks.device_memory_peak_bytes,
        "process_memory_peak_bytes": peaks.process_memory_peak_bytes,
        "tree_pss_peak_bytes": peaks.tree_pss_peak_bytes,
        "power_mean_w": peaks.power_mean_w,
        "energy_j": peaks.energy_j,
    }


def pss_when_ready(samples: Iterable[Sample]) -> int | None:
    """PSS of the process tree between ready and the first load, bytes; the phase `ready` comes again after each."""
    readings = []
    for sample in samples:
        if sample.phase.startswith(("warmup:", "load:", "stop")):
            break
        if sample.phase == "ready" and sample.tree_pss_bytes is not None:
            readings.append(sample.tree_pss_bytes)
    return max(readings, default=None)


def sample_rows(run_id: str, samples: Iterable[Sample]) -> list[dict[str, Any]]:
    """The telemetry timeline."""
    names = [name for name in table_schema("samples").names if name != "run_id"]
    return [{"run_id": run_id, **{name: getattr(sample, name) for name in names}} for sample in samples]


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _known(peaks: list[PhasePeaks], name: str) -> list[float]:
    return [value for value in (getattr(p, name) for p in peaks) if value is not None]


def _largest(peaks: list[PhasePeaks], name: str) -> Any:
    return max(_known(peaks, name), default=None)


def _smallest(peaks: list[PhasePeaks], name: str) -> Any:
    return min(_known(peaks, name), default=None)


def _mean(peaks: list[PhasePeaks], name: str) -> float | None:
    """Mean over phases, weighted by their length."""
    pairs = [(getattr(p, name), p.duration_s) for p in peaks if getattr(p, name) is not None]
    weight = sum(seconds for _, seconds in pairs)
    return sum(value * seconds for value, seconds in pairs) / weight if weight else None
