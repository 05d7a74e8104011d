"""The terms that an engine's memory is a sum of."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

Source = Literal["probe", "metrics", "log"]


@dataclass
class MemoryTerms:
    """Terms of one engine start, of its largest rank; None is not known. `_bytes` are bytes, blocks and
    tokens counts.

    On CUDA the device memory in use is (outside the budget) the context, plus `weights_bytes`,
    `non_torch_bytes`, `kv_cache_bytes`, `cuda_graph_bytes` and a transient of up to `activation_peak_bytes`.
    """

    weights_bytes: int | None = None
    """As vLLM accounts for them: growth of device memory while loading. None on the CPU backend."""
    weights_tensor_bytes: int | None = None
    """Unique storages of parameters and buffers, before kernels repack them."""
    weights_parameter_bytes: int | None = None
    weights_buffer_bytes: int | None = None
    weights_resident_bytes: int | None = None
    """CUDA: unique storages after repacking. CPU: growth of the worker's RSS while loading, because prepacked
    weights leave the list of parameters."""
    activation_peak_bytes: int | None = None
    """Without the CUDA-graph estimate. Where vLLM profiles, its own figure: 0.25 and 0.26 the rise of torch's
    peak over the loaded model, 0.32 and later the part of it that is freed again. With a fixed pool vLLM
    measures nothing; then torch's peak in the profiling forward minus what stays allocated after it."""
    non_torch_bytes: int | None = None
    total_consumed_bytes: int | None = None
    cuda_graph_estimate_bytes: int | None = None
    cuda_graph_bytes: int | None = None
    requested_bytes: int | None = None
    available_kv_cache_bytes: int | None = None
    kv_cache_bytes: int | None = None
    kv_cache_blocks: int | None = None
    kv_block_size_tokens: int | None = None
    kv_cache_tokens: int | None = None
    """(blocks - 1) // cache groups x tokens per block: block 0 is vLLM's null block and holds no request's
    tokens.
    """
    kv_cache_reported_tokens: int | None = None
    """vLLM's own: requests of max_model_len that fit, times max_model_len. Not blocks x block size."""
    kv_bytes_per_block: int | None = None
    torch_allocated_peak_bytes: int | None = None
    torch_reserved_peak_bytes: int | None = None
    runtime_activation_peak_bytes: int | None = None
    """Peak under load above the level when the peaks were reset. CUDA: torch's allocator; CPU: the worker's
    RSS.
    """
    worker_rss_start_bytes: int | None = None
    worker_rss_load_bytes: int | None = None
    worker_rss_kv_bytes: int | None = None
    worker_rss_ready_bytes: int | None = None
    worker_rss_load_peak_bytes: int | None = None
    worker_rss_runtime_peak_bytes: int | None = None
    init_free_bytes: int | None = None
    init_total_bytes: int | None = None
    model_runner: str | None = None
    attention_backend: str | None = None
    linear_kernels: list[str] = field(default_factory=list)
    effective_max_num_seqs: int | None = None
    effective_max_num_batched_tokens: int | None = None
    effective_max_model_len: int | None = None
    sources: dict[str, Source] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    ranks: list[dict[str, Any]] = field(default_factory=list)
    """Terms of each rank, where there are several. The fields above are then their maxima, of capacities
    (blocks, tokens, available and free bytes) their minima."""

    def columns(self) -> dict[str, Any]:
        """The columns of table `engines`; every one of them, None where a term is not known."""
        row = {name: getattr(self, name) for name in TERMS if name not in _NO_COLUMN}
        row["memory_sources_json"] = json.dumps(self.sources, sort_keys=True) if self.sources else None
        row["ranks_json"] = json.dumps(self.ranks, sort_keys=True) if self.ranks else None
        return row


_ABOUT = ("sources", "warnings", "ranks")
TERMS = tuple(f.name for f in dataclasses.fields(MemoryTerms) if f.name not in _ABOUT)
_NO_COLUMN = frozenset({"weights_parameter_bytes", "weights_buffer_bytes"})


def known_terms(terms: MemoryTerms) -> dict[str, Any]:
    """The terms that have a value."""
    return {name: value for name in TERMS if (value := getattr(terms, name)) not in (None, [])}
