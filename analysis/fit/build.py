"""From starts to a calibration file: every term fitted, checked on what it has not seen, written down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from analysis.calibration import ANY, EXPERTS, FORMAT
from analysis.fit.holdout import Errors, HeldOut, errors, half_width, jackknife, leave_out
from analysis.fit.solve import Fitted, fit
from analysis.fit.starts import ROUNDING_BYTES, Origin, Start
from analysis.fit.terms import CPU_FORMULAS, EXPERT_FORMULAS, GPU_FORMULAS, Formula

_DIGITS = 4
"""Significant digits of a figure in the file: more than the data carry, and the same with any release of scipy."""
_ONE_MODEL_SHARE = 0.1
"""Half-width of a term that only one model measured, at least, as a share of the term: nothing was held out."""


@dataclass(frozen=True)
class FittedGroup:
    """One formula, fitted to the rows of one tensor-parallel size (0: of all)."""

    formula: Formula
    tensor_parallel_size: int
    starts: Sequence[Start]
    fitted: Fitted
    by_model: HeldOut
    model_errors: Errors | None
    setting_errors: Errors | None
    half_width: float
    """Bytes."""


def model_of(start: Start) -> str:
    return start.model


def setting_of(start: Start) -> str:
    return start.setting


def usable(formula: Formula, starts: Sequence[Start]) -> list[Start]:
    """Rows that a formula is fitted to. Pipeline ranks differ from one another and are left out."""
    return [
        start for start in starts
        if formula.term in start.measured and formula.serves(start) and start.features.pipeline_parallel_size == 1
    ]  # fmt: skip


def fit_term(formula: Formula, starts: Sequence[Start]) -> list[FittedGroup]:
    """Fits one term; one group per tensor-parallel size where the formula asks for it. Empty without rows."""
    rows = usable(formula, starts)
    sizes = sorted({start.features.tensor_parallel_size for start in rows}) if formula.by_tensor_parallel else [0]
    groups = []
    for size in sizes:
        of_size = [start for start in rows if size in (0, start.features.tensor_parallel_size)]
        if of_size:
            groups.append(_fit_group(formula, size, of_size))
    return groups


def _fit_group(formula: Formula, size: int, starts: Sequence[Start]) -> FittedGroup:
    fitted = fit(formula, starts)
    by_model = leave_out(formula, starts, model_of)
    by_setting = leave_out(formula, starts, setting_of)
    pairs = [
        (estimate - start.measured[formula.term], start.model)
        for start, estimate in zip(starts, by_model.estimates, strict=True) if estimate is not None
    ]  # fmt: skip
    if pairs:
        width = half_width([error for error, _ in pairs], [model for _, model in pairs])
    else:
        own = [abs(fitted.estimate(start) - start.measured[formula.term]) for start in starts]
        width = max(ROUNDING_BYTES, 3 * max(own), _ONE_MODEL_SHARE * max(fitted.estimate(s) for s in starts))
    return FittedGroup(
        formula, size, starts, fitted, by_model, errors(by_model, formula.term, model_of, check_coverage=True),
        errors(by_setting, formula.term, setting_of), width,
    )  # fmt: skip


def fit_all(starts: Sequence[Start], on_cpu: bool) -> dict[str, list[FittedGroup]]:
    """Every term that the rows measured; mixtures of experts under TERM/experts, on top of what dense models decide."""
    found = {}
    for formula in CPU_FORMULAS if on_cpu else GPU_FORMULAS:
        if groups := fit_term(formula, starts):
            found[formula.term] = groups
    if not on_cpu:
        for formula in EXPERT_FORMULAS:
            given = _given(formula, found.get(formula.term, []))
            if groups := fit_term(given, starts):
                found[formula.term + EXPERTS] = groups
    return found


def _given(formula: Formula, dense: Sequence[FittedGroup]) -> Formula:
    """The formula with every coefficient fixed that the dense fit determined for all tensor-parallel sizes."""
    if len(dense) != 1 or dense[0].tensor_parallel_size:
        return formula
    fitted = dense[0].fitted
    known = {
        one.driver: value for one, value in zip(fitted.formula.branches[0], fitted.values[0], strict=True)
    }  # fmt: skip
    branch = tuple(
        replace(one, start=known[one.driver], sd=None) if one.driver in known else one for one in formula.branches[0]
    )
    return replace(formula, branches=(branch, *formula.branches[1:]))


def document(
    name: str,
    kind: str,
    source: str,
    origin: Origin,
    fits: dict[str, list[FittedGroup]],
    starts: Sequence[Start],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The calibration's content; equal for equal rows, so it names no date."""
    used = {start.row_id: start for groups in fits.values() for group in groups for start in group.starts}
    sizes = sorted({start.features.tensor_parallel_size for start in used.values()})
    return {
        "format": FORMAT,
        "name": name,
        "kind": kind,
        "source": source,
        "vllm_version": origin.vllm_version,
        "runner": origin.runner,
        "gpu": origin.gpu,
        "tensor_parallel_sizes": sizes,
        "notes": list(notes),
        "rows": {
            "given": len(starts),
            "used": len(used),
            "models": sorted({start.model for start in used.values()}),
            "sha256": digest(list(used.values())),
            "ids": sorted(used),
        },
        "units": "bytes; a coefficient is bytes per unit of its driver (analysis/fit/drivers.py)",
        "terms": {
            term: {"groups": {_size(group): _group(group) for group in groups}} for term, groups in sorted(fits.items())
        },
    }  # fmt: skip


