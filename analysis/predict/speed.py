"""The speed of a prediction: its model and settings as the roofline wants them, the nearest calibration, the answer."""

from __future__ import annotations

from functools import lru_cache

from analysis import defaults, gpus
from analysis.arithmetic.dtypes import SIZE_BYTES, model_dtype
from analysis.arithmetic.errors import ArithmeticRefusal
from analysis.arithmetic.kv_groups import KVPlan
from analysis.calibration import CalibrationError
from analysis.estimate import Estimate
from analysis.gpus import Sheet
from analysis.predict.facts import layers_of_ranks
from analysis.predict.features import dtype_source
from analysis.predict.models import Model, unquantized
from analysis.predict.request import Request, RequestError
from analysis.predict.settings import Settings
from analysis.throughput import calibration
from analysis.throughput.predict import Engine, Load, Speed, speed
from analysis.throughput.roofline import Limits
from analysis.throughput.work import Shape, Work, read_of, shape_of, together


def of(
    request: Request, model: Model, settings: Settings, plan: KVPlan, pool: Estimate, ranks: int, *, starts: bool
) -> tuple[Speed | None, list[str]]:
    """The speed at the request's load and the warnings about it; None where there is none, with the reason.

    Raises RequestError for a load that vLLM would refuse.
    """
    assert request.input_tokens is not None and request.output_tokens is not None
    load = Load(request.input_tokens, request.output_tokens, request.concurrency, request.rate)
    whole = load.input_tokens + load.output_tokens
    if whole > settings.max_model_len:
        raise RequestError(
            f"input_tokens {load.input_tokens} and output_tokens {load.output_tokens} are {whole} tokens, more than "
            f"max_model_len {settings.max_model_len}; vLLM refuses such a request"
        )
    if not starts:
        return None, ["no throughput: the engine does not start"]
    held = _held(settings, plan, whole, pool.value)
    if held < 1.0:
        return None, [f"no throughput: not one request of {whole} tokens fits into the KV pool"]
    sheet = _sheet(settings.device.name)
    if sheet is None:
        return None, [f"no throughput: the peak bandwidth and FLOPs of {settings.device.name} are not known"]
    mean = load.input_tokens + -(-load.output_tokens // 2)
    limits = [
        Limits(settings.max_num_seqs, settings.max_num_batched_tokens, max(_held(settings, plan, mean, size), 1.0))
        for size in (pool.value, pool.low, pool.high)
    ]
    works = [_work(model, settings.dtype, settings.kv_cache_dtype, settings.tensor_parallel_size, ranks, rank,
                   settings.version >= (0, 30)) for rank in range(ranks)]  # fmt: skip
    refused = next((one for one in works if isinstance(one, ArithmeticRefusal)), None)
    if refused is not None:
        return None, [f"no throughput: {refused}"]
    try:
        choice = _choice(
            settings.version_text, settings.runner, settings.device.name, _format(model, settings.dtype),
            settings.tensor_parallel_size,
        )  # fmt: skip
        if choice is None:
            return None, ["no throughput: there is no calibration of GPU step times"]
        engine = Engine(tuple(one for one in works if isinstance(one, Work)), *limits, sheet)
        found = speed(engine, load, choice)
    except CalibrationError as unusable:
        return None, [f"no throughput: {unusable}"]
    notes = list(found.warnings)
    if request.cpu_offload_gib:
        notes.append("offloaded weights cross the bus in every step: the speed is far below the figures given")
    return found, notes


def _held(settings: Settings, plan: KVPlan, tokens: int, pool_bytes: float) -> float:
    """Requests of so many tokens that a pool holds at once."""
    usable = plan.blocks(max(int(pool_bytes), 0)) - (1 if defaults.null_block_reserved(settings.version) else 0)
    return usable / plan.blocks_per_request(max(tokens, 1), settings.in_flight_tokens)


_choice = lru_cache(maxsize=4096)(calibration.select)


@lru_cache(maxsize=256)
def _sheet(device: str) -> Sheet | None:
    return next((one.sheet for one in gpus.GPUS if one.name == device), None)


@lru_cache(maxsize=4096)
def _format(model: Model, dtype: str | None) -> str:
    return calibration.weight_format(model.config, SIZE_BYTES[model_dtype(dtype_source(model.config), dtype)])


@lru_cache(maxsize=65536)
def _work(
    model: Model, dtype: str | None, kv_dtype: str, tp: int, pp: int, rank: int, newer: bool
) -> Work | ArithmeticRefusal:
    try:
        plain = unquantized(model)
        return together(
            _shape(plain, tp, pp, rank), _read(model, dtype, tp, pp, rank, newer),
            layers_of_ranks(plain, kv_dtype, dtype, tp, pp)[rank],
        )  # fmt: skip
    except ArithmeticRefusal as refusal:
        return refusal


# Each part by itself: no FLOPs depend on a format, and no weights on the KV cache.
@lru_cache(maxsize=4096)
def _shape(model: Model, tp: int, pp: int, rank: int) -> Shape:
    return shape_of(model.config, tensor_parallel_size=tp, pipeline_parallel_size=pp, pipeline_rank=rank)


@lru_cache(maxsize=65536)
def _read(model: Model, dtype: str | None, tp: int, pp: int, rank: int, newer: bool) -> tuple[int, int]:
    return read_of(
        model.config, dtype=dtype, tensor_parallel_size=tp, pipeline_parallel_size=pp, pipeline_rank=rank,
        vllm_version="0.30.0" if newer else "0.29.0",
    )  # fmt: skip
