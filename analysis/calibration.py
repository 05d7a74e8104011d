"""Calibrations: fitted memory terms, read from small text files and chosen for one engine start.

A term of one rank is, per group of tensor-parallel sizes, the largest of a few branches, each a sum of
coefficient x driver (analysis/fit/drivers.py). Its 90 % interval is the spread of the errors on models that the fit
had not seen; it widens outside the fitted ranges and where a calibration is borrowed from another version or GPU.

Format history of the files:
  1  first version
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from analysis.estimate import TERMS, Basis, Estimate, Features
from analysis.fit.drivers import DRIVERS

FORMAT = 1
FOLDER = Path(__file__).resolve().parent / "calibrations"
RANK: Final[dict[str, int]] = {"own": 0, "public": 1, "prior": 2}
"""Kinds of calibration, best first: own measurements, public figures, formulas without a fit."""

ANY = "any"
"""As a GPU or runner: the calibration claims no particular one."""

EXPERTS = "/experts"
"""Suffix of a term's formulas for mixtures of experts."""

_EXTRAPOLATED_SHARE = 0.3
"""Of the bytes that lie beyond the fitted range, this share is added to either side of the interval."""
_BORROWED_SHARE = 0.15
"""Of the value, added to either side per unit of distance."""
_LEAST_EXTRAPOLATED = 0.05
"""Half-width of an extrapolated interval, at least, as a share of the value."""
_POOL_TERMS: Final = ("activation", "non_torch", "cuda_graph_estimate")
_CHANGES: Final[dict[str, tuple[int, ...]]] = {"activation": (17,)}
"""Minor releases that changed what a term is: 0.17 replaced the sorting sampler of the profiling run."""


class CalibrationError(ValueError):
    """A calibration file cannot be used; the sentence names the file and the reason."""


@dataclass(frozen=True, slots=True)
class Group:
    """One formula: `max over branches of (sum of coefficient x driver)`, bytes, with what is known of its error.

    `low` and `high` are the 5 % and 95 % quantiles of (measured - estimated), bytes, on models left out of the fit;
    `relative_low`, `relative_high` the same as a share of the estimate. Both are added.
    """

    branches: tuple[Mapping[str, float], ...]
    low: float
    high: float
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    relative_low: float = 0.0
    relative_high: float = 0.0

    def value(self, features: Features) -> float:
        return max(
            sum(coefficient * DRIVERS[name](features) for name, coefficient in branch.items())
            for branch in self.branches
        )

    def clamped(self, features: Features) -> Features:
        """The nearest features inside the fitted ranges; `features` itself if it lies inside."""
        outside = {}
        for name, (low, high) in self.ranges.items():
            value = getattr(features, name)
            if not low <= value <= high:
                outside[name] = type(value)(min(max(value, low), high))
        return replace(features, **outside) if outside else features


@dataclass(frozen=True, slots=True)
class Calibration:
    """Fitted terms for one vLLM version, runner and GPU.

    `groups` maps a term to its formulas by tensor-parallel size; key 0 stands for every size. `TERM/experts` holds
    those for mixtures of experts, where they were fitted apart. A term absent from `groups` was not fitted here:
    `fallback` answers for it.
    """

    name: str
    kind: str
    source: str
    vllm_version: str
    runner: str
    gpu: str
    tensor_parallel_sizes: tuple[int, ...]
    groups: Mapping[str, Mapping[int, Group]] = field(repr=False)
    document: Mapping[str, Any] = field(repr=False, default_factory=dict)
    distance: Mapping[str, float] = field(repr=False, default_factory=dict)
    fallback: Mapping[str, Calibration] = field(repr=False, default_factory=dict)

    @property
    def terms(self) -> tuple[str, ...]:
        """Terms this calibration can estimate, its fallbacks included."""
        return tuple(term for term in TERMS if term in self.groups or term in self.fallback)

    def origin(self, term: str) -> str:
        """Name of the calibration that answers for a term."""
        return self.fallback[term].name if term in self.fallback else self.name

    def estimate(self, term: str, features: Features) -> Estimate:
        """Bytes of one rank with a 90 % interval; never negative.

        Raises KeyError if neither this calibration nor a fallback has the term.
        """
        if term.startswith("cuda_graph") and not features.graph_count:
            return Estimate.exact(0.0)
        if term in self.fallback:
            return self.fallback[term].estimate(term, features)
        groups = self.groups[term]
        if features.experts:
            groups = self.groups.get(f"{term}{EXPERTS}", groups)
        tp = features.tensor_parallel_size
        size = 0 if 0 in groups else min(groups, key=lambda known: (abs(known - tp), known))
        group = groups[size]
        value = group.value(features)
        below = -group.low - group.relative_low * value
        above = group.high + group.relative_high * value
        basis: Basis = "calibrated"

        inside = group.clamped(features)
        if inside is not features or size not in (0, tp):
            basis = "extrapolated"
            beyond = abs(value - group.value(inside))
            if size not in (0, tp):  # by as much as the term differs between the sizes that were measured
                others = [other.value(features) for other in groups.values()]
                beyond += max(others) - min(others)
            extra = max(_EXTRAPOLATED_SHARE * beyond, _LEAST_EXTRAPOLATED * abs(value))
            below, above = below + extra, above + extra

        distance = self.distance.get(term, 0.0)
        if distance:
            basis = "extrapolated"
            extra = _BORROWED_SHARE * distance * abs(value)
            below, above = below * (1 + distance) + extra, above * (1 + distance) + extra
        if self.kind == "prior":
            basis = "extrapolated"
        value = max(value, 0.0)
        return Estimate(value, min(max(value - max(below, 0.0), 0.0), value), value + max(above, 0.0), basis)


