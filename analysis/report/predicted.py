"""Predicted against measured: what arithmetic, the shipped calibrations and held-out fits say of the same rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from analysis.report.chart import NARROW, Chart, Spec
from analysis.report.context import Context, Section, View
from analysis.report.palette import LIGHT
from analysis.report.points import Point, Unit, spread
from analysis.report.table import Column, Table

DOTS: Final = 120
FIT_ROWS: Final = 1_000
"""Points that are predicted and that the held-out fits are made of, at most: more would hardly move them."""
NAMES: Final = {
    "weights": "weights", "kv_pool": "KV pool", "device_peak": "device peak", "activation": "activation peak",
    "non_torch": "non-torch", "cuda_graph": "CUDA graphs", "cuda_graph_estimate": "CUDA graphs, reserved",
    "context": "context", "runtime": "load adds",
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """One term of one point, bytes. `low` and `high`: the 90 % interval; equal to `predicted` for exact figures."""

    point: Point
    term: str
    way: str
    measured: float
    predicted: float
    low: float
    high: float

    @property
    def covered(self) -> bool:
        return self.low - 0.5 <= self.measured <= self.high + 0.5


def section(context: Context) -> Section:
    out = Section("predicted", "Predicted against measured")
    pairs, sentences = pairs_of(context.good)
    out.notes += sentences
    if not pairs:
        out.lead = "No row measured a term that can be predicted."
        return out
    out.lead = (
        "On the line the prediction was right. Vertical bars are 90 % intervals, cut at the frame; below each, what "
        "was measured minus what was predicted. Orange points lie outside their interval. Exact figures (weights, by "
        "arithmetic on config.json) have no interval."
    )
    by_way: dict[str, dict[str, list[Pair]]] = {}
    for pair in pairs:
        by_way.setdefault(pair.way, {}).setdefault(pair.term, []).append(pair)
    charts = [
        _chart(way, term, mine, context.unit, number)
        for number, (way, terms) in enumerate(by_way.items(), 1) for term, mine in terms.items()
    ]  # fmt: skip
    out.views.append(View("every term", tuple(charts)))
    out.tables += [_summary(by_way, context.unit), _table(context, pairs)]
    return out


def pairs_of(points: Sequence[Point]) -> tuple[list[Pair], list[str]]:
    """Every pair that can be made, and sentences on what could not."""
    pairs: list[Pair] = []
    sentences: list[str] = []
    for point in points:
        expected, weights = point.median("expected_weights_bytes"), point.terms.get("weights")
        if expected and weights:
            pairs.append(Pair(point, "weights", "arithmetic", weights, expected, expected, expected))
    on_gpu = [point for point in points if not point.on_cpu]
    asked = spread(on_gpu, FIT_ROWS)
    if len(asked) < len(on_gpu):
        sentences.append(f"Predictions from the shipped calibrations are of {len(asked):,} of {len(on_gpu):,} points, "
                         "evenly.")  # fmt: skip
    shipped, refused = _shipped(asked)
    pairs += shipped
    if refused:
        first, count = next(iter(refused.items())), sum(refused.values())
        sentences.append(f"{count} points could not be predicted from the shipped calibrations, such as: {first[0]}")
    if on_gpu and len(on_gpu) < len(points):
        sentences.append("CPU rows are compared with arithmetic and held-out fits only.")
    held, notes = _held_out(points)
    return pairs + held, sentences + notes


def _shipped(points: Iterable[Point]) -> tuple[list[Pair], dict[str, int]]:
    from analysis.predict.answer import predict
    from analysis.predict.request import Request, RequestError

    pairs: list[Pair] = []
    refused: dict[str, int] = {}
    for point in points:
        try:
            answer = predict(Request.of(_question(point)))
        except (RequestError, KeyError, ValueError, TypeError) as problem:
            refused[str(problem)] = refused.get(str(problem), 0) + 1
            continue
        estimates = {
            "kv_pool": None if answer.fixed_pool else answer.kv_pool, "device_peak": answer.device_peak,
            "activation": answer.activation, "non_torch": answer.non_torch, "cuda_graph": answer.cuda_graph,
            "context": answer.context,
        }  # fmt: skip
        for term, estimate in estimates.items():
            measured = point.peak if term == "device_peak" else point.terms.get(term)
            if estimate is not None and measured is not None and not (measured == 0 == estimate.value):
                pairs.append(Pair(point, term, "shipped calibrations", measured, estimate.value, estimate.low,
                                  estimate.high))  # fmt: skip
    return pairs, refused


def _question(point: Point) -> dict[str, Any]:
    """The request that this point was, for `predict`."""
    from analysis import gpus

    row: dict[str, Any] = point.row
    asked: dict[str, Any] = {
        name: row.get(name) for name in (
            "kv_cache_dtype", "tensor_parallel_size", "pipeline_parallel_size", "gpu_memory_utilization",
            "max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size",
        )
    }  # fmt: skip
    for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens"):
        asked[name] = row.get(f"effective_{name}") or asked[name]
    if row.get("kv_pool_mode") == "fixed":
        asked["kv_cache_memory_bytes"] = row.get("kv_cache_memory_bytes")
    if not row.get("model_config_json"):
        raise ValueError(f"point {point.point_id} carries no config.json")
    asked |= {
        "config": json.loads(row["model_config_json"]), "model": row.get("model"), "dtype": row.get("dtype"),
        "enforce_eager": bool(row.get("enforce_eager")), "vllm_version": str(row.get("vllm_version")).split("+")[0],
        "gpu": gpus.of_device(row.get("device_name"), row.get("device_memory_total_bytes")),
    }  # fmt: skip
    if total := point.median("init_total_bytes"):
        asked |= {"gpu_total_gib": total / 2**30}
    return asked


def _held_out(points: Sequence[Point]) -> tuple[list[Pair], list[str]]:
    """Fits of this set's own rows, each point estimated by a fit that has not seen its model."""
    from analysis.fit.build import usable
    from analysis.fit.holdout import half_width, leave_out
    from analysis.fit.starts import from_rows
    from analysis.fit.terms import CPU_FORMULAS, GPU_FORMULAS

    rows, of_run = [], {}
    for point in points:
        row = point.good[0]
        rows.append(row)
        of_run[str(row.get("run_id"))] = point
    notes = []
    if len(rows) > FIT_ROWS:
        rows = [rows[round(place * (len(rows) - 1) / (FIT_ROWS - 1))] for place in range(FIT_ROWS)]
        notes.append(f"Held-out fits are of {FIT_ROWS:,} of {len(points):,} points, evenly.")
    pairs = []
    by_place: dict[tuple[str, str], list[Any]] = {}
    for row in rows:  # never pooled over sets or environments
        point = of_run[str(row.get("run_id"))]
        by_place.setdefault((point.set_name, point.environment_id), []).append(row)
    for (set_name, environment), mine in by_place.items():
        models = {row.get("model") for row in mine}
        if len(models) < 2:
            notes.append(f"{set_name}, environment {environment}: one model only, so no fit can leave it out.")
            continue
        for origin, starts in from_rows(mine).items():
            for formula in CPU_FORMULAS if origin.on_cpu else GPU_FORMULAS:
                held_rows = usable(formula, starts)
                if len({start.model for start in held_rows}) < 2:
                    continue
                held = leave_out(formula, held_rows, lambda start: start.model)
                known = [(start, value) for start, value in zip(held_rows, held.estimates, strict=True)
                         if value is not None]  # fmt: skip
                errors = [(value - start.measured[formula.term], start.model) for start, value in known]
                widths = {}
                for model in {name for _, name in errors}:
                    others = [(error, name) for error, name in errors if name != model]
                    widths[model] = half_width([error for error, _ in others], [name for _, name in others])
                for start, value in known:
                    width = widths[start.model]
                    pairs.append(Pair(of_run[start.row_id], formula.term, "fit to these rows, model held out",
                                      start.measured[formula.term], value, max(value - width, 0.0),
                                      value + width))  # fmt: skip
    return pairs, notes


