"""What a set of settings takes of the memory that ran out, so that two of them can be compared.

Only differences are used: an error that a prediction makes on both sides of a change falls out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from analysis import defaults, gpus
from analysis.arithmetic import ArithmeticRefusal, expected_loaded_bytes, kv_bytes_per_token
from analysis.arithmetic.weights import parse_version
from analysis.catalogue import CatalogueError, compose, load_quantization
from analysis.diagnose.case import HOST_RESERVE_BYTES, Case
from analysis.predict.answer import predict
from analysis.predict.prediction import Prediction
from analysis.predict.request import Request, RequestError

GIB = 2**30

Settings = Mapping[str, Any]
"""Fields as the row names them: max_num_seqs, max_num_batched_tokens, enforce_eager, gpu_memory_utilization,
kv_cache_memory_bytes, max_model_len, kv_cache_dtype, quantization (a catalogue name), cpu_offload_gb."""


class Unpredictable(ValueError):
    """No prediction for these settings; the sentence says why."""


class Terms(Protocol):
    """How much memory settings take, where it ran out."""

    def lacking(self, settings: Settings) -> float:
        """Bytes by which `settings` are predicted to exceed what is there; below 0 where they leave some. Raises
        Unpredictable."""

    def starts(self, settings: Settings) -> str:
        """Empty where the settings are predicted to start, else what would stop them then."""


def terms_of(case: Case) -> Terms:
    """Raises Unpredictable for a row without a configuration."""
    if case.config is None:
        raise Unpredictable("the row holds no config.json, so nothing can be predicted of another setting")
    version_of(case.row)
    return CpuTerms(case) if case.on_cpu else CudaTerms(case)


def version_of(row: Mapping[str, Any]) -> str:
    """The row's vLLM version, that of predictions where it names none. Raises Unpredictable for what is no version."""
    try:
        return Request.of({"model": "any", "vllm_version": row.get("vllm_version") or None}).vllm_version
    except RequestError as refused:
        raise Unpredictable(str(refused)) from None


@dataclass(frozen=True)
class CudaTerms:
    """By the calibrated prediction."""

    case: Case

    def lacking(self, settings: Settings) -> float:
        found = self._prediction(settings)
        free = found.settings.device.total_bytes - found.context.value
        need = {
            # The start check compares the budget with what is free.
            "init_device": found.budget_bytes - free,
            "load": found.weights_bytes - free,
            "profile": found.weights_bytes + found.non_torch.value + found.activation.value - free,
            "graph_capture": found.device_peak.value - found.settings.device.total_bytes,
            "runtime": found.device_peak.value - found.settings.device.total_bytes,
        }.get(self.case.phase)
        # What is pruned could not hold one request; what is given in bytes is measured against the device instead.
        pruned = self.case.cause == "cannot_fit" and not found.fixed_pool
        if pruned or self.case.cause == "max_model_len_exceeds_kv":
            return found.kv_blocks_per_request * found.kv_block_bytes - found.kv_pool.value
        if need is not None:
            return need
        if found.fixed_pool:  # what is given in bytes is not checked against the budget, only against the device
            return found.weights_bytes + found.non_torch.value + found.kv_pool.value - free
        return found.kv_block_bytes - found.kv_pool.value

    def starts(self, settings: Settings) -> str:
        found = self._prediction(settings)
        return found.reason if found.verdict == "does_not_start" else ""

    def _prediction(self, settings: Settings) -> Prediction:
        row = self.case.row
        total = row.get("init_total_bytes") or row.get("device_memory_total_bytes")
        try:
            config = _config(self.case, settings)
            asked: dict[str, Any] = {
                "gpu": _card(row, total), "gpu_total_gib": total / GIB if total else None,
                "vllm_version": row.get("vllm_version"), "config": config,
                "tensor_parallel_size": row.get("tensor_parallel_size"),
                "pipeline_parallel_size": row.get("pipeline_parallel_size"), "block_size": row.get("block_size"),
                **{name: settings.get(name) for name in _PREDICTED},
            }  # fmt: skip
            request = Request.of({name: value for name, value in asked.items() if value not in (None, "auto")})
            if offload := settings.get("cpu_offload_gb"):
                import dataclasses

                request = dataclasses.replace(request, cpu_offload_gib=float(offload))
            return predict(request)
        except (RequestError, CatalogueError) as refused:
            raise Unpredictable(str(refused)) from None


