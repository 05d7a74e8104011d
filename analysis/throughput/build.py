"""From observations to a throughput calibration: fitted, checked on what it has not seen, written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.fit.build import write
from analysis.fit.holdout import jackknife
from analysis.throughput.calibration import FORMAT, METRICS, Metric
from analysis.throughput.fit import Fitted, fit
from analysis.throughput.holdout import KINDS, HeldOut, coverage, errors, half_width, in_sample, leave_out
from analysis.throughput.observations import Observation, Origin, digest
from analysis.throughput.roofline import COEFFICIENTS

_DIGITS = 4
_UNTESTED = 3.0
"""Half-width, as a multiple of the worst error on the fit's own rows, where nothing could be held out."""
_LEAST_UNTESTED = 0.2

UNITS = {
    "sheet": {
        "step": "s per step", "weights": "multiple of the sheet's time (1/MBU)", "kv": "multiple of the sheet's time",
        "prefill_compute": "multiple of the sheet's time (1/MFU)", "decode_compute": "multiple of the sheet's time",
        "prefill_token": "s per prompt token", "sequence": "s per sequence and step",
    },
    "absolute": {
        "step": "s per step", "weights": "s per GB of weights", "kv": "s per GB of KV cache",
        "prefill_compute": "s per TFLOP of prompts", "decode_compute": "s per TFLOP of decoding",
        "prefill_token": "s per prompt token", "sequence": "s per sequence and step",
    },
}  # fmt: skip
"""Of each coefficient; GB and TFLOP are 10^9 and 10^12."""


class Fit:
    """One group of rows with everything that is said of it."""

    def __init__(self, origin: Origin, observations: Sequence[Observation]) -> None:
        self.origin, self.observations = origin, list(observations)
        self.fitted: Fitted = fit(self.observations)
        self.held_out: dict[str, HeldOut] = {kind: leave_out(kind, self.observations) for kind in KINDS}
        self.own: HeldOut = in_sample(self.observations, self.fitted)

    def interval(self, metric: Metric) -> dict[str, Any]:
        """Half-width of the 90 % interval, from whole models left out where there are several."""
        for kind in KINDS:
            if misses := self.held_out[kind].of(metric):
                covered = coverage(misses)
                return {
                    "half_width_log": _round(half_width(misses)), "left_out": kind,
                    "coverage": None if covered is None else round(covered, 3),
                }  # fmt: skip
        worst = max((abs(miss.log_error) for miss in self.own.of(metric)), default=0.0)
        width = max(_UNTESTED * worst, _LEAST_UNTESTED)
        return {"half_width_log": _round(width), "left_out": None, "coverage": None}

    def spread(self, place: int) -> list[float] | None:
        """90 % interval of a coefficient from the fits that each left one model out."""
        fits = self.held_out["model"].fits
        found = jackknife([one.values[place] for one in fits.values()], self.fitted.values[place])
        return None if found is None else [_round(max(edge, 0.0)) for edge in found]


def document(
    name: str, kind: str, source: str, made: Fit, left_out: Mapping[str, int], given: int, notes: Sequence[str]
) -> dict[str, Any]:
    """The calibration's content; equal for equal rows, so it names no date."""
    rows, origin, fitted = made.observations, made.origin, made.fitted
    ranges: dict[str, list[float]] = {}
    for one in rows:
        for feature, value in one.features().items():
            low, high = ranges.get(feature, [value, value])
            ranges[feature] = [min(low, value), max(high, value)]
    return {
        "format": FORMAT, "name": name, "kind": kind, "source": source, "vllm_version": origin.vllm_version,
        "runner": origin.runner, "device": origin.device, "weight_format": origin.weight_format,
        "reference": fitted.reference,
        "tensor_parallel_sizes": sorted({one.tensor_parallel_size for one in rows}), "notes": list(notes),
        "rows": {
            "given": given, "used": len(rows), "left_out": dict(left_out),
            "models": sorted({one.model for one in rows}), "sha256": digest(rows),
            "ids": sorted(one.row_id for one in rows),
        },
        "coefficients": {
            coefficient: {
                "value": _round(fitted.values[place]), "interval_90": made.spread(place),
                "identified": fitted.known[place], "unit": UNITS[fitted.reference][coefficient],
            }
            for place, coefficient in enumerate(COEFFICIENTS)
        },
        "intervals": {metric: made.interval(metric) for metric in METRICS},
        "held_out": {
            kind: {metric: _errors(held, metric) for metric in METRICS}
            for kind, held in [*made.held_out.items(), ("in_sample", made.own)]
        },
        "ranges": {feature: [_round(low), _round(high)] for feature, (low, high) in sorted(ranges.items())},
    }  # fmt: skip


def _errors(held: HeldOut, metric: Metric) -> dict[str, Any] | None:
    """Per cent, and milliseconds or tokens/s; `below` is the roofline without costs on the same rows."""
    found = errors(held.of(metric))
    if found is None:
        return None
    scale, unit = (1.0, "tokens_per_s") if metric == "throughput" else (1e3, "ms")
    return {
        "rows": found.rows, "left_out": found.units, "mean_per_cent": _round(100 * found.mean_share),
        "worst_per_cent": _round(100 * found.worst_share), f"mean_{unit}": _round(scale * found.mean),
        f"worst_{unit}": _round(scale * found.worst), "below_mean_per_cent": _round(100 * found.below_mean_share),
        "below_worst_per_cent": _round(100 * found.below_worst_share),
    }  # fmt: skip


def _round(value: float) -> float | int:
    """To four significant digits; noise of the solver is nothing."""
    if abs(value) < 1e-12:
        return 0
    rounded = float(f"{value:.{_DIGITS - 1}e}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) >= 1 else rounded


__all__ = ["UNITS", "Fit", "document", "write"]
