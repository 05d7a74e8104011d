"""A throughput fit for people: coefficients, held-out errors beside the layer below, every unit that was left out."""

from __future__ import annotations

from typing import Any

from analysis.throughput.build import Fit
from analysis.throughput.calibration import METRICS
from analysis.throughput.holdout import errors

_TITLES = {"tpot": "TPOT", "ttft": "TTFT", "throughput": "output tokens/s"}
_LEFT_OUT = {"model": "unseen model", "length": "unseen length", "concurrency": "unseen concurrency",
             "in_sample": "rows of the fit"}  # fmt: skip


def summary(content: dict[str, Any]) -> str:
    """The whole calibration in one screen."""
    rows = content["rows"]
    out = [
        f"{content['name']} ({content['kind']}): vLLM {content['vllm_version']}, model runner {content['runner']}, "
        f"{content['device']}, {content['weight_format']} weights, "
        f"TP {', '.join(map(str, content['tensor_parallel_sizes']))}; "
        f"{rows['used']} workloads, models: {', '.join(rows['models'])}",
        "",
        f"  {'coefficient':<17}{'value':>11}  {'90% interval':<24}unit",
    ]
    for name, one in content["coefficients"].items():
        spread = one["interval_90"]
        interval = "fewer than 3 models" if spread is None else f"{_short(spread[0])} - {_short(spread[1])}"
        mark = "" if one["identified"] else "; NOT identified by these rows"
        unit = one["unit"] + _achieved(content, name)
        out.append(f"  {name:<17}{_short(one['value']):>11}  {interval:<24}{unit}{mark}")
    out += ["", f"  {'error':<38}{'mean':>8}{'worst':>9}{'mean':>16}{'without costs':>17}"]
    for kind, label in _LEFT_OUT.items():
        for metric in METRICS:
            out.append(_error_line(f"{label}: {_TITLES[metric]}", content["held_out"][kind][metric]))
    out.append("  without costs: the same rows by bandwidth and FLOPs alone, " + (
        "at the sheet's peaks (MBU = MFU = 1)" if content["reference"] == "sheet"
        else "one bandwidth and one FLOP rate fitted, as a CPU has no sheet"
    ))  # fmt: skip
    for metric in METRICS:
        one = content["intervals"][metric]
        how = f"left-out {one['left_out']}s" if one["left_out"] else "the fit's own rows, widened: nothing was left out"
        covered = "" if one["coverage"] is None else f", covers {100 * one['coverage']:.0f} % of rows left out"
        width = _factor(one["half_width_log"])
        out.append(f"  90% interval of {_TITLES[metric]}: x or / {width} (from {how}{covered})")
    for note in content["notes"]:
        out.append(f"  note: {note}")
    return "\n".join(out) + "\n"


def left_out(counts: dict[str, int], given: int) -> str:
    """What did not enter the fit, and why."""
    if not counts:
        return f"{given} workloads, all of them in a fit\n"
    told = "; ".join(f"{count} {reason}" for reason, count in counts.items())
    return f"{given} workloads, {sum(counts.values())} left out: {told}\n"


def report(made: Fit) -> str:
    """Every unit that was left out, by metric; then the rows that are missed most."""
    out: list[str] = []
    for kind, held in made.held_out.items():
        if not held.misses:
            out.append(f"  {_LEFT_OUT[kind]}: there is only one, nothing could be left out")
            continue
        out.append(f"  {_LEFT_OUT[kind]:<24}{'rows':>5}" + "".join(f"{_TITLES[metric]:>26}" for metric in METRICS))
        for unit in held.fits:
            cells = []
            for metric in METRICS:
                found = errors(held.of(metric, unit))
                cells.append("" if found is None else
                             f"{100 * found.mean_share:.1f} % ({_amount(metric, found.mean)})")  # fmt: skip
            rows = len({miss.observation.row_id for miss in held.misses if miss.unit == unit})
            out.append(f"    {unit:<22}{rows:>5}" + "".join(f"{cell:>26}" for cell in cells))
    misses = made.held_out["model"].misses or made.own.misses
    out.append("  missed most:")
    for miss in sorted(misses, key=lambda miss: (-abs(miss.log_error), miss.observation.row_id))[:8]:
        one = miss.observation
        out.append(
            f"    {one.model}, {one.concurrency} at once, {one.length}, S {one.limits.max_num_seqs}, "
            f"T {one.limits.max_num_batched_tokens}: {_TITLES[miss.metric]} {_amount(miss.metric, miss.estimated)}, "
            f"measured {_amount(miss.metric, miss.measured)}"
        )
    return "\n".join(out) + "\n"


def _achieved(content: dict[str, Any], name: str) -> str:
    """The coefficient as people quote it: a share of the peak, a bandwidth, a FLOP rate."""
    value = content["coefficients"][name]["value"]
    if not value or name in ("step", "prefill_token", "sequence"):
        return ""
    if content["reference"] == "sheet":
        return f" = {100 / value:.0f} % of the peak"
    return f" = {1 / value:.1f} GB/s" if name in ("weights", "kv") else f" = {1 / value:.2f} TFLOP/s"


def _error_line(label: str, found: dict[str, Any] | None) -> str:
    if found is None:
        return f"  {label:<38}nothing could be left out"
    unit, name = ("ms", "ms") if "mean_ms" in found else ("tokens/s", "tokens_per_s")
    return (f"  {label:<38}{found['mean_per_cent']:>6.1f} %{found['worst_per_cent']:>7.1f} %"
            f"{found[f'mean_{name}']:>10.4g} {unit:<8}{found['below_mean_per_cent']:>10.1f} %")  # fmt: skip


def _amount(metric: str, value: float) -> str:
    return f"{value:,.0f} tokens/s" if metric == "throughput" else f"{1e3 * value:,.1f} ms"


def _factor(log_width: float) -> str:
    from math import exp

    return f"{exp(log_width):.3f}"


def _short(value: float) -> str:
    return "0" if not value else f"{value:.4g}"
