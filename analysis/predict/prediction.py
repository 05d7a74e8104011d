"""The answer: every term with its interval, what is left for the KV cache, and whether the engine starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from analysis.estimate import Basis, Estimate
from analysis.predict.settings import Settings

if TYPE_CHECKING:
    from analysis.throughput.predict import Speed

GIB = 2**30

Verdict = Literal["fits", "tight", "does_not_start"]
Phase = Literal["config", "init_device", "load", "profile", "kv_allocation", "graph_capture"]

_WORST: dict[Basis, int] = {"exact": 0, "calibrated": 1, "extrapolated": 2}


def total(plus: list[Estimate], minus: list[Estimate] | None = None, exact: float = 0.0) -> Estimate:
    """`exact` + sum(plus) - sum(minus), bytes; independent errors add in quadrature, each side by itself."""
    minus = minus or []
    value = exact + sum(one.value for one in plus) - sum(one.value for one in minus)
    below = [one.value - one.low for one in plus] + [one.high - one.value for one in minus]
    above = [one.high - one.value for one in plus] + [one.value - one.low for one in minus]
    basis = worst([*plus, *minus])
    return Estimate(value, value - math.hypot(*below), value + math.hypot(*above), basis)


def worst(estimates: list[Estimate]) -> Basis:
    """The weakest of the bases."""
    return max((one.basis for one in estimates), key=_WORST.__getitem__, default="exact")


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why the engine does not start: the phase that fails, the bytes that are missing (0 where it is no memory), and
    a sentence."""

    phase: Phase
    shortfall_bytes: float
    sentence: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """All sizes in bytes of one GPU: with several, of the rank that limits the engine."""

    model: str
    source: str
    settings: Settings
    weights_bytes: int
    kv_bytes_per_token: int
    activation: Estimate
    non_torch: Estimate
    cuda_graph: Estimate
    cuda_graph_estimate: Estimate
    context: Estimate
    runtime: Estimate
    budget_bytes: int
    fixed_pool: bool
    kv_pool: Estimate
    kv_cache_blocks: int
    kv_block_bytes: int
    kv_blocks_per_request: int
    kv_cache_tokens: Estimate
    full_length_requests: Estimate
    device_peak: Estimate
    verdict: Verdict
    obstacle: Obstacle | None
    reason: str
    basis: Basis
    origin: str
    warnings: tuple[str, ...]
    ignored: tuple[str, ...]
    speed: Speed | None = None
    """Throughput and latency at the load that the request states."""

    def fields(self) -> dict[str, Any]:
        """The fields of a batch's answer, without the id. GiB are 2^30 bytes."""
        answer: dict[str, Any] = {
            "weights_gib": _gib(self.weights_bytes),
            "kv_bytes_per_token": self.kv_bytes_per_token,
        }
        answer |= _gib_interval("activation", self.activation)
        answer |= _gib_interval("non_torch", self.non_torch)
        answer |= _gib_interval("cuda_graph", self.cuda_graph)
        answer |= _gib_interval("kv_pool", self.kv_pool)
        tokens = self.kv_cache_tokens
        answer |= {
            "kv_cache_tokens": int(tokens.value),
            "kv_cache_tokens_low": int(tokens.low),
            "kv_cache_tokens_high": int(tokens.high),
        }
        answer |= _gib_interval("device_peak", self.device_peak)
        if self.speed is not None:
            answer |= self.speed.fields()
        return answer | {"verdict": self.verdict, "basis": self.basis, "warnings": self.all_warnings()}

    def all_warnings(self) -> list[str]:
        """The reason for the verdict first, where it is not `fits`."""
        verdict = self.verdict.replace("_", " ")
        return [*([f"{verdict}: {self.reason}"] if self.verdict != "fits" else []), *self.warnings]

    def details(self) -> dict[str, Any]:
        """What `fields` leaves out: settings in force, the other terms, phase and shortfall."""
        s = self.settings
        requests = self.full_length_requests
        obstacle = self.obstacle
        return {
            "model": self.model,
            "source": self.source,
            "phase": obstacle.phase if obstacle else None,
            "shortfall_gib": _gib(obstacle.shortfall_bytes) if obstacle else None,
            "reason": self.reason,
            "full_length_requests": round(requests.value, 2),
            "full_length_requests_low": round(requests.low, 2),
            "full_length_requests_high": round(requests.high, 2),
            "kv_cache_blocks": self.kv_cache_blocks,
            "budget_gib": _gib(self.budget_bytes),
            **_gib_interval("context", self.context),
            **_gib_interval("cuda_graph_estimate", self.cuda_graph_estimate),
            **_gib_interval("runtime", self.runtime),
            "calibration": self.origin,
            **({} if self.speed is None else self.speed.details()),
            "settings": {
                "vllm_version": s.version_text,
                "gpu": s.device.name,
                "gpu_total_gib": _gib(s.device.total_bytes),
                "gpu_memory_utilization": s.gpu_memory_utilization,
                "tensor_parallel_size": s.tensor_parallel_size,
                "pipeline_parallel_size": s.pipeline_parallel_size,
                "max_model_len": s.max_model_len,
                "max_num_seqs": s.max_num_seqs,
                "max_num_batched_tokens": s.max_num_batched_tokens,
                "block_size": s.block_size,
                "kv_cache_dtype": s.kv_cache_dtype,
                "quantization": s.quantization,
                "enforce_eager": s.enforce_eager,
                "cudagraph_mode": s.cudagraph_mode,
                "cudagraph_sizes": len(s.capture_sizes),
                "model_runner": s.runner,
                "cuda_graph_estimate_in_budget": s.estimate_in_budget,
            },
            "ignored_options": list(self.ignored),
        }


def _gib(size: float) -> float:
    return round(size / GIB, 6)


def _gib_interval(name: str, estimate: Estimate) -> dict[str, float]:
    return {
        f"{name}_gib": _gib(estimate.value),
        f"{name}_gib_low": _gib(estimate.low),
        f"{name}_gib_high": _gib(estimate.high),
    }