def _chart(way: str, term: str, pairs: list[Pair], unit: Unit, number: int) -> Chart:
    shown = pairs
    note = ""
    if len(pairs) > DOTS:  # the worst ones first, the rest evenly
        ordered = sorted(pairs, key=lambda one: -abs(one.measured - one.predicted))
        rest = ordered[DOTS // 4 :]
        shown = ordered[: DOTS // 4] + [rest[round(i * (len(rest) - 1) / (DOTS - DOTS // 4 - 1))]
                                        for i in range(DOTS - DOTS // 4)]  # fmt: skip
        note = f"{DOTS} of {len(pairs):,} points: the {DOTS // 4} worst, the rest evenly."
    name = NAMES.get(term, term)
    return Chart(f"predicted-{number}-{term}", f"{name[:1].upper()}{name[1:]}: {way}",
                 lambda width: _scatter(shown, unit, width), note=note,
                 widths=(NARROW,))  # fmt: skip


def _scatter(pairs: list[Pair], unit: Unit, width: int) -> Spec:
    width = min(width, 326)
    sizes = [size for pair in pairs for size in (pair.measured, pair.predicted)]
    low, high = unit.of(min(sizes)) or 0.0, unit.of(max(sizes)) or 0.0
    room = max((high - low) * 0.06, high * 0.02, 1e-6)
    low, high = max(low - room, 0.0), high + room
    values = [
        {"m": unit.of(pair.measured), "p": unit.of(pair.predicted), "low": max(unit.of(pair.low) or 0.0, low),
         "high": min(unit.of(pair.high) or 0.0, high), "r": unit.of(pair.measured - pair.predicted),
         "colour": LIGHT["c1" if pair.covered or pair.low == pair.high else "c6"],
         "href": f"#find:{pair.point.point_id}",
         "about": f"{pair.point.model} {pair.point.label}: measured {unit.text(pair.measured)}, predicted "
                  f"{unit.text(pair.predicted)}"}
        for pair in pairs
    ]  # fmt: skip
    scale = {"domain": [low, high], "nice": False, "zero": False}
    x = {"field": "m", "type": "quantitative", "scale": scale, "axis": {"tickCount": 4}}
    y = {"field": "p", "type": "quantitative", "scale": scale, "title": f"predicted, {unit.name}",
         "axis": {"tickCount": 4}}  # fmt: skip
    colour = {"field": "colour", "type": "nominal", "scale": None}
    names = {"href": {"field": "href"}, "description": {"field": "about"}}
    worst = max((abs(one["r"] or 0.0) for one in values), default=0.0) or unit.of(2**20) or 1.0
    inner = width - 76
    above: Spec = {
        "width": inner, "height": 210, "data": {"values": values},
        "layer": [
            {"data": {"values": [{"m": low, "p": low}, {"m": high, "p": high}]},
             "mark": {"type": "line", "color": LIGHT["muted"], "strokeWidth": 1},
             "encoding": {"x": {**x, "title": None}, "y": y}},
            *([{"mark": {"type": "rule", "opacity": 0.35},
                "encoding": {"x": {**x, "title": None}, "y": {**y, "field": "low"}, "y2": {"field": "high"},
                             "color": colour}}] if any(pair.low < pair.high for pair in pairs) else []),
            {"mark": {"type": "point", "filled": True, "size": 22, "opacity": 0.8},
             "encoding": {"x": {**x, "title": None}, "y": y, "color": colour, **names}},
        ],
    }  # fmt: skip
    below: Spec = {
        "width": inner, "height": 78, "data": {"values": values},
        "layer": [
            {"data": {"values": [{"r": 0}]}, "mark": {"type": "rule", "color": LIGHT["muted"]},
             "encoding": {"y": {"field": "r", "type": "quantitative"}}},
            {"mark": {"type": "point", "filled": True, "size": 14, "opacity": 0.8},
             "encoding": {"x": {**x, "title": f"measured, {unit.name}"},
                          "y": {"field": "r", "type": "quantitative", "title": "measured − pred.",
                                "scale": {"domain": [-worst, worst], "nice": True}, "axis": {"tickCount": 3}},
                          "color": colour, **names}},
        ],
    }  # fmt: skip
    return {"vconcat": [above, below], "spacing": 10}


def _summary(by_way: dict[str, dict[str, list[Pair]]], unit: Unit) -> Table:
    digit = str(unit.decimals + 1)
    columns = [Column("Predicted by"), Column("Term"), Column("Points", "0"), Column(f"mean error, {unit.name}", digit),
               Column(f"worst error, {unit.name}", digit), Column("mean error, %", "2"), Column("worst error, %", "2"),
               Column("inside 90 % interval, %", "1")]  # fmt: skip
    rows = []
    for way, terms in by_way.items():
        for term, pairs in terms.items():
            errors = [abs(pair.predicted - pair.measured) for pair in pairs]
            shares = [100 * abs(pair.predicted / pair.measured - 1) for pair in pairs if pair.measured > 0]
            ranged = [pair.covered for pair in pairs if pair.low < pair.high]
            rows.append([way, NAMES.get(term, term), len(pairs), unit.of(sum(errors) / len(errors)),
                         unit.of(max(errors)), sum(shares) / len(shares) if shares else None,
                         max(shares, default=None), 100 * sum(ranged) / len(ranged) if ranged else None])  # fmt: skip
    return Table("errors", "Errors by term", columns, rows, "Errors are absolute: |predicted − measured|.", open=True)


def _table(context: Context, pairs: list[Pair]) -> Table:
    unit = context.unit
    digit = str(unit.decimals + 1)
    columns = [Column("Predicted by"), Column("Term"), Column("Model"), Column("Format"), Column("T", "0"),
               Column("S", "0"), *(Column(f"{name}, {unit.name}", digit) for name in
                                   ("measured", "predicted", "low", "high", "measured − predicted")),
               Column("inside"), Column("point_id", "id")]  # fmt: skip
    rows = [
        [pair.way, NAMES.get(pair.term, pair.term), pair.point.model, pair.point.quantization, pair.point.tokens,
         pair.point.seqs, unit.of(pair.measured), unit.of(pair.predicted), unit.of(pair.low), unit.of(pair.high),
         unit.of(pair.measured - pair.predicted), pair.covered if pair.low < pair.high else None, pair.point.point_id]
        for pair in sorted(pairs, key=lambda one: -abs(one.measured - one.predicted))
    ]  # fmt: skip
    return Table("predicted", "Every prediction", columns, rows, "Largest errors first.",
                 "SELECT * FROM engines WHERE point_id = 'POINT_ID'", sets=context.roots)  # fmt: skip
