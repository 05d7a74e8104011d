"""Where an engine runs and how it is watched."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.config.checks import one_of, positive, require


@dataclass
class DeviceConfig:
    """The device under test and the gate that must find it clean before and after each engine."""

    kind: str = "auto"
    """`cuda`, `cpu`, or `auto`: what the installed vLLM was built for."""
    indices: list[int] = field(default_factory=lambda: [0])
    """NVML indices of the GPUs an engine gets (as many as tensor x pipeline parallel)."""
    cpu_threads: int | None = None
    """OpenMP threads of a CPU engine; null: all cores but one, which the client and the scheduler share."""
    gate_timeout_s: float = 60.0
    """Longest wait for the device to be clean; past it the run is a failed row with cause `device_not_clean`."""
    gate_tolerance_mib: int = 512
    """GPU memory in use above which the device does not count as clean, MiB. Idle drivers hold a few hundred."""
    allow_foreign_processes: bool = False
    """Measure although another process uses the GPU; the row is flagged."""

    def __post_init__(self) -> None:
        one_of("device.kind", self.kind, ("auto", "cpu", "cuda"))
        positive("device.cpu_threads", self.cpu_threads, optional=True)
        positive("device.gate_timeout_s", self.gate_timeout_s)
        require(
            len(self.indices) == len(set(self.indices)) and all(i >= 0 for i in self.indices) and bool(self.indices),
            "device.indices", self.indices, "list each GPU index once, starting from 0, as in device.indices=[0]",
        )  # fmt: skip


GPU_HZ, CPU_HZ = 20.0, 4.0


@dataclass
class TelemetryConfig:
    """The sampler, a process of its own."""

    enabled: bool = True
    """False: take no samples; the memory, power and processor columns of outside readings stay null."""
    hz: float | None = None
    """Samples a second; null: 20 with a GPU, whose driver keeps no peak, 4 without, where the kernel keeps the peak of
    memory and the sampler takes its core's share from the engine."""
    pss_hz: float = 4.0
    """PSS readings a second at most; they walk page tables, so the sampler lowers this where it costs too much."""
    idle_s: float = 0.25
    """Idle baseline before each launch, seconds."""

    def __post_init__(self) -> None:
        if self.hz is not None:
            require(0.1 <= self.hz <= 200, "telemetry.hz", self.hz, "use 0.1 to 200 samples a second")
        require(0 < self.pss_hz <= (self.hz or 200), "telemetry.pss_hz", self.pss_hz,
                "use more than 0 and at most telemetry.hz")  # fmt: skip
        require(self.idle_s >= 0, "telemetry.idle_s", self.idle_s, "must be 0 or more")

    def samples_per_s(self, device_kind: str) -> float:
        """The rate on a device of this kind (`cuda` or `cpu`)."""
        return self.hz or (GPU_HZ if device_kind == "cuda" else CPU_HZ)
