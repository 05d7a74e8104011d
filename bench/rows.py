"""Turns what was measured into the columns of the tables. No decisions here, only names."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

from bench.checkpoint import text_config
from bench.drift import drift_columns
from bench.load.growth import latency_growth
from bench.load.result import LoadResult
from bench.outcome import Stretch
from bench.record.tables import table_schema
from bench.request import Request
from bench.telemetry import throttle
from bench.telemetry.samples import Sample
from bench.telemetry.summary import PhasePeaks, TelemetrySummary
from bench.telemetry.window import load_window


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


def telemetry_flags(row: dict[str, Any]) -> list[str]:
    """Flags that follow from what the telemetry saw, and from how the engine was launched."""
    flags = []
    if set(row.get("throttle_reasons") or ()) - throttle.BENIGN:
        flags.append("throttled")
    if row.get("foreign_memory_peak_bytes"):
        flags.append("foreign_gpu_memory")
    if row.get("gpu_lost"):
        flags.append("gpu_lost")
    if row.get("launcher_fallback"):
        flags.append("launcher_fallback")
    return flags


def merged_load(telemetry: TelemetrySummary) -> list[PhasePeaks]:
    """The phases under measured load."""
    return [peaks for name, peaks in telemetry.phases.items() if name.startswith("load:")]


# What the load client calls it -> what the table does. Names of the table's first version stay.
_RENAMED = {
    "seed": "run_seed",
    "client_workers": "workers",
    "engine_num_preemptions": "preemptions",
    "engine_prefix_cache_hits_tokens": "prefix_cache_hit_tokens",
    "engine_request_queue_time_mean_s": "queue_time_mean_s",
    "engine_gauge_kv_cache_usage_max_ratio": "kv_cache_usage_peak",
    "engine_gauge_requests_running_mean": "requests_running_mean",
    "engine_gauge_requests_running_max": "requests_running_peak",
    "engine_gauge_requests_waiting_max": "requests_waiting_peak",
    "engine_gauge_readings": "gauge_readings",
    "engine_gauge_poll_hz": "gauge_poll_hz",
    "client_kernel_stamped_share": "kernel_stamped_share",
    "client_loop_lag_p50_s": "loop_lag_p50_s",
    "client_loop_lag_p99_s": "loop_lag_p99_s",
    "client_loop_lag_max_s": "loop_lag_max_s",
}
_WHOLE = ("input_tokens", "output_tokens", "preemptions", "prefix_cache_hit_tokens", "engine_generation_tokens")


def workload_columns(result: LoadResult) -> dict[str, Any]:
    """What the client and the engine's own counters say of one workload."""
    said = result.to_row()
    said |= {ours: said[theirs] for theirs, ours in _RENAMED.items() if theirs in said}
    row: dict[str, Any] = {name: said[name] for name in table_schema("workloads").names if name in said}
    # The row's own seed is the one of the configuration, and is known before the load.
    row.pop("seed", None)
    if result.spec.pattern not in ("gamma", "ramp"):
        row["burstiness"] = None
    if result.spec.pattern != "trace":
        row["trace_speed"] = None
    row["client_placement"] = row.get("client_placement") or None
    row |= {name: None if row.get(name) is None else round(row[name]) for name in _WHOLE}
    received = sum(record.output_tokens for record in result.records)
    difference = result.engine.lost_tokens(received)
    if difference and not result.failed and not result.not_sent:
        # One of the two counts wrongly, or somebody else used the engine. A request cut off explains a rest by itself.
        row["flags"] = [*row["flags"], "token_count_mismatch"]
    row |= {
        "outcomes_json": as_json(result.outcomes),
        "errors_json": as_json(result.errors),
        "served_requests_per_s": _served_per_s(result),
        "latency_growth": _growth(result),
        "received_tokens": received,
        "token_count_difference": difference,
        "client_bound": "client_bound" in result.flags,
    }
    return row


def _served_per_s(result: LoadResult) -> float | None:
    """Completions a second, between the first and the last: the offered rate where the engine keeps up, its capacity
    where it does not. Unlike a rate over the whole run it is not lowered by the time the last requests take. None for a
    closed loop, whose first completions come all at once."""
    ends_ns = [record.end_ns for record in result.records if record.outcome == "ok"]
    if not result.spec.is_open or len(ends_ns) < 2 or max(ends_ns) == min(ends_ns):
        return None
    return (len(ends_ns) - 1) * 1e9 / (max(ends_ns) - min(ends_ns))


def _growth(result: LoadResult) -> float | None:
    found = latency_growth(result.records) if result.spec.is_open and result.spec.kind.has_steady_state else None
    return None if found is None else found[0]


def request_rows(row: dict[str, Any], result: LoadResult) -> list[dict[str, Any]]:
    """The requests table of one workload, whose `row` of the workloads table says which."""
    identity = {name: row[name] for name in ("run_id", "workload", "position")}
    columns = result.request_columns(chunks=result.spec.save_chunks)
    return [identity | dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def workload_telemetry(stretch: Stretch, phase: PhasePeaks | None, samples: Sequence[Sample]) -> dict[str, Any]:
    """What the sampler saw during one workload; known only when the whole run has stopped.

    Peaks are of the phase, which is a little longer than the measured window; rates and energy of the window itself.
    """
    columns = drift_columns(stretch.row, stretch.phase, samples)
    if phase is not None:
        names = ("device_memory_peak_bytes", "process_memory_peak_bytes", "tree_pss_peak_bytes")
        columns |= {name: getattr(phase, name) for name in names}
    if stretch.whole is not None:
        seen = load_window(samples, *stretch.whole)
        tokens = stretch.row.get("received_tokens")
        columns |= {
            "power_mean_w": seen.power_mean_w,
            "energy_j": seen.energy_j,
            "energy_source": seen.energy_source,
            "energy_j_per_token": _over(seen.energy_j, tokens),
            "sm_clock_mean_mhz": seen.sm_clock_mean_mhz,
            "sm_clock_min_mhz": seen.sm_clock_min_mhz,
            "temperature_peak_c": seen.temperature_peak_c,
            "gpu_utilization_mean_pct": seen.gpu_utilization_mean_pct,
            "throttle_reasons": None if seen.throttle_names is None else list(seen.throttle_names),
            "engine_cpu_s": seen.engine_cpu_s,
            "engine_cpu_us_per_token": _over(None if seen.engine_cpu_s is None else seen.engine_cpu_s * 1e6, tokens),
            "engine_cpu_cores": _over(seen.engine_cpu_s, seen.duration_s),
            "window_samples": seen.samples,
        }
    if stretch.steady is not None:
        seen = load_window(samples, *stretch.steady)
        rate = stretch.row.get("steady_output_tokens_per_s")
        columns |= {
            "steady_power_mean_w": seen.power_mean_w,
            "steady_energy_j_per_token": _over(seen.power_mean_w, rate),
            "steady_engine_cpu_us_per_token": _over(
                None if seen.engine_cpu_s is None else seen.engine_cpu_s * 1e6 / seen.duration_s, rate
            ),
        }
    return columns


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


def _over(value: float | None, count: float | None) -> float | None:
    return value / count if value is not None and count else None


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