def digest(starts: Sequence[Start]) -> str:
    """SHA-256 over what the fit used of every row, in the order of their ids."""
    content = [
        {"id": one.row_id, "model": one.model, "features": asdict(one.features), "measured": dict(one.measured)}
        for one in sorted(starts, key=lambda one: one.row_id)
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _size(group: FittedGroup) -> str:
    return str(group.tensor_parallel_size) if group.tensor_parallel_size else ANY


def _group(group: FittedGroup) -> dict[str, Any]:
    formula, fitted = group.formula, group.fitted
    branches = []
    for b, branch in enumerate(formula.branches):
        coefficients = {}
        for i, one in enumerate(branch):
            value = fitted.values[b][i]
            entry: dict[str, Any] = {"value": _round(value)}
            if one.sd is None:
                entry["fixed"] = True
            else:
                spread = jackknife([other.values[b][i] for other in group.by_model.fits.values()], value)
                entry["interval_90"] = None if spread is None else [_round(max(edge, 0.0)) for edge in spread]
                entry["identified"] = fitted.identified[b][i]
            coefficients[one.driver] = entry
        branches.append({"coefficients": coefficients})
    return {
        "rows": len(group.starts),
        "models": len({start.model for start in group.starts}),
        "branches": branches,
        "interval": {
            "low_bytes": -_round(group.half_width),
            "high_bytes": _round(group.half_width),
            "coverage": 0.9,
            "method": "quantile of the absolute errors on left-out models" if len(group.by_model.fits) > 1
            else "one model only: nothing could be left out, so a share of the term",
        },
        "held_out": {
            "leave_one_model_out": _errors(group.model_errors),
            "leave_one_setting_out": _errors(group.setting_errors),
        },
        "ranges": {
            name: [min(values), max(values)] for name in formula.ranges
            if (values := [getattr(start.features, name) for start in group.starts])
        },
    }  # fmt: skip


def _errors(found: Errors | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "rows": found.rows, "left_out": found.groups, "mean_gib": _round(found.mean_gib),
        "worst_gib": _round(found.worst_gib),
        "mean_per_cent": None if found.mean_share is None else _round(100 * found.mean_share),
        "worst_per_cent": None if found.worst_share is None else _round(100 * found.worst_share),
        "coverage": None if found.coverage is None else round(found.coverage, 3),
    }  # fmt: skip


def _round(value: float) -> float | int:
    """To `_DIGITS` significant digits; noise of the solver below a millionth is nothing."""
    if abs(value) < 1e-6:
        return 0
    rounded = float(f"{value:.{_DIGITS - 1}e}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) >= 1 else rounded


def write(content: dict[str, Any], path: Path) -> None:
    """Writes the file whole; a reader never sees half of it. Short lists stay on one line."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(_compact(text), encoding="utf-8")
    partial.replace(path)


def _compact(text: str) -> str:
    """Lists of numbers on one line."""
    import re

    return re.sub(
        r"\[\s+((?:-?[\d.e+-]+,?\s+)+)\]", lambda found: "[" + " ".join(found[1].split()) + "]", text
    )  # fmt: skip
