"""The prediction itself: vLLM's own accounting, with its measured terms replaced by predicted ones.

v1/worker/gpu_worker.py: `determine_available_memory`, v1/worker/utils.py: `request_memory`, v1/core/kv_cache_utils.py:
`get_kv_cache_configs`. The engine may fill gpu_memory_utilization x total; the KV pool gets what weights, memory
outside torch, the activation peak and (where that version reserves it) the estimate for CUDA graphs leave. What is
outside the budget - the CUDA context, graphs beyond the estimate - comes on top.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis import defaults
from analysis.arithmetic.errors import ArithmeticRefusal
from analysis.estimate import TERMS, Estimate, Features
from analysis.predict import models, terms
from analysis.predict import settings as resolved
from analysis.predict.facts import Facts, Source, of_arithmetic
from analysis.predict.features import features_of
from analysis.predict.models import Model
from analysis.predict.prediction import GIB, Obstacle, Prediction, Verdict, total, worst
from analysis.predict.request import Request, RequestError
from analysis.predict.settings import Settings

if TYPE_CHECKING:
    from analysis.throughput.predict import Speed

ENOUGH_REQUESTS = 2.0
"""Below so many full-length requests at once a start counts as tight: one long request keeps all others waiting."""


def predict(request: Request, facts: Source = of_arithmetic) -> Prediction:
    """Answers one request. Raises RequestError with one sentence where it cannot be answered.

    `facts` says what is exact: arithmetic from config.json, or vLLM's own classes (`facts.Oracle`).
    """
    model = models.resolve(request)
    try:
        settings, notes = resolved.resolve(request, model)
        ranks = [
            _Rank(rank, facts(model, settings, rank), features_of(model.config, settings.features(rank)))
            for rank in range(settings.pipeline_parallel_size)
        ]
    except ArithmeticRefusal as refusal:
        raise RequestError(str(refusal)) from None
    except (TypeError, AttributeError, KeyError, IndexError, ArithmeticError) as broken:
        # Anything may stand in a config.json; the fields that matter are checked one by one, the rest ends here.
        raise RequestError(f"{_source(model)} holds a value of a kind that no model has: {broken}") from broken
    try:
        return _Case(request, model, settings, ranks, notes).answer()
    except OverflowError as huge:
        raise RequestError(f"a value of the request or of {_source(model)} is too large to count: {huge}") from None


def _source(model: Model) -> str:
    return "the inline config" if model.source.startswith("inline") else f"config.json of {model.source}"


@dataclass(frozen=True, slots=True)
class _Rank:
    """One pipeline rank: what is exact of it, and what drives its estimated terms."""

    index: int
    facts: Facts
    features: Features


class _Case:
    """One start on its limiting rank."""

    def __init__(
        self, request: Request, model: Model, settings: Settings, ranks: list[_Rank], notes: tuple[str, ...]
    ) -> None:
        self.request, self.model, self.settings, self.ranks = request, model, settings, ranks
        selection = terms.select(
            settings.version_text, settings.runner, settings.device.name, settings.tensor_parallel_size
        )
        self.calibration = selection.calibration
        self.estimates: dict[tuple[str, int], Estimate] = {}
        self.warnings = [*request.notes, *model.notes, *notes, *selection.notes]
        self.total_bytes = settings.device.total_bytes
        self.budget_bytes = math.ceil(self.total_bytes * settings.gpu_memory_utilization)
        # The engine takes the fewest blocks that any rank has room for.
        self.rank = min(ranks, key=lambda one: self._pool(one).value / max(one.facts.plan.bytes_per_block, 1))
        self.pool = self._pool(self.rank)
        self.plan = self.rank.facts.plan
        self.blocks_per_request = self.plan.blocks_per_request(settings.max_model_len, settings.in_flight_tokens)
        if len(ranks) > 1:
            self.warnings.append(f"figures are those of pipeline rank {self.rank.index}, which limits the KV cache")

    def estimate(self, term: str, rank: _Rank) -> Estimate:
        """A calibrated term of one rank, bytes."""
        key = (term, rank.index)
        if key not in self.estimates:
            self.estimates[key] = self.calibration.estimate(term, rank.features)
        return self.estimates[key]

    def weights(self, rank: _Rank) -> int:
        """Bytes on the GPU; what is offloaded is not."""
        offloaded = (self.request.cpu_offload_gib or 0.0) * GIB
        return max(round(rank.facts.weights_bytes - offloaded), 0)

    def reserved(self, rank: _Rank) -> Estimate:
        """What the engine sets aside for CUDA graphs before it sizes the pool."""
        if not self.settings.estimate_in_budget:
            return Estimate.exact(0.0)
        return self.estimate("cuda_graph_estimate", rank)

    def profiled(self, rank: _Rank) -> list[Estimate]:
        """What profiling takes off the budget besides the weights."""
        taken = [self.estimate("activation", rank), self.estimate("non_torch", rank), self.reserved(rank)]
        if defaults.context_in_budget(self.settings.version):
            taken.append(self.estimate("context", rank))
        return taken

    def _pool(self, rank: _Rank) -> Estimate:
        request = self.request
        if request.num_gpu_blocks_override is not None:
            return Estimate.exact(request.num_gpu_blocks_override * rank.facts.plan.bytes_per_block)
        if request.kv_cache_memory_bytes is not None:
            return Estimate.exact(request.kv_cache_memory_bytes)
        return total([], self.profiled(rank), exact=self.budget_bytes - self.weights(rank))

    def peak(self) -> Estimate:
        """Device memory under load: budget and pool are spent in full, so only what they do not cover is uncertain."""
        rank = self.rank
        outside = [self.estimate("cuda_graph", rank), self.estimate("runtime", rank)]
        if not defaults.context_in_budget(self.settings.version) or self.pool.basis == "exact":
            outside.append(self.estimate("context", rank))
        if self.pool.basis == "exact" or self.pool.value <= 0:  # without a pool, what would have been needed
            inside = [self.estimate("activation", rank), self.estimate("non_torch", rank)]
            return total([*outside, *inside], exact=self.weights(rank) + max(self.pool.value, 0.0))
        return total(outside, [self.reserved(rank)], exact=self.budget_bytes)

    # Capacity.

    def blocks(self, pool_bytes: float) -> int:
        return self.plan.blocks(max(int(pool_bytes), 0))

    def requests(self, pool_bytes: float) -> float:
        """Full-length requests at once, as vLLM prints its maximum concurrency."""
        return self.blocks(pool_bytes) / self.blocks_per_request if self.blocks_per_request else 0.0

    def tokens(self, pool_bytes: float) -> float:
        """Tokens, as vLLM prints its "KV cache size"."""
        if defaults.capacity_is_derived(self.settings.version):
            return float(int(self.requests(pool_bytes) * self.settings.max_model_len))
        return float(self.blocks(pool_bytes) // max(len(self.plan.groups), 1) * self.settings.block_size)

    # Will it start?

    def obstacle(self, pick: Callable[[Estimate], float], pool_bytes: float, peak_bytes: float) -> Obstacle | None:
        """What keeps the engine from starting, taking `pick` of every term; None if nothing does."""
        s, rank, weights = self.settings, self.rank, self.weights(self.rank)
        context, non_torch = pick(self.estimate("context", rank)), pick(self.estimate("non_torch", rank))
        activation = pick(self.estimate("activation", rank))
        free = self.total_bytes - context
        if free < self.budget_bytes:
            return Obstacle(
                "init_device", self.budget_bytes - free,
                f"the start check fails: {_gib(free)} are free, less than gpu_memory_utilization "
                f"{s.gpu_memory_utilization:g} x {_gib(self.total_bytes)} = {_gib(self.budget_bytes)}",
            )  # fmt: skip
        if weights > free:
            return Obstacle("load", weights - free, f"weights of {_gib(weights)} do not fit into {_gib(free)}")
        profiling = weights + non_torch + activation
        if profiling > free:
            return Obstacle(
                "profile", profiling - free,
                f"weights, memory outside torch and the profiling run need {_gib(profiling)} of {_gib(free)}",
            )  # fmt: skip
        if found := self._kv_obstacle(pool_bytes):
            return found
        if self.pool.basis == "exact" and weights + non_torch + pool_bytes > free:
            need = weights + non_torch + pool_bytes
            return Obstacle(
                "kv_allocation", need - free, f"weights and a KV pool of {_gib(pool_bytes)} need {_gib(need)} of "
                f"{_gib(free)}; vLLM does not check a pool given in bytes",
            )  # fmt: skip
        if peak_bytes > self.total_bytes:
            return Obstacle(
                "graph_capture", peak_bytes - self.total_bytes,
                f"CUDA graphs and the sampler's warm-up would take the device to {_gib(peak_bytes)} of "
                f"{_gib(self.total_bytes)}",
            )  # fmt: skip
        return None

    def _kv_obstacle(self, pool_bytes: float) -> Obstacle | None:
        s, block = self.settings, self.plan.bytes_per_block
        if pool_bytes < block:
            return Obstacle(
                "kv_allocation", block - pool_bytes,
                f"nothing is left for the KV cache: {_gib(pool_bytes)} of the budget of {_gib(self.budget_bytes)}",
            )  # fmt: skip
        usable = pool_bytes - (block if defaults.null_block_reserved(s.version) else 0)
        need = self.blocks_per_request * block
        if need > usable and not s.auto_length:
            return Obstacle(
                "kv_allocation", need - usable,
                f"one request of {s.max_model_len} tokens needs {_gib(need)} of KV cache and {_gib(usable)} are left; "
                f"about {self.longest(int(max(usable, 0) // block))} tokens would fit",
            )  # fmt: skip
        return None

    def refused(self) -> Obstacle | None:
        """Settings that vLLM refuses before it looks at any memory."""
        s = self.settings
        if s.max_model_len > s.length_limit:
            return Obstacle(
                "config", 0.0,
                f"max_model_len is {s.max_model_len}, and config.json allows {s.length_limit}; "
                "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 overrides that",
            )  # fmt: skip
        if s.max_num_batched_tokens < s.max_num_seqs:
            return Obstacle(
                "config", 0.0,
                f"max_num_batched_tokens ({s.max_num_batched_tokens}) is less than max_num_seqs ({s.max_num_seqs})",
            )  # fmt: skip
        if not self.request.chunked_prefill and s.max_num_batched_tokens < s.max_model_len:
            return Obstacle(
                "config", 0.0,
                f"without chunked prefill max_num_batched_tokens ({s.max_num_batched_tokens}) must not be less than "
                f"max_model_len ({s.max_model_len})",
            )  # fmt: skip
        return None

    def verdict(self, peak: Estimate) -> tuple[Verdict, Obstacle | None, str]:
        """The verdict at the predicted values; `tight` where the ends of the intervals disagree."""
        if refused := self.refused():
            return "does_not_start", refused, f"at {refused.phase}, {refused.sentence}"
        expected = self.obstacle(lambda one: one.value, self.pool.value, peak.value)
        worse = self.obstacle(lambda one: one.high, self.pool.low, peak.high)
        better = self.obstacle(lambda one: one.low, self.pool.high, peak.low)
        if expected is not None and better is not None:
            short = _gib(expected.shortfall_bytes)
            return "does_not_start", expected, f"at {expected.phase}, {short} short: {expected.sentence}"
        if expected is not None:
            return "tight", expected, f"may fail at {expected.phase}, within the error: {expected.sentence}"
        if worse is not None:
            return "tight", None, f"may fail at {worse.phase} at the end of the interval: {worse.sentence}"
        at_once = self.requests(self.pool.value)
        if at_once < ENOUGH_REQUESTS and not self.settings.auto_length:
            return "tight", None, f"only {at_once:.2f} requests of {self.settings.max_model_len} tokens fit at once"
        return "fits", None, "starts"

    def longest(self, blocks: int) -> int:
        """Tokens of the longest request that `blocks` can hold."""
        s, low, high = self.settings, 0, self.settings.max_model_len
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.plan.blocks_per_request(middle, s.in_flight_tokens) <= blocks
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def fit_length(self) -> None:
        """`--max-model-len auto`: vLLM takes the longest request that the pool can hold."""
        usable = self.blocks(self.pool.value) - (1 if defaults.null_block_reserved(self.settings.version) else 0)
        if self.blocks_per_request > usable and (longest := self.longest(max(usable, 0))):
            most = self.settings.max_model_len
            self.warnings.append(f"max_model_len auto becomes {longest}: {most} tokens do not fit")

    def speed(self, verdict: Verdict) -> Speed | None:
        """Throughput and latency where a load is stated; None with a warning where there is nothing to say."""
        if self.request.concurrency is None and self.request.rate is None:
            return None
        from analysis.predict import speed

        found, notes = speed.of(
            self.request, self.model, self.settings, self.plan, self.pool, len(self.ranks), starts=verdict
            != "does_not_start",
        )  # fmt: skip
        self.warnings += notes
        return found

    def answer(self) -> Prediction:
        rank, pool, peak = self.rank, self.pool, self.peak()
        graphs = self.estimate("cuda_graph", rank)
        used = [self.estimate("activation", rank), self.estimate("non_torch", rank), self.reserved(rank)]
        if self.settings.auto_length:
            self.fit_length()
        if self.request.cpu_offload_gib:
            self.warnings.append("offloaded weights are taken off the GPU in full; vLLM moves whole parameters")
        verdict, obstacle, reason = self.verdict(peak)
        speed = self.speed(verdict)
        return Prediction(
            model=self.request.model or "inline config",
            source=self.model.source,
            settings=self.settings,
            weights_bytes=self.weights(rank),
            kv_bytes_per_token=rank.facts.kv_bytes_per_token,
            activation=used[0],
            non_torch=used[1],
            cuda_graph=graphs,
            cuda_graph_estimate=self.reserved(rank),
            context=self.estimate("context", rank),
            runtime=self.estimate("runtime", rank),
            budget_bytes=self.budget_bytes,
            fixed_pool=pool.basis == "exact",
            kv_pool=pool,
            kv_cache_blocks=self.blocks(pool.value),
            kv_block_bytes=self.plan.bytes_per_block,
            kv_blocks_per_request=self.blocks_per_request,
            kv_cache_tokens=_each(pool, self.tokens),
            full_length_requests=_each(pool, self.requests),
            device_peak=peak,
            verdict=verdict,
            obstacle=obstacle,
            reason=reason,
            basis=worst([*used, graphs]),
            origin=self.calibration.name,
            speed=speed,
            warnings=_grouped(self.warnings),
            ignored=self.request.ignored,
        )


def _grouped(warnings: list[str]) -> tuple[str, ...]:
    """Each once; what is said of several terms in the same words is said once of all of them."""
    about: dict[str, list[str]] = {}
    for warning in warnings:
        head, colon, rest = warning.partition(": ")
        named = about.setdefault(rest if colon and head in TERMS else warning, [])
        if colon and head in TERMS and head not in named:
            named.append(head)
    return tuple(f"{', '.join(heads)}: {text}" if heads else text for text, heads in about.items())


def _each(pool: Estimate, of: Callable[[float], float]) -> Estimate:
    """A figure that follows from the pool, at its value and both ends."""
    return Estimate(of(pool.value), of(pool.low), of(pool.high), pool.basis)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
