"""Load on a live engine. Nothing here needs an engine restart, so one engine start runs a list of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.config.checks import positive, require


@dataclass
class WorkloadPoint:
    """One closed loop: `concurrency` clients, each sending its next request when the last one is done."""

    name: str = "closed-loop"
    concurrency: int = 8
    num_requests: int = 32
    """Measured requests; warm-up comes on top."""
    input_tokens: int = 128
    output_tokens: int = 32
    """Exact: generation ignores end-of-sequence."""
    warmup_requests: int = 8
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_duration_s: float | None = None
    """Longest time of the workload, and of its warm-up; past it the engine counts as too slow for this load, and the
    row keeps its memory figures."""
    timeout_s: float = 600.0
    """Longest time of one request."""
    stall_timeout_s: float = 120.0
    """Longest silence within one request."""

    def __post_init__(self) -> None:
        prefix = f"workload.points[{self.name}]"
        for name in ("concurrency", "num_requests", "input_tokens", "output_tokens", "timeout_s", "stall_timeout_s"):
            positive(f"{prefix}.{name}", getattr(self, name))
        positive(f"{prefix}.max_duration_s", self.max_duration_s, optional=True)
        require(self.warmup_requests >= 0, f"{prefix}.warmup_requests", self.warmup_requests, "must be 0 or more")
        require(self.temperature >= 0, f"{prefix}.temperature", self.temperature, "must be 0 or more")
        require(0 < self.top_p <= 1, f"{prefix}.top_p", self.top_p, "must be greater than 0 and at most 1")


@dataclass
class WorkloadConfig:
    """The workloads of one engine start, in this order."""

    name: str = "none"
    points: list[WorkloadPoint] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [point.name for point in self.points]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, "workload.points", ", ".join(twice), "give each workload of a list a name of its own")
