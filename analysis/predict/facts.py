"""What is known exactly of one rank: its weights and its KV cache; from arithmetic, or from vLLM's own model class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from analysis import arithmetic
from analysis.arithmetic.errors import ArithmeticRefusal
from analysis.arithmetic.kv_groups import KVLayer, KVPlan
from analysis.predict.models import Model, unquantized
from analysis.predict.settings import Settings


@dataclass(frozen=True, slots=True)
class Facts:
    """`weights_bytes` as torch's allocator holds them, which is what vLLM reports as the model's memory."""

    weights_bytes: int
    kv_bytes_per_token: int
    plan: KVPlan


Source = Callable[[Model, Settings, int], Facts]
"""Facts of (model, settings, pipeline rank)."""


def of_arithmetic(model: Model, s: Settings, rank: int) -> Facts:
    """From config.json alone. Raises ArithmeticRefusal."""
    tp, pp = s.tensor_parallel_size, s.pipeline_parallel_size
    # GPTQ tensors are the only ones that changed between releases, with 0.30: versions are folded for the cache.
    version = "0.30.0" if s.version >= (0, 30) else "0.29.0"
    weights = _weights(model, s.dtype, tp, pp, rank, version)
    cache = _cache(unquantized(model), s.kv_cache_dtype, s.dtype, tp, pp, rank, s.block_size, s.hybrid_kv_cache_manager)
    for found in (weights, cache):
        if isinstance(found, ArithmeticRefusal):
            raise found
    assert isinstance(weights, int) and isinstance(cache, tuple)
    return Facts(weights, *cache)


# A refusal is remembered like an answer: it takes as long to find.
@lru_cache(maxsize=65536)
def _weights(
    model: Model, dtype: str | None, tp: int, pp: int, rank: int, version: str
) -> int | ArithmeticRefusal:
    try:
        return arithmetic.weight_bytes(
            model.config, dtype=dtype, tensor_parallel_size=tp, pipeline_parallel_size=pp, pipeline_rank=rank,
            vllm_version=version,
        ).allocator_rounded  # fmt: skip
    except ArithmeticRefusal as refusal:
        return refusal


@lru_cache(maxsize=65536)
def _cache(
    model: Model, kv_dtype: str, dtype: str | None, tp: int, pp: int, rank: int, block: int, hybrid: bool
) -> tuple[int, KVPlan] | ArithmeticRefusal:
    try:
        ranks = layers_of_ranks(model, kv_dtype, dtype, tp, pp)
        before = sum(map(len, ranks[:rank]))
        held = range(before, before + len(ranks[rank]))
        plan = KVPlan.of([layer for one in ranks for layer in one], block, held=held, hybrid_manager=hybrid)
        return sum(layer.bytes_per_token for layer in ranks[rank]), plan
    except ArithmeticRefusal as refusal:
        return refusal


@lru_cache(maxsize=4096)
def layers_of_ranks(
    model: Model, kv_dtype: str, dtype: str | None, tp: int, pp: int
) -> tuple[tuple[KVLayer, ...], ...]:
    """What every layer keeps, by pipeline rank: vLLM groups the layers of the whole model."""
    return tuple(
        tuple(
            arithmetic.kv_layers(
                model.config, kv_dtype, tp, dtype=dtype, pipeline_parallel_size=pp, pipeline_rank=rank
            )
        )
        for rank in range(pp)
    )


@dataclass(frozen=True)
class Oracle:
    """Asks vLLM itself, in the Python that has it: any architecture that it knows. Ten seconds for a new question."""

    python: str | None = None

    def __call__(self, model: Model, s: Settings, rank: int) -> Facts:
        """Raises OracleRefusal."""
        return _asked(
            self.python, model, s.dtype, s.kv_cache_dtype, s.tensor_parallel_size, s.pipeline_parallel_size, rank,
            s.block_size, s.hybrid_kv_cache_manager,
        )  # fmt: skip


@lru_cache(maxsize=4096)
def _asked(
    python: str | None, model: Model, dtype: str | None, kv_dtype: str, tp: int, pp: int, rank: int, block: int,
    hybrid: bool,
) -> Facts:  # fmt: skip
    from analysis.oracle import OracleRefusal, OracleResult, ask

    questions = [
        {
            "config": dict(model.config), "tensor_parallel_size": tp, "pipeline_parallel_size": pp,
            "pipeline_rank": one, "dtype": dtype, "kv_cache_dtype": kv_dtype, "block_size": block,
        }
        for one in range(pp)
    ]  # fmt: skip
    answers = ask(questions, platform="h100", python=python)
    if any(isinstance(answer, OracleRefusal) for answer in answers):
        # Some classes cannot be built on a pretended GPU; their tensors are the same on the build that is there.
        answers = ask(questions, platform="installed", python=python)
    built = []
    for answer in answers:
        if not isinstance(answer, OracleResult):
            raise answer
        built.append(answer)
    mine = built[rank]
    before = sum(len(one.kv_layers) for one in built[:rank])
    plan = KVPlan.of(
        [layer for one in built for layer in one.kv_layers], block,
        held=range(before, before + len(mine.kv_layers)), hybrid_manager=hybrid,
    )  # fmt: skip
    return Facts(mine.allocator_rounded_bytes, mine.kv_bytes_per_token, plan)
