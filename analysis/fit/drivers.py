"""What the fitted coefficients multiply. Standard library only: predictions import it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from analysis.estimate import Features


def _tokens(f: Features) -> int:
    return f.max_num_batched_tokens


def _sampled(f: Features) -> int:
    """Rows of the profiling run's sampler: one per sequence, never more than tokens."""
    return min(f.max_num_seqs, f.max_num_batched_tokens)


DRIVERS: Final[dict[str, Callable[[Features], float]]] = {
    "one": lambda f: 1.0,
    "layers": lambda f: f.layers,
    # An odd vocabulary makes rows of logits unaligned, and vLLM 0.19 then takes 0.21 GiB more outside torch: Granite
    # 3.1 and 3.3 (49155, 49159) in the public H100 set against Granite Vision (49156), the same language model.
    "odd_vocabulary": lambda f: f.vocab_size % 2,
    # The sampler: logits in the model's dtype, and what it derives from them in 32 bits.
    "logit_bytes": lambda f: _sampled(f) * f.vocab_size * f.dtype_bytes,
    "logits": lambda f: _sampled(f) * f.vocab_size,
    # Hidden states of one step, and the intermediate states a pipeline rank hands on.
    "hidden_bytes": lambda f: _tokens(f) * f.hidden_size * f.dtype_bytes,
    "pipeline_bytes": lambda f: _tokens(f) * f.hidden_size * f.dtype_bytes if f.pipeline_parallel_size > 1 else 0,
    # The MLP's intermediate states: gate, up and their product.
    "mlp_bytes": lambda f: _tokens(f) * f.intermediate_size / f.tensor_parallel_size * f.dtype_bytes,
    "expert_bytes": lambda f: _tokens(f) * f.intermediate_size / f.tensor_parallel_size * f.dtype_bytes
    if f.experts else 0,
    "step_tokens": lambda f: _tokens(f),
    "seqs": lambda f: f.max_num_seqs,
    # CUDA graphs: every captured graph keeps something for every layer.
    "graphs": lambda f: f.graph_count,
    "graph_layers": lambda f: f.graph_count * f.layers,
    "graph_expert_layers": lambda f: f.graph_count * f.layers if f.experts else 0,
    "graph_hidden_bytes": lambda f: f.graph_max_size * f.hidden_size * f.dtype_bytes,
    "graph_logits": lambda f: f.graph_max_size * f.vocab_size,
    "captured": lambda f: 1.0 if f.graph_count else 0.0,
    "ranks": lambda f: f.tensor_parallel_size - 1,
}  # fmt: skip
"""What a coefficient multiplies, from the settings of one start. All in bytes or plain counts."""
