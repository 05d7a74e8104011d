"""Load on a live engine. Nothing here needs an engine restart, so one engine start runs a list of them."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any

from bench.config.checks import positive, require
from bench.config.knee import KneeConfig
from bench.errors import BadRequest
from bench.load.spec import SLO_METRICS, LoadSpec
from bench.load.tokenfile import find_file

DEFAULT_CONCURRENCY, DEFAULT_REQUESTS = 8, 32

# What decides how long to wait, who sends and what is kept: not what is measured.
_NOT_CONTENT = ("timeout_s", "stall_timeout_s", "workers", "save_requests", "save_chunks")
# Settings of the first schema. Later ones enter a point's identity only where they say something, so that points
# measured before they existed are still the same points.
_FIRST = ("name", "concurrency", "num_requests", "input_tokens", "output_tokens", "warmup_requests", "temperature",
          "top_p", "seed", "max_duration_s")  # fmt: skip


@dataclass
class WorkloadPoint:
    """One load. All settings but the first and last few are those of :class:`bench.load.spec.LoadSpec`, which checks
    them."""

    name: str = "closed-loop"
    pattern: str = "closed_loop"
    """`closed_loop`: `concurrency` clients, each sending its next request when the last one is done. Open loops send
    at set times whatever the engine does: `constant`, `poisson` and `gamma` at `rate_per_s`, `ramp` from `rate_per_s`
    to `rate_end_per_s`, `trace` at the times of `trace_file`."""
    concurrency: int | None = None
    """Closed loop: clients (8 if not given). Open loop: most requests in flight, null for no cap."""
    num_requests: int | None = None
    """Measured requests; warm-up comes on top. 32 if neither this nor a duration is given."""
    duration_s: float | None = None
    """Seconds in which requests are sent; those in flight are awaited. With `num_requests` too: whichever is first."""
    rate_per_s: float | None = None
    """Requests a second of an open loop; of a ramp, at its start."""
    rate_end_per_s: float | None = None
    """Requests a second at the end of a ramp."""
    burstiness: float = 1.0
    """Shape of the gamma gaps of `gamma` and `ramp`: 1 is Poisson, below 1 burstier, above 1 more even (as vLLM's)."""
    trace_file: str | None = None
    """JSON Lines or CSV of timestamp, input_length, output_length; the names of Mooncake, Azure, BurstGPT and vLLM are
    known. A relative path is taken from the working folder, or else from the checkout."""
    trace_speed: float = 1.0
    """2 replays the trace in half the time."""
    trace_time_unit: str = "auto"
    """Unit of plain numbers in the timestamp column: auto, s or ms."""
    input_tokens: Any = 128
    """Prompt length: a number, or {kind: uniform, min, max}, {kind: lognormal, mean, std, max}, {kind: file, path}."""
    output_tokens: Any = 32
    """Output length, in the same ways. Exact: generation ignores end-of-sequence."""
    shared_prefix_ratio: float = 0.0
    """Share of each prompt that it has in common with the others of its group, for loads that hit the prefix cache."""
    prefix_groups: int = 1
    """How many different shared prefixes there are; requests take them in turn."""
    slo_ttft_s: float | None = None
    """Limits that a request must meet to count as goodput: time to first token, ..."""
    slo_tpot_s: float | None = None
    """... mean time per output token after the first, ..."""
    slo_itl_s: float | None = None
    """... longest inter-token latency, one value a token, ..."""
    slo_e2e_s: float | None = None
    """... and until the last token."""
    warmup_requests: int = 8
    """Sent before as a closed loop with the same lengths and other prompts; not measured."""
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    """Makes prompts, lengths and arrivals."""
    workers: int = 1
    """Client processes; 0 lets the cores that the engine leaves free decide."""
    save_requests: bool = False
    """Keep one row per request in the set's `requests` table."""
    save_chunks: bool = False
    """Keep every arrival in it too."""
    max_duration_s: float | None = None
    """Longest time of the workload, and of its warm-up; past it the engine counts as too slow for this load, and the
    row keeps its memory figures."""
    timeout_s: float = 600.0
    """Longest time of one request."""
    stall_timeout_s: float = 120.0
    """Longest silence within one request."""
    knee: KneeConfig | None = None
    """Search for the highest load that meets an objective instead of running one load."""

    def __post_init__(self) -> None:
        prefix = f"workload.points[{self.name}]"
        self._refuse_what_is_ignored(prefix)
        if self.pattern == "closed_loop" and self.concurrency is None:
            self.concurrency = DEFAULT_CONCURRENCY
        if self.num_requests is None and self.duration_s is None and self.pattern != "trace":
            self.num_requests = DEFAULT_REQUESTS
        positive(f"{prefix}.max_duration_s", self.max_duration_s, optional=True, null="no limit")
        require(self.warmup_requests >= 0, f"{prefix}.warmup_requests", self.warmup_requests, "must be 0 or more")
        if self.knee is not None:
            stated = any(getattr(self, f"slo_{metric}_s") is not None for metric in SLO_METRICS)
            self.knee.check(f"{prefix}.knee", self.pattern, stated)
            if self.knee.axis == "rate" and self.rate_per_s is None and self.pattern != "closed_loop":
                self.rate_per_s = self.knee.low
        self.spec(self.seed)

    def _refuse_what_is_ignored(self, prefix: str) -> None:
        """A setting that changes nothing would be taken for one that does."""
        plain = {item.name: item.default for item in dataclasses.fields(self)}
        if self.pattern == "trace":
            for name in ("input_tokens", "output_tokens"):
                value = getattr(self, name)
                require(value == plain[name], f"{prefix}.{name}", value, "leave it out; a trace brings its own lengths")
        if self.knee is None:
            return
        require(self.duration_s is None, f"{prefix}.duration_s", self.duration_s,
                "leave it out; how long a trial of a knee is, knee.trial_s or num_requests says")  # fmt: skip
        axis = "rate_per_s" if self.knee.axis == "rate" else "concurrency"
        value = getattr(self, axis)
        require(value is None or value == self.knee.low, f"{prefix}.{axis}", value,
                f"leave it out; the knee search sets it, beginning at knee.low={self.knee.low:g}")  # fmt: skip

    def spec(self, seed: int) -> LoadSpec:
        """What the load generator is asked for, with ``seed`` for this one run. Raises :class:`BadRequest`."""
        names = {item.name for item in dataclasses.fields(LoadSpec)}
        settings = {name: value for name, value in vars(self).items() if name in names}
        try:
            return LoadSpec(**settings | {"seed": seed})
        except BadRequest as error:
            raise BadRequest(f"workload.points[{self.name}].{error}") from None

    def content(self) -> dict[str, Any]:
        """Everything that is measured, for the identity of a point; files by what is in them."""
        plain = {item.name: item.default for item in dataclasses.fields(self)}
        content = {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in _NOT_CONTENT and (name in _FIRST or value != plain[name])
        }
        for name in ("input_tokens", "output_tokens"):
            if isinstance(content[name], dict) and "path" in content[name]:
                content[name] = content[name] | {"path": _digest(f"{name}.path", content[name]["path"])}
        if self.trace_file is not None:
            content["trace_file"] = _digest("trace_file", self.trace_file)
        return content


@dataclass
class WorkloadConfig:
    """The workloads of one engine start, in this order."""

    name: str = "none"
    points: list[WorkloadPoint] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [point.name for point in self.points]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, "workload.points", ", ".join(twice), "give each workload of a list a name of its own")


def _digest(setting: str, path: str) -> str:
    return "sha256:" + hashlib.sha256(find_file(setting, path).read_bytes()).hexdigest()