@dataclass(frozen=True, slots=True)
class Selection:
    """The calibration for one start.

    `distance` is that of the terms that decide the KV pool: 0 means fitted to this very version, runner, GPU and TP,
    and 1 is added where nothing was fitted at all.
    """

    calibration: Calibration
    notes: tuple[str, ...]
    distance: float


def load(path: Path) -> Calibration:
    """Reads one file. Raises CalibrationError on anything that is not a calibration of this format."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return from_document(document, path.name)
    except OSError as unreadable:
        raise CalibrationError(f"{path} cannot be read: {unreadable.strerror}") from None
    except ValueError as broken:
        if isinstance(broken, CalibrationError):
            raise
        raise CalibrationError(f"{path.name} is not JSON: {broken}") from None


def from_document(document: Any, name: str = "calibration") -> Calibration:
    """A calibration from the content of its file; the same errors as `load`."""
    if not isinstance(document, dict) or "format" not in document:
        raise CalibrationError(f"{name} is not a calibration: the field 'format' is missing")
    version = document["format"]
    if version != FORMAT:
        newer = isinstance(version, int) and version > FORMAT
        raise CalibrationError(
            f"{name} has format {version!r} and this program reads {FORMAT}; "
            + ("update the program" if newer else "fit it again")
        )
    try:
        groups = {term: _groups(content, name) for term, content in document["terms"].items()}
        if unknown := sorted({term.removesuffix(EXPERTS) for term in groups} - set(TERMS)):
            raise CalibrationError(f"{name}: term {unknown[0]!r} is not known; known are {', '.join(TERMS)}")
        if document["kind"] not in RANK:
            raise CalibrationError(f"{name}: kind is {document['kind']!r}; it must be one of {', '.join(RANK)}")
        return Calibration(
            name=document["name"], kind=document["kind"], source=document["source"],
            vllm_version=document["vllm_version"], runner=document["runner"], gpu=document["gpu"],
            tensor_parallel_sizes=tuple(document["tensor_parallel_sizes"]), groups=groups, document=document,
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as broken:
        raise CalibrationError(f"{name} is malformed: {type(broken).__name__} at {broken}") from None


def _groups(content: Mapping[str, Any], name: str) -> dict[int, Group]:
    known = {one.name for one in fields(Features)}
    made = {}
    for size, group in content["groups"].items():
        branches = tuple(
            {driver: float(one["value"]) for driver, one in branch["coefficients"].items()}
            for branch in group["branches"]
        )
        for driver in (driver for branch in branches for driver in branch):
            if driver not in DRIVERS:
                raise CalibrationError(f"{name}: driver {driver!r} is not known; known are {', '.join(DRIVERS)}")
        interval = group["interval"]
        ranges = {one: (float(low), float(high)) for one, (low, high) in group["ranges"].items() if one in known}
        made[0 if size == ANY else int(size)] = Group(
            branches, float(interval["low_bytes"]), float(interval["high_bytes"]), ranges,
            float(interval.get("low_share", 0.0)), float(interval.get("high_share", 0.0)),
        )  # fmt: skip
    if not made:
        raise CalibrationError(f"{name}: a term has no groups")
    return made


@cache
def shipped(folder: Path = FOLDER) -> tuple[Calibration, ...]:
    """Every calibration in the folder, by name."""
    return tuple(load(path) for path in sorted(folder.glob("*.json")))


def select(
    vllm_version: str,
    runner: str | None,
    gpu: str,
    tensor_parallel_size: int = 1,
    *,
    candidates: Iterable[Calibration] | None = None,
) -> Selection:
    """The best calibration for one start, term by term.

    A term comes from the nearest calibration that has it: own measurements before public figures before formulas
    without a fit, then by `distance`. CPU and GPU calibrations never stand in for each other. `runner` is "v1", "v2"
    or None (unknown). The result answers for every term of `TERMS` that any candidate of its kind of device has.

    Raises CalibrationError if there is no candidate at all.
    """
    on_cpu = gpu == "cpu"
    pool = [one for one in (shipped() if candidates is None else candidates) if (one.gpu == "cpu") == on_cpu]
    if not pool:
        raise CalibrationError(f"there is no calibration for {gpu!r}, not even a general one")

    chosen: dict[str, tuple[Calibration, float]] = {}
    for term in TERMS:
        having = [one for one in pool if term in one.groups]
        scored = [(distance(one, term, vllm_version, runner, gpu, tensor_parallel_size), one) for one in having]
        if scored:
            apart, best = min(scored, key=lambda pair: (_far(pair[1], pair[0]), pair[0], pair[1].name))
            chosen[term] = (best, apart)
    main_term = next(iter(chosen))
    main = chosen[main_term][0]
    borrowed = {
        term: replace(one, distance={term: apart})
        for term, (one, apart) in chosen.items() if one.name != main.name
    }  # fmt: skip
    own = {term: apart for term, (one, apart) in chosen.items() if one.name == main.name and apart}
    calibration = replace(main, distance=own, fallback=borrowed)
    notes = tuple(
        dict.fromkeys(
            note for term, (one, _) in chosen.items()
            for note in _notes(one, term, vllm_version, runner, gpu, tensor_parallel_size)
        )
    )  # fmt: skip
    deciding = [chosen[term] for term in _POOL_TERMS if term in chosen] or list(chosen.values())
    return Selection(calibration, notes, max(apart + (one.kind == "prior") for one, apart in deciding))


def _far(one: Calibration, apart: float) -> int:
    """Own before public before prior, unless it comes from another runner or very far away."""
    return RANK[one.kind] + (3 if apart >= 1.0 and one.kind != "prior" else 0)


def distance(
    one: Calibration, term: str, vllm_version: str, runner: str | None, gpu: str, tensor_parallel_size: int
) -> float:
    """How far a calibration is from a start, 0 for the same: versions 0.05 per minor release, another GPU 0.25,
    another model runner, or a release that changed the term, 1 for the terms concerned; a tensor-parallel size never
    seen 0.25.
    """
    apart = min(0.05 * abs(_minor(one.vllm_version) - _minor(vllm_version)), 0.9)
    if one.gpu not in (gpu, ANY):
        apart += 0.25
    decides = term in ("activation", "cuda_graph_estimate", "runtime")
    if one.runner != ANY and runner is not None and one.runner != runner and decides:
        apart += 1.0
    if any((_minor(one.vllm_version) < change) != (_minor(vllm_version) < change) for change in _CHANGES.get(term, ())):
        apart += 1.0
    if one.tensor_parallel_sizes and tensor_parallel_size not in one.tensor_parallel_sizes:
        apart += 0.25
    return round(apart, 6)


def _minor(version: str) -> int:
    """0.19.1 is 19, 1.2 is 102. What is no version counts as 0."""
    parts = version.split("+")[0].split(".")
    try:
        return int(parts[0]) * 100 + int(parts[1])
    except (ValueError, IndexError):
        return 0


def _notes(
    one: Calibration, term: str, vllm_version: str, runner: str | None, gpu: str, tensor_parallel_size: int
) -> list[str]:
    if one.kind == "prior":
        return [f"{term}: nothing was measured; the formula of {one.name} with a wide interval"]
    found = []
    if _minor(one.vllm_version) != _minor(vllm_version):
        found.append(f"{one.name} was fitted on vLLM {one.vllm_version}, not {vllm_version}; intervals are widened")
    if one.gpu not in (gpu, ANY):
        found.append(f"{one.name} was fitted on {one.gpu}, not {gpu}; intervals are widened")
    if one.runner != ANY and runner is not None and one.runner != runner:
        found.append(f"{one.name} was fitted on model runner {one.runner}, not {runner}")
    if one.tensor_parallel_sizes and tensor_parallel_size not in one.tensor_parallel_sizes:
        sizes = ", ".join(map(str, one.tensor_parallel_sizes))
        found.append(f"{one.name} saw tensor-parallel sizes {sizes}, not {tensor_parallel_size}")
    if one.kind == "public":
        found.append(f"{one.name} is fitted to public figures: {one.source}")
    return found
