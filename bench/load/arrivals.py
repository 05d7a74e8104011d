"""When requests are due. One class per pattern; :data:`PATTERNS` is the list a load specification chooses from.

Open patterns fix every sending time before the run, whatever the engine does: a load that waits for the engine hides
its queue (coordinated omission). All times come from the seed alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING

from bench.load.prompts import derive_seed
from bench.load.tokenfile import find_file
from bench.load.traces import read_trace

if TYPE_CHECKING:
    from bench.load.spec import LoadSpec


@dataclass(frozen=True)
class Arrival:
    """``due_ns``: nanoseconds after the start. Lengths in tokens where the pattern brings its own, else None."""

    due_ns: int
    input_tokens: int | None = None
    output_tokens: int | None = None


class Pattern:
    """``needs``: settings it cannot do without. ``takes``: those that mean something to it besides."""

    is_open = True
    has_steady_state = True
    brings_lengths = False
    needs: tuple[str, ...] = ("rate_per_s",)
    takes: tuple[str, ...] = ()

    def arrivals(self, spec: LoadSpec) -> Iterable[Arrival]:
        """All arrivals in order."""
        return (Arrival(round(offset_s * 1e9)) for offset_s in self.offsets_s(spec))

    def total(self, spec: LoadSpec) -> int | None:
        """Number of requests; None where only the time ends them."""
        by_time = []
        if spec.duration_s is not None:  # far beyond what a specification allows, but still a number
            by_time.append(max(1, round(min(self.expected(spec, spec.duration_s), 1e18))))
        return min(by_time + ([] if spec.num_requests is None else [spec.num_requests]))

    def expected(self, spec: LoadSpec, duration_s: float) -> float:
        """Requests due on average within ``duration_s`` of the start."""
        assert spec.rate_per_s is not None
        return spec.rate_per_s * duration_s

    def offsets_s(self, spec: LoadSpec) -> Iterable[float]:
        raise NotImplementedError

    def _renewals(self, spec: LoadSpec, shape: float | None) -> Sequence[float]:
        """Arrivals at a mean gap of exactly 1, the first at 0; gaps are gamma of ``shape``, or even for None.

        The gaps are scaled to their mean, as vLLM's benchmark does, so that no seed offers more load than another.
        """
        total = self.total(spec)
        assert total is not None
        if shape is None or total < 2:
            return range(total)
        # Random(seed).random() is the one sequence that Python promises to keep; gammavariate is made of it.
        generator = random.Random(derive_seed(spec.seed, "arrivals"))
        points = [0.0]
        for _ in range(total - 1):
            points.append(points[-1] + generator.gammavariate(shape, 1.0))
        if points[-1] <= 0:  # shapes near 0 put all gaps below the smallest number
            return range(total)
        scale = (total - 1) / points[-1]
        return [point * scale for point in points]


class ClosedLoop(Pattern):
    """So many slots, each sending its next request when its last has ended; nothing is due at a set time."""

    is_open = False
    needs = ("concurrency",)

    def arrivals(self, spec: LoadSpec) -> Iterator[Arrival]:
        total = self.total(spec)
        return (Arrival(0) for _ in (count() if total is None else range(total)))

    def total(self, spec: LoadSpec) -> int | None:
        return spec.num_requests


class Constant(Pattern):
    """One request every 1 / rate seconds."""

    takes = ("concurrency",)
    shape: float | None = None

    def offsets_s(self, spec: LoadSpec) -> Iterable[float]:
        assert spec.rate_per_s is not None
        return (point / spec.rate_per_s for point in self._renewals(spec, self.shape))


class Poisson(Constant):
    """Exponential gaps: independent users."""

    shape = 1.0


class Gamma(Pattern):
    """Gamma gaps of shape ``burstiness``: below 1 burstier than Poisson, above 1 more even. vLLM's meaning."""

    takes = ("concurrency", "burstiness")

    def offsets_s(self, spec: LoadSpec) -> Iterable[float]:
        assert spec.rate_per_s is not None
        return (point / spec.rate_per_s for point in self._renewals(spec, spec.burstiness))


class Ramp(Pattern):
    """A rate that goes in a straight line from ``rate_per_s`` to ``rate_end_per_s``, with gamma gaps.

    Made by a change of time: arrivals of rate 1 at operational times s become arrivals at t with
    s = rate t + (end - rate) t^2 / (2 T), the requests due by t.
    """

    has_steady_state = False
    needs = ("rate_per_s", "rate_end_per_s")
    takes = ("concurrency", "burstiness")

    def expected(self, spec: LoadSpec, duration_s: float) -> float:
        assert spec.rate_per_s is not None and spec.rate_end_per_s is not None
        return (spec.rate_per_s + spec.rate_end_per_s) / 2 * duration_s

    def offsets_s(self, spec: LoadSpec) -> Iterable[float]:
        total, first, last = self.total(spec), spec.rate_per_s, spec.rate_end_per_s
        assert total is not None and first is not None and last is not None
        duration_s = spec.duration_s or 2 * total / (first + last)
        slope = (last - first) / duration_s
        for point in self._renewals(spec, spec.burstiness):
            # The root of the quadratic, in the form that stays exact where the slope is nearly 0.
            yield 2 * point / (first + math.sqrt(max(0.0, first * first + 2 * slope * point)))


class Replay(Pattern):
    """The arrivals and lengths of a file; ``trace_speed`` 2 sends them in half the time."""

    brings_lengths = True
    needs = ("trace_file",)
    takes = ("concurrency", "trace_speed", "trace_time_unit")

    def arrivals(self, spec: LoadSpec) -> Sequence[Arrival]:
        assert spec.trace_file is not None
        status = find_file("trace_file", spec.trace_file).stat()
        return _replayed(
            spec.trace_file, (status.st_mtime_ns, status.st_size), spec.trace_time_unit, spec.trace_speed,
            spec.duration_s, spec.num_requests,
        )  # fmt: skip

    def total(self, spec: LoadSpec) -> int:
        return len(self.arrivals(spec))


@lru_cache(maxsize=4)  # asked for often, and a trace may have a million rows
def _replayed(
    path: str, _version: tuple[int, int], unit: str, speed: float, duration_s: float | None, num_requests: int | None
) -> Sequence[Arrival]:
    trace = read_trace(path, unit)
    found = []
    for offset_s, inputs, outputs in zip(trace.offsets_s, trace.input_tokens, trace.output_tokens, strict=True):
        due_s = offset_s / speed
        if duration_s is not None and due_s >= duration_s:
            break
        found.append(Arrival(round(due_s * 1e9), inputs, outputs))
    return tuple(found[:num_requests])


PATTERNS: dict[str, Pattern] = {
    "closed_loop": ClosedLoop(),
    "constant": Constant(),
    "poisson": Poisson(),
    "gamma": Gamma(),
    "ramp": Ramp(),
    "trace": Replay(),
}
