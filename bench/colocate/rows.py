"""What a group amounts to: memory summed at one time, interference, the router's cost. Names and sums, no measuring."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bench.colocate.streams import ALONE, DIRECT, TOGETHER, Driven, Streams
from bench.load.latency import window_between
from bench.outcome import Outcome
from bench.request import Request
from bench.rows import as_json

METRICS = {
    "output_tokens_per_s": "output_tokens_per_s", "ttft_p50": "ttft_p50_s", "tpot_p50": "tpot_p50_s",
    "e2e_p50": "e2e_p50_s",
}  # fmt: skip
"""Interference is stated of these: its name -> the column it is a ratio of."""
_LEAST_OVERLAP = 0.9
"""Share of a stream's time that the others must have been under way too."""


def sum_over_time(series: Sequence[Sequence[tuple[float, int]]]) -> tuple[int | None, float | None]:
    """The largest sum at one time over several series of (time, value), and that time.

    Each series is a step function from its first reading to its last: what was read holds until the next reading, and
    outside of its readings it counts nothing. (None, None) without a reading.
    """
    changes = []
    for readings in series:
        ordered = sorted(readings)
        before = 0
        for when, value in ordered:
            changes.append((when, 1, value - before))
            before = value
        if ordered:
            changes.append((ordered[-1][0], 2, -before))  # after the readings of the same instant
    total, most, at = 0, None, None
    changes.sort()
    for place, (when, kind, change) in enumerate(changes):
        total += change
        last_of_instant = place + 1 == len(changes) or changes[place + 1][:2] != (when, kind)
        if kind == 1 and last_of_instant and (most is None or total > most):
            most, at = total, when
    return most, at


