"""Lengths of prompts and outputs, in tokens: one number, or a distribution that a seed makes reproducible.

A distribution is a mapping with a ``kind``, as it stands in a workload file:

- ``{kind: fixed, tokens: 128}``; the plain number 128 means the same.
- ``{kind: uniform, min: 64, max: 256}``: whole numbers, both ends included.
- ``{kind: lognormal, mean: 220, std: 180, min: 4, max: 2048}``: mean and standard deviation of the lengths themselves
  (not of their logarithms) before the tails beyond ``min`` and ``max`` are cut off. Nothing piles up at the ends: the
  cut-off part is drawn anew, in effect, since the quantile is taken within what is left.
- ``{kind: file, path: lengths.csv, column: input_length}``: rows of a file, drawn with the seed and put back. Two
  lengths from one file come from the same row, so that a long prompt keeps its own output length.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Protocol

from bench.errors import BadRequest
from bench.load.tokenfile import read_column

_FORMAT = "lengths-v1"  # part of every hash: change it when the lengths of a given seed change
_MEAN_POINTS = 1000


class Lengths(Protocol):
    """Lengths in tokens; ``of`` is a pure function of its arguments."""

    @property
    def min(self) -> int: ...
    @property
    def max(self) -> int: ...
    @property
    def mean(self) -> float: ...
    def of(self, seed: int, what: str, index: int) -> int:
        """Length of request ``index``; ``what`` tells several lengths of one request apart."""
        ...


@dataclass(frozen=True)
class Fixed:
    tokens: int

    @property
    def min(self) -> int:
        return self.tokens

    @property
    def max(self) -> int:
        return self.tokens

    @property
    def mean(self) -> float:
        return float(self.tokens)

    def of(self, seed: int, what: str, index: int) -> int:
        return self.tokens


@dataclass(frozen=True)
class Uniform:
    min: int
    max: int

    @property
    def mean(self) -> float:
        return (self.min + self.max) / 2

    def of(self, seed: int, what: str, index: int) -> int:
        return self.min + int(_unit(seed, what, index) * (self.max - self.min + 1))


@dataclass(frozen=True)
class LogNormal:
    """Parameters of the underlying normal: ``mu`` and ``sigma`` of the logarithm of a length."""

    mu: float
    sigma: float
    min: int
    max: int

    @property
    def mean(self) -> float:
        """After the cut, by the mean of evenly spaced quantiles."""
        return sum(self._quantile((i + 0.5) / _MEAN_POINTS) for i in range(_MEAN_POINTS)) / _MEAN_POINTS

    def of(self, seed: int, what: str, index: int) -> int:
        return self._quantile(_unit(seed, what, index))

    def _quantile(self, share: float) -> int:
        normal = NormalDist(self.mu, self.sigma)
        low, high = normal.cdf(math.log(self.min - 0.5)), normal.cdf(math.log(self.max + 0.5))
        inside = low + share * (high - low)
        if not 0.0 < inside < 1.0:  # both ends lie so far out that no probability is left between them
            return self.min if inside <= 0.0 else self.max
        return min(self.max, max(self.min, round(math.exp(normal.inv_cdf(inside)))))


@dataclass(frozen=True)
class FromFile:
    tokens: Sequence[int]

    @property
    def min(self) -> int:
        return min(self.tokens)

    @property
    def max(self) -> int:
        return max(self.tokens)

    @property
    def mean(self) -> float:
        return sum(self.tokens) / len(self.tokens)

    def of(self, seed: int, what: str, index: int) -> int:
        # Not `what`: the lengths of one request must come from one row.
        return self.tokens[int(_unit(seed, "row", index) * len(self.tokens))]


def parse_lengths(name: str, value: Any) -> Lengths:
    """Read a length or a distribution; ``name`` is the setting. Raises :class:`BadRequest` naming it."""
    if not isinstance(value, Mapping):
        return Fixed(_tokens(name, value))
    settings = {str(key): item for key, item in value.items()}
    kind = settings.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise BadRequest(f"{name}.kind={kind}: choose one of {', '.join(_KINDS)}")
    wanted, optional, make = _KINDS[kind]
    for key in wanted:
        if settings.get(key) is None:
            raise BadRequest(f"{name}.{key}=None: {kind} lengths need {', '.join(wanted)}")
    for key in settings:
        if key not in wanted + optional:
            raise BadRequest(f"{name}.{key}={settings[key]}: {kind} lengths take {', '.join(wanted + optional)} alone")
    return make(name, settings)


def _fixed(name: str, settings: dict[str, Any]) -> Lengths:
    return Fixed(_tokens(f"{name}.tokens", settings["tokens"]))


def _uniform(name: str, settings: dict[str, Any]) -> Lengths:
    return Uniform(*_range(name, settings))


def _lognormal(name: str, settings: dict[str, Any]) -> Lengths:
    low, high = _range(name, {"min": 1, **settings})
    mean, std = _number(f"{name}.mean", settings["mean"]), _number(f"{name}.std", settings["std"])
    if not low <= mean <= high:
        raise BadRequest(f"{name}.mean={mean:g}: must lie between min={low} and max={high}")
    # Moments of the log-normal: mean = exp(mu + sigma^2 / 2), variance = mean^2 (exp(sigma^2) - 1).
    variance = math.log1p((std / mean) ** 2)
    return LogNormal(math.log(mean) - variance / 2, math.sqrt(variance), low, high)


def _file(name: str, settings: dict[str, Any]) -> Lengths:
    return FromFile(read_column(f"{name}.path", str(settings["path"]), settings.get("column"), name))


_KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], Callable[[str, dict[str, Any]], Lengths]]] = {
    "fixed": (("tokens",), (), _fixed),
    "uniform": (("min", "max"), (), _uniform),
    "lognormal": (("mean", "std", "max"), ("min",), _lognormal),
    "file": (("path",), ("column",), _file),
}


def _range(name: str, settings: dict[str, Any]) -> tuple[int, int]:
    low, high = _tokens(f"{name}.min", settings["min"]), _tokens(f"{name}.max", settings["max"])
    if high < low:
        raise BadRequest(f"{name}.max={high}: must be at least min={low}")
    return low, high


def _tokens(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadRequest(f"{name}={value}: must be a whole number of tokens greater than 0")
    return value


def _number(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise BadRequest(f"{name}={value}: must be a number of tokens greater than 0")
    return float(value)


def _unit(seed: int, what: str, index: int) -> float:
    """A number in [0, 1) from a hash, for it is the same on every machine and in every version of Python."""
    digest = hashlib.sha256("\x1f".join([_FORMAT, str(seed), what, str(index)]).encode()).digest()
    return (int.from_bytes(digest[:8], "little") >> 11) / 2**53
