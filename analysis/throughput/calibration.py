"""Fitted coefficients of the roofline, read from small text files and chosen for one engine and device.

A calibration belongs to (vLLM version, model runner, device, weight format). On a device with a sheet of peak figures
its weights, kv and compute coefficients are multiples of the sheet's times, the reciprocals of the achieved shares
(MBU, MFU), so that they carry over to another device; without one, on a CPU, they are seconds per GB and per TFLOP.

Format history of the files:
  1  first version
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from analysis.calibration import CalibrationError
from analysis.gpus import Sheet
from analysis.throughput.roofline import COEFFICIENTS, Vector

FORMAT = 1
FOLDER = Path(__file__).resolve().parents[1] / "calibrations" / "throughput"
KINDS: Final = ("own", "public")
"""own: fitted to measurements of ours; public: figures that others published."""

Reference = Literal["sheet", "absolute"]
Metric = Literal["tpot", "ttft", "throughput"]
METRICS: Final[tuple[Metric, ...]] = ("tpot", "ttft", "throughput")

FORMATS: Final = ("fp32", "16bit", "8bit", "4bit")
"""Weight formats that share kernels closely enough to be fitted together."""

_BEYOND = 0.2
"""Added to a half-width, in logarithm, per factor of e that a load lies beyond the fitted range."""
_BORROWED = 0.15
"""... and per unit of distance, on top of the half-width's own growth."""