def memory_columns(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The device over the whole group, from the members' timelines."""
    rows = [outcome.engine for outcome in outcomes]
    device = [s["device_memory_used_bytes"] for o in outcomes for s in o.samples if s.get("device_memory_used_bytes")]
    ready = [_ready(outcome.samples) for outcome in outcomes]
    all_ready = None if any(one is None for one in ready) or not ready else max(one[0] for one in ready if one)
    end = min((one[1] for one in ready if one), default=None)
    at_rest = all_ready is not None and end is not None and all_ready <= end

    def between(sample: dict[str, Any]) -> bool:
        when = sample.get("t_unix_s")
        return at_rest and when is not None and all_ready <= when <= end

    resting = [s["device_memory_used_bytes"] for o in outcomes for s in o.samples
               if between(s) and s.get("device_memory_used_bytes")]  # fmt: skip
    peaks = [row.get("tree_pss_peak_bytes") for row in rows]
    return {
        "device_memory_baseline_bytes": rows[0].get("device_memory_baseline_bytes") if rows else None,
        "device_memory_ready_bytes": max(resting, default=None),
        "device_memory_peak_bytes": max(device, default=None),
        "tree_pss_ready_bytes": sum_over_time([_pss(filter(between, o.samples)) for o in outcomes])[0],
        "tree_pss_peak_bytes": sum_over_time([_pss(o.samples) for o in outcomes])[0],
        "tree_pss_peaks_sum_bytes": sum(p for p in peaks if p) if any(peaks) else None,
        "weights_sum_bytes": _sum(row.get("weights_bytes") for row in rows),
        "kv_cache_sum_bytes": _sum(row.get("kv_cache_bytes") for row in rows),
    }


def _ready(samples: Sequence[dict[str, Any]]) -> tuple[float, float] | None:
    """When an engine was ready, and when the first load of the group began, Unix time."""
    began = next((s["t_unix_s"] for s in samples if s["phase"] == "ready" and s["t_unix_s"]), None)
    if began is None:
        return None
    after = [s["t_unix_s"] for s in samples if s["t_unix_s"] and s["phase"] != "ready" and s["t_unix_s"] > began]
    return began, min(after, default=samples[-1]["t_unix_s"] or began)


def _pss(samples: Iterable[dict[str, Any]]) -> list[tuple[float, int]]:
    """Readings of one tree's PSS, by time."""
    return [(s["t_unix_s"], s["tree_pss_bytes"]) for s in samples
            if s.get("t_unix_s") is not None and s.get("tree_pss_bytes") is not None]  # fmt: skip


def _sum(values: Iterable[int | None]) -> int | None:
    known = list(values)
    return None if not known or None in known else sum(value for value in known if value is not None)


# -- speed -------------------------------------------------------------------------------------------------------


def speed_columns(driven: Sequence[Driven], streams: Sequence[str]) -> dict[str, Any]:
    """Joint throughput and interference; writes each stream's own into its rows of the runs together.

    Both come from runs that went through beside engines that lived: the seconds with a dying one are nobody's speed.
    """
    repeats = sorted({run.repeat for run in driven})
    joint = [found for repeat in repeats if (found := _joint(driven, repeat, streams))]
    ratios = {name: _interference(driven, name) for name in streams}
    alone = [_median(_values(driven, name, ALONE, "output_tokens_per_s")) for name in streams]
    total = sum(value for value in alone if value is not None) if alone and None not in alone else None
    rate = _median([one[0] for one in joint])
    stated = bool(ratios) and all(set(found) == set(METRICS) for found in ratios.values())
    return {
        "joint_output_tokens_per_s": rate,
        "joint_requests_per_s": _median([one[1] for one in joint]),
        "joint_window_s": _median([one[2] for one in joint]),
        "alone_sum_output_tokens_per_s": total,
        "joint_share": rate / total if rate is not None and total else None,
        "interference_json": as_json({name: found for name, found in ratios.items() if found}),
        "interference_basis": _basis(driven, ratios) if any(ratios.values()) else None,
        "interference_stated": stated,
    }


def _joint(driven: Sequence[Driven], repeat: int, streams: Sequence[str]) -> tuple[float, float, float] | None:
    """Tokens/s and requests/s of all streams while all were under way, and how long that was, s; None where a run of
    one of them is not usable."""
    runs = [run for run in driven if run.mode == TOGETHER and run.repeat == repeat and run.result is not None]
    whole = []
    for run in runs:
        assert run.result is not None
        sent = [record.sent_ns for record in run.result.records if record.sent_ns]
        ends = [record.end_ns for record in run.result.records if record.outcome == "ok"]
        if not sent or not ends:
            return None
        whole.append((min(sent), max(ends)))
    if not whole:
        return None
    usable = all(any(run in runs for run in _usable(driven, name, TOGETHER)) for name in streams)
    begin, end = max(one[0] for one in whole), min(one[1] for one in whole)
    tokens = requests = 0.0
    for run, (first, last) in zip(runs, whole, strict=True):
        run.row["colocation_overlap"] = max(0.0, (end - begin) / (last - first)) if last > first else None
        if (run.row["colocation_overlap"] or 0.0) < _LEAST_OVERLAP:
            run.row["flags"] = [*run.row["flags"], "little_overlap"]
        assert run.result is not None
        found = window_between(run.result.records, begin, end, {})
        tokens += found.output_tokens_per_s or 0.0
        requests += found.requests_per_s or 0.0
    return (tokens, requests, (end - begin) / 1e9) if end > begin and usable else None


def _usable(driven: Sequence[Driven], name: str, mode: str) -> list[Driven]:
    return [run for run in driven if run.stream.name == name and run.mode == mode and run.row.get("status") == "ok"
            and "sibling_died" not in run.row["flags"]]  # fmt: skip


def _values(driven: Sequence[Driven], name: str, mode: str, column: str) -> list[float]:
    values = [run.row.get(column) for run in _usable(driven, name, mode)]
    return [value for value in values if value is not None]


def _interference(driven: Sequence[Driven], name: str) -> dict[str, Any]:
    """Together over alone by metric, each turn's own pair."""
    alone = {run.repeat: run.row for run in _usable(driven, name, ALONE)}
    found: dict[str, list[float]] = {}
    for run in _usable(driven, name, TOGETHER):
        for metric, column in METRICS.items():
            before, now = alone.get(run.repeat, {}).get(column), run.row.get(column)
            if before and now is not None:
                run.row[f"interference_{metric}"] = now / before
                found.setdefault(metric, []).append(now / before)
    return {metric: {"median": _median(values), "min": min(values), "max": max(values), "pairs": len(values)}
            for metric, values in found.items()}  # fmt: skip


def _basis(driven: Sequence[Driven], ratios: dict[str, Any]) -> str:
    pairs = [one["pairs"] for found in ratios.values() for one in found.values()]
    least = min(pairs)
    requests = [run.row["completed"] for run in driven if run.mode in (ALONE, TOGETHER) and run.row.get("completed")]
    sizes = f"{min(requests)} to {max(requests)} requests each"
    said = f"{least} pair{'s' if least > 1 else ''} of runs on the same engines, {sizes}"
    runs = [run for run in driven if run.mode in (ALONE, TOGETHER)]
    if bound := sum(bool(run.row.get("client_bound")) for run in runs):
        said += f", {bound} of {len(runs)} of them client-bound, so that the clients' cores are part of it"
    return said + ("; one pair gives no spread: raise colocate.repeats" if least == 1 else "; range over the pairs")


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


# -- the router --------------------------------------------------------------------------------------------------


def router_columns(streams: Streams, stats: dict[str, Any]) -> dict[str, Any]:
    """What passed the router and what it cost. Call it once the router has stopped."""
    records = list(streams.router.records())
    waits = [(one["forwarded_ns"] - one["arrived_ns"]) / 1e9 for one in records if "forwarded_ns" in one]
    names = ("outcomes", "peak_in_flight", "peak_queued")
    engines = {name: {key: one.get(key) for key in names} for name, one in (stats.get("engines") or {}).items()}
    costs = {one.name: _cost(streams.driven, one.name) for one in streams.streams}
    return {
        "router_requests": len(records),
        "router_unrouted": stats.get("unrouted"),
        "router_outcomes_json": as_json(engines),
        "router_forward_p50_s": float(np.percentile(waits, 50)) if waits else None,
        "router_forward_p99_s": float(np.percentile(waits, 99)) if waits else None,
        "router_cost_json": as_json({name: cost for name, cost in costs.items() if cost}),
    }


def _cost(driven: Sequence[Driven], name: str) -> dict[str, float]:
    found = {}
    for metric, column in (("ttft_p50_s", "ttft_p50_s"), ("tpot_p50_s", "tpot_p50_s")):
        through, past = (_median(_values(driven, name, mode, column)) for mode in (ALONE, DIRECT))
        if through is not None and past is not None:
            found[metric] = through - past
    through, past = (_median(_values(driven, name, mode, "output_tokens_per_s")) for mode in (ALONE, DIRECT))
    return found | ({"output_tokens_per_s_ratio": through / past} if through is not None and past else {})


# -- the rest of the row -----------------------------------------------------------------------------------------


def group_columns(request: Request, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What was asked for, and what ran."""
    cfg, group = request.cfg, request.cfg.colocate
    by_name = {outcome.engine["colocation_member"]: outcome.engine for outcome in outcomes}
    told = ("run_id", "model", "quantization", "gpu_memory_utilization", "kv_cache_memory_bytes", "max_num_seqs",
            "max_num_batched_tokens", "max_model_len", "status")  # fmt: skip
    streams = {
        name: {"task": one.task, "words": one.words, "model": one.model, "load": one.load.content()}
        for name, one in group.streams.items()
    }
    return {
        "point_id": request.point_id, "set_name": cfg.set, "sweep": cfg.sweep.name, "repeat": cfg.repeat,
        "colocation": group.name, "members": list(group.order), "stream_repeats": group.repeats,
        "members_json": as_json({name: {key: row.get(key) for key in told} for name, row in by_name.items()}),
        "streams_json": as_json(streams), "router_json": as_json(dataclasses.asdict(group.router)),
        "not_started": [name for name in group.order if name not in by_name],
    }  # fmt: skip
