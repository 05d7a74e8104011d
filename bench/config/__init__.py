"""Every setting of the harness: one dataclass a node, which validates itself and says its units."""

from bench.config.colocate import ColocateConfig, MemberConfig, RouterNode, StreamConfig
from bench.config.device import DeviceConfig, TelemetryConfig
from bench.config.engine import EngineConfig
from bench.config.knee import KneeConfig
from bench.config.model import ModelConfig, QuantizationConfig
from bench.config.root import BenchConfig, PathsConfig, SweepConfig, check_request
from bench.config.workload import WorkloadConfig, WorkloadPoint

__all__ = [
    "BenchConfig", "ColocateConfig", "DeviceConfig", "EngineConfig", "KneeConfig", "MemberConfig", "ModelConfig",
    "PathsConfig", "QuantizationConfig", "RouterNode", "StreamConfig", "SweepConfig", "TelemetryConfig",
    "WorkloadConfig", "WorkloadPoint", "check_request",
]  # fmt: skip