_PREDICTED = (
    "max_num_seqs", "max_num_batched_tokens", "max_model_len", "gpu_memory_utilization", "kv_cache_memory_bytes",
    "kv_cache_dtype", "enforce_eager",
)  # fmt: skip


@dataclass(frozen=True)
class CpuTerms:
    """By arithmetic: on a CPU engine the pool is given in bytes, or as a share of its NUMA node's memory that holds the
    weights too, and what else there is does not depend on settings before the first request."""

    case: Case

    def lacking(self, settings: Settings) -> float:
        if self.case.cause == "max_model_len_exceeds_kv":
            return self._one_request(settings) - float(settings.get("kv_cache_memory_bytes") or 0)
        return self._taken(settings) - self._total

    def starts(self, settings: Settings) -> str:
        """A pool that is too small for one request would stop the start as surely as one that is too large."""
        pool = settings.get("kv_cache_memory_bytes")
        need = self._one_request(settings)
        if not pool:
            least, given = self._weights(settings) + need, self._taken(settings)
            return "" if least <= given else (
                f"the share of {given / GIB:.2f} GiB does not hold weights and one request, {least / GIB:.2f} GiB"
            )
        if need > pool:
            return f"one request of {settings.get('max_model_len')} tokens needs {need / GIB:.2f} GiB of KV cache"
        over = self._taken(settings) + HOST_RESERVE_BYTES - self._there
        return f"weights and KV pool leave {over / GIB:.2f} GiB too little of the host's memory" if over > 0 else ""

    @property
    def _total(self) -> float:
        """The node's memory, as the failure says it or else as it was when the sweep began; rows of before that was
        recorded hold the whole host's."""
        node, row = self.case.node_bytes, self.case.row
        known = row.get("host_node_memory_bytes") or row.get("device_memory_total_bytes")
        return float(node[1] if node else known or 0)

    @property
    def _there(self) -> float:
        """What the engine could have had for weights and pool: what was available on the node, with what the engine
        itself had loaded by then; the node's total where the failure does not say."""
        node = self.case.node_bytes
        if node is None:
            return self._total
        loaded = self.case.row.get("expected_weights_bytes") if self.case.phase == "kv_allocation" else 0
        return min(float(node[0] + (loaded or 0)), self._total)

    def _taken(self, settings: Settings) -> float:
        pool, share = settings.get("kv_cache_memory_bytes"), settings.get("gpu_memory_utilization")
        if pool is None:
            version = parse_version(version_of(self.case.row))
            return float(share or defaults.gpu_memory_utilization(version)) * self._total
        return self._weights(settings) + float(pool)

    def _weights(self, settings: Settings) -> float:
        try:
            weights = expected_loaded_bytes(
                _config(self.case, settings), platform="cpu", dtype=_dtype(self.case, settings),
                max_model_len=settings.get("max_model_len"), vllm_version=version_of(self.case.row),
            ).bytes  # fmt: skip
        except ArithmeticRefusal as refused:
            raise Unpredictable(str(refused)) from None
        return float(weights)

    def _one_request(self, settings: Settings) -> float:
        """KV cache of the longest request, bytes; vLLM rounds it up to whole blocks."""
        length = settings.get("max_model_len") or 1
        block = self.case.row.get("kv_block_size_tokens") or self.case.row.get("block_size") or 1
        try:
            kv = kv_bytes_per_token(
                _config(self.case, settings), dtype=_dtype(self.case, settings),
                kv_dtype=settings.get("kv_cache_dtype") or "auto",
            )  # fmt: skip
        except ArithmeticRefusal as refused:
            raise Unpredictable(str(refused)) from None
        return kv * math.ceil(length / block) * block


def _dtype(case: Case, settings: Settings) -> str | None:
    """The dtype in force; another weight format brings its own, which its config.json says."""
    return settings.get("dtype") if settings.get("quantization") == case.row.get("quantization") else None


def _config(case: Case, settings: Settings) -> dict[str, Any]:
    config = case.config or {}
    wanted = settings.get("quantization")
    if wanted is None or wanted == case.row.get("quantization"):
        return config
    try:
        return compose(config, load_quantization(str(wanted)))
    except CatalogueError as unknown:
        raise Unpredictable(str(unknown)) from None


def _card(row: Mapping[str, Any], total_bytes: float | None) -> str | None:
    """The card's name in the table; None for one that is not there, whose total is then enough."""
    name = gpus.of_device(row.get("device_name"), row.get("device_memory_total_bytes"))
    try:
        return gpus.find(name).name
    except gpus.UnknownGpu:
        return None if total_bytes else name
