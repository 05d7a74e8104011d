"""The formula of every term, with what is known of its coefficients before any measurement.

The structure comes from vLLM's code: the profiling run computes logits in the model's dtype and 32-bit copies of them
(v1/worker/gpu_model_runner.py: `_dummy_sampler_run`), an MLP holds gate, up and their product, a pipeline rank hands
hidden states and the residual on. What the structure fixes is not fitted; a start value has a standard deviation, and
data that say nothing about a coefficient leave it there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from analysis.fit.starts import GIB, Start


@dataclass(frozen=True)
class Coefficient:
    """What a driver is multiplied by. `sd` None: fixed by the structure."""

    driver: str
    start: float
    sd: float | None = None


@dataclass(frozen=True)
class Formula:
    """max over branches of (sum of coefficient x driver)."""

    term: str
    branches: tuple[tuple[Coefficient, ...], ...]
    by_tensor_parallel: bool
    ranges: tuple[str, ...]
    """Features whose fitted range is kept: outside it an estimate is an extrapolation."""
    serves: Callable[[Start], bool] = lambda start: start.kind == "dense"
    pipelines: bool = False
    """Rows of pipeline ranks are used too."""


def _dense(start: Start) -> bool:
    return start.kind == "dense"


def _experts(start: Start) -> bool:
    return start.features.experts > 0 and start.kind != "multimodal"


_SAMPLER = (
    Coefficient("logit_bytes", 1.0),
    Coefficient("logits", 12.0, 6.0),
    Coefficient("hidden_bytes", 1.4, 1.0),
    Coefficient("pipeline_bytes", 2.0),
)
_MLP = (
    Coefficient("mlp_bytes", 3.0),
    Coefficient("hidden_bytes", 4.0, 2.0),
    Coefficient("pipeline_bytes", 2.0),
)
_ACTIVATION_RANGES = (
    "hidden_size", "intermediate_size", "vocab_size", "max_num_seqs", "max_num_batched_tokens", "dtype_bytes",
)  # fmt: skip
_GRAPH_RANGES = ("layers", "graph_count", "graph_max_size", "tensor_parallel_size")


def _graphs(term: str) -> Formula:
    return Formula(
        term,
        ((Coefficient("captured", 0.3 * GIB, 0.3 * GIB), Coefficient("graph_layers", 0.17e-3 * GIB, 0.2e-3 * GIB)),),
        False, _GRAPH_RANGES,
    )  # fmt: skip


GPU_FORMULAS: Final[tuple[Formula, ...]] = (
    Formula("activation", (_SAMPLER, _MLP), False, _ACTIVATION_RANGES, pipelines=False),
    _graphs("cuda_graph"),
    _graphs("cuda_graph_estimate"),
    Formula(
        "non_torch", ((Coefficient("one", 0.3 * GIB, 2 * GIB), Coefficient("layers", 1e-3 * GIB, 2e-3 * GIB),
                       Coefficient("odd_vocabulary", 0.0, 0.3 * GIB)),),
        True, ("layers",),
    ),
    Formula("context", ((Coefficient("one", 0.6 * GIB, 2 * GIB),),), True, ()),
    Formula("runtime", ((Coefficient("logits", 2.0, 3.0), Coefficient("hidden_bytes", 0.5, 1.0)),), False,
            _ACTIVATION_RANGES),
)  # fmt: skip
"""Dense models on CUDA."""

EXPERT_FORMULAS: Final[tuple[Formula, ...]] = (
    Formula(
        "activation", ((*_SAMPLER, Coefficient("expert_bytes", 3.0, 2.0)),), False, _ACTIVATION_RANGES, _experts
    ),
    Formula(
        "cuda_graph",
        ((*_graphs("cuda_graph").branches[0], Coefficient("graph_expert_layers", 0.1e-3 * GIB, 0.2e-3 * GIB)),),
        False, _GRAPH_RANGES, _experts,
    ),
    Formula("context", ((Coefficient("one", 0.6 * GIB, 2 * GIB),),), True, (), _experts),
)  # fmt: skip
"""Mixtures of experts on CUDA, where they differ. What dense models decide is taken over from their fit."""

CPU_FORMULAS: Final[tuple[Formula, ...]] = (
    Formula("non_torch", ((Coefficient("one", 0.03 * GIB, 0.5 * GIB),),), True, ("hidden_size", "vocab_size", "layers"),
            lambda start: True),
    Formula("context", ((Coefficient("one", 0.6 * GIB, 0.5 * GIB),),), True, (), lambda start: True),
    Formula(
        "runtime",
        ((Coefficient("one", 0.01 * GIB, 0.1 * GIB), Coefficient("hidden_bytes", 2.0, 5.0),
          Coefficient("mlp_bytes", 3.0, 5.0), Coefficient("logits", 4.0, 6.0)),),
        True, ("hidden_size", "intermediate_size", "vocab_size", "max_num_seqs", "max_num_batched_tokens",
               "dtype_bytes"), lambda start: True,
    ),
)  # fmt: skip
"""vLLM's CPU engine: no profiling run, no graphs."""