@dataclass(frozen=True, slots=True)
class Rates:
    """One calibration. `half_widths` are of 90 % intervals, in logarithm: value x exp(+- half-width)."""

    name: str
    kind: str
    source: str
    vllm_version: str
    runner: str
    device: str
    weight_format: str
    reference: Reference
    tensor_parallel_sizes: tuple[int, ...]
    coefficients: Vector
    half_widths: Mapping[str, float]
    ranges: Mapping[str, tuple[float, float]]
    models: tuple[str, ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def seconds_per_unit(self, sheet: Sheet | None) -> Vector:
        """The coefficients in seconds per step, byte, byte, FLOP, FLOP, token, sequence."""
        return tuple(map(_product, self.coefficients, units(self.reference, sheet)))

    def outside(self, load: Mapping[str, float]) -> dict[str, float]:
        """What of a load lies beyond the fitted ranges, and by which factor."""
        beyond = {}
        for name, (low, high) in self.ranges.items():
            value = load.get(name)
            if value is not None and value > 0 and not low * (1 - 1e-9) <= value <= high * (1 + 1e-9):
                beyond[name] = low / value if value < low else value / high
        return beyond

    def half_width(self, metric: Metric, distance: float, beyond: Mapping[str, float]) -> float:
        """Half of the 90 % interval, in logarithm, at a distance and beyond the ranges."""
        stretched = math.hypot(*[_BEYOND * math.log(factor) for factor in beyond.values()])
        return self.half_widths[metric] * (1.0 + distance) + _BORROWED * distance + stretched


def _product(one: float, other: float) -> float:
    return one * other


def units(reference: Reference, sheet: Sheet | None) -> Vector:
    """What one unit of each coefficient is, in the units of COEFFICIENTS. Raises CalibrationError without a sheet."""
    if reference == "absolute":
        return (1.0, 1e-9, 1e-9, 1e-12, 1e-12, 1.0, 1.0)
    if sheet is None:
        raise CalibrationError("the peak bandwidth and FLOPs of this device are not known")
    byte, flop = 1.0 / sheet.bandwidth_bytes_per_s, 1.0 / sheet.flops_16bit_per_s
    return (1.0, byte, byte, flop, flop, 1.0, 1.0)


def load(path: Path) -> Rates:
    """Reads one file. Raises CalibrationError on anything that is not such a calibration."""
    try:
        return from_document(json.loads(path.read_text(encoding="utf-8")), path.name)
    except OSError as unreadable:
        raise CalibrationError(f"{path} cannot be read: {unreadable.strerror}") from None
    except CalibrationError:
        raise
    except ValueError as broken:
        raise CalibrationError(f"{path.name} is not JSON: {broken}") from None


def from_document(document: Any, name: str = "calibration") -> Rates:
    """A calibration from the content of its file; the same errors as `load`."""
    if not isinstance(document, dict) or "format" not in document:
        raise CalibrationError(f"{name} is not a calibration: the field 'format' is missing")
    if document["format"] != FORMAT:
        raise CalibrationError(
            f"{name} has format {document['format']!r} and this program reads {FORMAT}; fit it again"
        )
    try:
        if document["kind"] not in KINDS:
            raise CalibrationError(f"{name}: kind is {document['kind']!r}; it must be one of {', '.join(KINDS)}")
        if document["weight_format"] not in FORMATS:
            raise CalibrationError(
                f"{name}: weight_format is {document['weight_format']!r}; it must be one of {', '.join(FORMATS)}"
            )
        given = document["coefficients"]
        if strange := sorted(set(given) ^ set(COEFFICIENTS)):
            raise CalibrationError(f"{name}: coefficient {strange[0]!r} is missing or not known")
        values = tuple(float(given[one]["value"]) for one in COEFFICIENTS)
        if any(not math.isfinite(value) or value < 0 for value in values):
            raise CalibrationError(f"{name}: a coefficient is negative or not a number")
        return Rates(
            document["name"], document["kind"], document["source"], document["vllm_version"], document["runner"],
            document["device"], document["weight_format"], document["reference"],
            tuple(document["tensor_parallel_sizes"]), values,
            {one: float(document["intervals"][one]["half_width_log"]) for one in METRICS},
            {one: (float(low), float(high)) for one, (low, high) in document["ranges"].items()},
            tuple(document["rows"]["models"]), document,
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as broken:
        raise CalibrationError(f"{name} is malformed: {type(broken).__name__} at {broken}") from None


@cache
def shipped(folder: Path = FOLDER) -> tuple[Rates, ...]:
    """Every calibration in the folder, by name."""
    return tuple(load(path) for path in sorted(folder.glob("*.json")))


@dataclass(frozen=True, slots=True)
class Choice:
    """A calibration for one engine; `distance` is 0 for one fitted to this very version, runner, device and format."""

    rates: Rates
    distance: float
    notes: tuple[str, ...]


def select(
    vllm_version: str, runner: str, device: str, weight_format: str, tensor_parallel_size: int,
    candidates: Iterable[Rates] | None = None,
) -> Choice | None:  # fmt: skip
    """The nearest calibration, own measurements before public figures at equal distance; None without any.

    CPU and GPU never stand in for each other.
    """
    given = shipped() if candidates is None else candidates
    pool = [one for one in given if (one.device == "cpu") == (device == "cpu")]
    asked = (vllm_version, runner, device, weight_format, tensor_parallel_size)
    scored = sorted(((distance(one, *asked), KINDS.index(one.kind), one.name, one) for one in pool), key=_key)
    if not scored:
        return None
    apart, _, _, best = scored[0]
    return Choice(best, apart, tuple(_notes(best, *asked)))


def _key(scored: tuple[float, int, str, Rates]) -> tuple[float, int, str]:
    return scored[:3]


def distance(
    one: Rates, vllm_version: str, runner: str, device: str, weight_format: str, tensor_parallel_size: int
) -> float:
    """Versions 0.03 per minor release (0.6 at most), another device 0.5, weight format 0.5, model runner 0.5, a
    tensor-parallel size never seen 0.5: its all-reduce is in the step coefficient."""
    apart = min(0.03 * abs(_minor(one.vllm_version) - _minor(vllm_version)), 0.6)
    apart += 0.5 * (one.device != device) + 0.5 * (one.weight_format != weight_format) + 0.5 * (one.runner != runner)
    return round(apart + 0.5 * (tensor_parallel_size not in one.tensor_parallel_sizes), 6)


def _minor(version: str) -> int:
    parts = version.split("+")[0].split(".")
    try:
        return int(parts[0]) * 100 + int(parts[1])
    except (ValueError, IndexError):
        return 0


def _notes(
    one: Rates, vllm_version: str, runner: str, device: str, weight_format: str, tensor_parallel_size: int
) -> list[str]:
    differs = []
    if _minor(one.vllm_version) != _minor(vllm_version):
        differs.append(f"vLLM {one.vllm_version}, not {vllm_version}")
    if one.runner != runner:
        differs.append(f"model runner {one.runner}, not {runner}")
    if one.device != device:
        differs.append(f"{one.device}, not {device}")
    if one.weight_format != weight_format:
        differs.append(f"{one.weight_format} weights, not {weight_format}")
    if tensor_parallel_size not in one.tensor_parallel_sizes:
        sizes = ", ".join(map(str, one.tensor_parallel_sizes))
        differs.append(f"tensor-parallel size {sizes}, not {tensor_parallel_size}")
    notes = [f"{one.name} was fitted on {'; '.join(differs)}: intervals are widened"] if differs else []
    if one.kind == "public":
        notes.append(f"{one.name} holds figures published by others, none measured by this project: {one.source}")
    return notes


def weight_format(config: Mapping[str, Any], dtype_bytes: int) -> str:
    """The class of FORMATS of a config.json."""
    from analysis.fit.starts import weight_bits

    bits = weight_bits(config, dtype_bytes)
    return "4bit" if bits <= 4 else "8bit" if bits <= 8 else "16bit" if bits <= 16 else "fp32"
