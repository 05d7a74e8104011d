"""What one load run sends: the pattern, the lengths, the objectives. Every setting is checked here and only here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from bench.errors import BadRequest
from bench.load.arrivals import PATTERNS, Pattern
from bench.load.lengths import Lengths, parse_lengths
from bench.load.traces import TIME_UNITS

SLO_METRICS = ("ttft", "tpot", "itl", "e2e")
MAX_WORKERS = 64
MAX_REQUESTS = 10_000_000
MIN_RATE_PER_S = 1e-6  # a request in eleven days
WARMUP_CONCURRENCY = 32

_PATTERN_FIELDS = {  # setting of single patterns -> its value where it says nothing
    "rate_per_s": None, "rate_end_per_s": None, "burstiness": 1.0, "trace_file": None, "trace_speed": 1.0,
    "trace_time_unit": "auto", "concurrency": None,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LoadSpec:
    """One load run. Raises :class:`BadRequest` (``field=value: what to write``) when a field is out of range.

    ``pattern``: ``closed_loop`` (``concurrency`` slots, each sending its next request when its last has ended), or an
    open one, whose sending times are fixed beforehand: ``constant``, ``poisson``, ``gamma`` (``rate_per_s``,
    ``burstiness``), ``ramp`` (``rate_per_s`` to ``rate_end_per_s``), ``trace`` (``trace_file``). In an open pattern
    ``concurrency`` caps the requests in flight; a request held back by it is still timed from when it was due.

    The run ends with ``num_requests``, or when nothing more is due within ``duration_s``, whichever comes first;
    requests in flight are awaited.

    Lengths are in tokens and exact, for the engine is told to ignore its end-of-sequence token: a number or a
    distribution, see :mod:`bench.load.lengths`. ``shared_prefix_ratio`` is the share of each prompt that it has in
    common with the others of its group (``prefix_groups`` of them, taken in turn); at 0 no two prompts begin alike.

    ``slo_*_s`` are limits a request must meet to count for the goodput; ``slo_itl_s`` is for its longest ITL.

    ``seed`` makes prompts, lengths and arrivals, each the same for the same seed. Give every run on the same engine
    its own (see :func:`bench.load.prompts.derive_seed`): with the same seed it would send the same prompts, and be
    answered out of the engine's prefix cache.

    ``timeout_s`` bounds one request from its sending to its last byte. ``stall_timeout_s`` bounds the silence between
    two pieces of a response once its body has begun; it does not bound the wait for the first token, because a
    request may queue for long with nothing wrong.

    ``workers``: processes that send; 1 is this process, 0 lets the machine's free cores decide. ``save_requests``
    keeps one row per request, ``save_chunks`` also every arrival.
    """

    pattern: str = "closed_loop"
    concurrency: int | None = None
    num_requests: int | None = None
    duration_s: float | None = None
    rate_per_s: float | None = None
    rate_end_per_s: float | None = None
    burstiness: float = 1.0
    trace_file: str | None = None
    trace_speed: float = 1.0
    trace_time_unit: str = "auto"
    input_tokens: Any = 128
    output_tokens: Any = 32
    shared_prefix_ratio: float = 0.0
    prefix_groups: int = 1
    slo_ttft_s: float | None = None
    slo_tpot_s: float | None = None
    slo_itl_s: float | None = None
    slo_e2e_s: float | None = None
    workers: int = 1
    save_requests: bool = False
    save_chunks: bool = False
    seed: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    timeout_s: float = 600.0
    stall_timeout_s: float = 120.0

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str) or self.pattern not in PATTERNS:
            raise BadRequest(f"pattern={self.pattern}: choose one of {', '.join(PATTERNS)}")
        for name in ("concurrency", "num_requests", "duration_s", "rate_per_s", "rate_end_per_s"):
            self._check_number(name, above=0, whole=name in ("concurrency", "num_requests"), optional=True)
        for name in ("rate_per_s", "rate_end_per_s"):
            self._check((getattr(self, name) or 1.0) >= MIN_RATE_PER_S, name, f"must be {MIN_RATE_PER_S:g} or more")
        for name in ("burstiness", "trace_speed", "top_p", "timeout_s", "stall_timeout_s"):
            self._check_number(name, above=0)
        for metric in SLO_METRICS:
            self._check_number(f"slo_{metric}_s", above=0, optional=True)
        self._check_number("prefix_groups", above=0, whole=True)
        for name in ("workers", "seed"):
            self._check_number(name, at_least=0, whole=True)
        for name in ("temperature", "shared_prefix_ratio"):
            self._check_number(name, at_least=0)
        self._check(self.top_p <= 1, "top_p", "must be greater than 0 and at most 1")
        self._check(self.shared_prefix_ratio <= 1, "shared_prefix_ratio", "must be from 0 to 1")
        self._check(self.workers <= MAX_WORKERS, "workers", f"must be at most {MAX_WORKERS}")
        self._check(self.save_requests or not self.save_chunks, "save_chunks", "needs save_requests=true")
        self._check(self.trace_time_unit in TIME_UNITS, "trace_time_unit", f"choose one of {', '.join(TIME_UNITS)}")
        self._check_pattern()
        # Reading them is checking them; a trace is read too, so that a wrong file shows before an engine starts.
        _ = self.input_lengths, self.output_lengths
        if self.kind.brings_lengths and not self.total:
            raise BadRequest(f"trace_file={self.trace_file}: no request of it falls into duration_s={self.duration_s}")
        if (self.total or 0) > MAX_REQUESTS:
            what = "num_requests" if self.duration_s is None else "duration_s"
            raise BadRequest(f"{what}={getattr(self, what):g}: makes {self.total} requests; at most {MAX_REQUESTS}")

    @property
    def kind(self) -> Pattern:
        """The pattern's own part."""
        return PATTERNS[self.pattern]

    @property
    def is_open(self) -> bool:
        """Sending times are fixed beforehand."""
        return self.kind.is_open

    @property
    def total(self) -> int | None:
        """Number of requests; None for a closed loop that only its duration ends."""
        return self.kind.total(self)

    @cached_property
    def input_lengths(self) -> Lengths:
        """Prompt lengths."""
        return parse_lengths("input_tokens", self.input_tokens)

    @cached_property
    def output_lengths(self) -> Lengths:
        """Output lengths."""
        return parse_lengths("output_tokens", self.output_tokens)

    @property
    def _trace_tokens(self) -> list[tuple[int, int]]:
        found = self.kind.arrivals(self) if self.kind.brings_lengths else ()
        return [(arrival.input_tokens or 0, arrival.output_tokens or 0) for arrival in found]

    @property
    def input_tokens_mean(self) -> float:
        """Mean prompt length asked for, tokens."""
        rows = self._trace_tokens
        return sum(row[0] for row in rows) / len(rows) if rows else self.input_lengths.mean

    @property
    def output_tokens_mean(self) -> float:
        """Mean output length asked for, tokens."""
        rows = self._trace_tokens
        return sum(row[1] for row in rows) / len(rows) if rows else self.output_lengths.mean

    @property
    def shortest_prompt_tokens(self) -> int:
        """Fewest tokens that a prompt may have."""
        rows = self._trace_tokens
        return min(row[0] for row in rows) if rows else self.input_lengths.min

    @property
    def longest_request_tokens(self) -> int:
        """Most tokens that one request may have, prompt and output together."""
        rows = self._trace_tokens
        return max(map(sum, rows)) if rows else self.input_lengths.max + self.output_lengths.max

    @property
    def slo(self) -> dict[str, float]:
        """The limits that were stated: metric to seconds."""
        stated = {metric: getattr(self, f"slo_{metric}_s") for metric in SLO_METRICS}
        return {metric: limit for metric, limit in stated.items() if limit is not None}

    def for_warmup(self, num_requests: int, seed: int) -> LoadSpec:
        """A closed loop of ``num_requests`` with the same lengths, to bring an engine to its working temperature."""
        quiet = {f"slo_{metric}_s": None for metric in SLO_METRICS} | _PATTERN_FIELDS
        slots = self.concurrency if not self.is_open and self.concurrency else WARMUP_CONCURRENCY
        lengths: dict[str, Any] = {}
        if self.kind.brings_lengths:
            lengths = {"input_tokens": round(self.input_tokens_mean), "output_tokens": round(self.output_tokens_mean)}
        changes = quiet | lengths | {"concurrency": min(slots, num_requests), "num_requests": num_requests}
        return replace(self, pattern="closed_loop", duration_s=None, seed=seed, workers=1, save_requests=False,
                       save_chunks=False, **changes)  # fmt: skip

    def _check_pattern(self) -> None:
        kind = self.kind
        for name in kind.needs:
            self._check(getattr(self, name) is not None, name, f"pattern {self.pattern} needs it")
        for name, silent in _PATTERN_FIELDS.items():
            means_something = name in kind.needs or name in kind.takes
            wanted = ", ".join(p for p, other in PATTERNS.items() if name in other.needs + other.takes)
            self._check(
                means_something or getattr(self, name) == silent, name,
                f"pattern {self.pattern} has no use for it; it belongs to {wanted}",
            )  # fmt: skip
        self._check(
            not (self.is_open and self.concurrency) or self.workers <= 1, "workers",
            f"a cap on requests in flight (concurrency={self.concurrency}) is one count and takes one worker; write 1",
        )  # fmt: skip
        ends = kind.brings_lengths or self.num_requests is not None or self.duration_s is not None
        self._check(ends, "num_requests", "say how much to send: num_requests, duration_s or both")

    def _check_number(
        self, name: str, *, above: float | None = None, at_least: float | None = None, whole: bool = False,
        optional: bool = False,
    ) -> None:  # fmt: skip
        value = getattr(self, name)
        if value is None and optional:
            return
        kinds = (int,) if whole else (int, float)
        number = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
        inside = number and (above is None or value > above) and (at_least is None or value >= at_least)
        what = "a whole number" if whole else "a number"
        bound = f"greater than {above:g}" if above is not None else f"of {at_least:g} or more"
        self._check(inside, name, f"must be {what} {bound}{', or null' if optional else ''}")

    def _check(self, ok: bool, name: str, fix: str) -> None:
        if not ok:
            raise BadRequest(f"{name}={getattr(self, name)}: {fix}")
