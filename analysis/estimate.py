"""The shapes that arithmetic, fits and predictions exchange."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Basis = Literal["exact", "calibrated", "extrapolated"]

TERMS = ("activation", "cuda_graph", "cuda_graph_estimate", "non_torch", "context", "runtime")
"""Fitted memory terms of one rank.

activation: peak of the profiling run above weights, without CUDA graphs (vLLM's own accounting).
cuda_graph: what capturing CUDA graphs really took. cuda_graph_estimate: what the engine reserved for it beforehand.
non_torch: memory outside torch's allocator, inside the engine's budget. context: outside the budget (CUDA context).
runtime: what serving takes beyond what was profiled.
"""


@dataclass(frozen=True)
class Estimate:
    """Bytes with a 90 % interval. For `exact` figures low, value and high are equal."""

    value: float
    low: float
    high: float
    basis: Basis

    @classmethod
    def exact(cls, value: float) -> Estimate:
        """A figure that follows from arithmetic alone."""
        return cls(value, value, value, "exact")


@dataclass(frozen=True)
class Features:
    """What drives the fitted terms of one engine start; every setting resolved as vLLM resolves it, per rank."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    """Dense MLP width; for a mixture of experts the width of one expert times the experts a token takes."""
    layers: int
    """Layers on this pipeline rank."""
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    experts: int
    tensor_parallel_size: int
    pipeline_parallel_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    enforce_eager: bool
    graph_count: int
    """CUDA graphs captured (piecewise and full together); 0 when eager."""
    graph_max_size: int
    """Largest captured batch, tokens; 0 when eager."""
    dtype_bytes: int
    quantization: str
    """`none` or vLLM's quantization method."""
