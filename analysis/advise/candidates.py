"""What could be served: every format with settings that suit the load, each predicted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from analysis.advise.ask import Ask, milliseconds
from analysis.plan import hardware
from analysis.predict.answer import predict
from analysis.predict.prediction import GIB, Prediction
from analysis.predict.request import Request, RequestError

TOKEN_BUDGETS = (2048, 8192)
"""max-num-batched-tokens that are tried: vLLM's defaults on small and on large cards."""

LARGEST_SEQS = 1024
"""vLLM's default max-num-seqs on large cards: what an open loop may need is not known beforehand."""

Grade = Literal["meets", "likely", "misses", "waits", "tight", "does_not_start", "unknown"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to serve. `grade`, best first:

    meets: it fits, holds the load at once, and meets the targets even at the unfavourable ends of the intervals.
    likely: it does at the predicted values. misses: a target is missed. waits: requests queue for want of KV cache.
    tight: whether it starts lies within the error. does_not_start: for want of memory, or because vLLM does not run
    the format on this card. unknown: no prediction, `why` says why.
    """

    model: str
    quantization: str
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_dtype: str
    prediction: Prediction | None
    quality: float | None
    grade: Grade
    why: str
    tensor_parallel_size: int = 1

    @property
    def held(self) -> float:
        """How well it holds the load while requests wait: requests/s in an open loop, else full-length requests at
        once; 0 where there is no prediction."""
        if self.prediction is None:
            return 0.0
        speed = self.prediction.speed
        if speed is not None and speed.load.rate_per_s is not None:
            return speed.most_requests_per_s
        return self.prediction.full_length_requests.value

    @property
    def tokens_per_s(self) -> float:
        """Predicted output tokens a second; 0 where there is no prediction."""
        found = self.prediction.speed if self.prediction else None
        return found.tokens_per_s.value if found else 0.0

    @property
    def settings(self) -> tuple[int, int, str]:
        return self.max_num_seqs, self.max_num_batched_tokens, self.kv_cache_dtype


def candidates(ask: Ask, tensor_parallel_size: int = 1) -> Iterator[Candidate]:
    """Every candidate, in no particular order, on so many cards. Raises RequestError where the question itself is
    wrong."""
    for model in ask.models:
        for quantization in ask.formats:
            for budget in TOKEN_BUDGETS:
                for kv in ("auto", "fp8"):
                    yield _candidate(ask, model, quantization, budget, kv, tensor_parallel_size)


def _candidate(ask: Ask, model: str, quantization: str, budget: int, kv: str, cards: int) -> Candidate:
    seqs = LARGEST_SEQS if ask.concurrency is None else 1 << (ask.concurrency - 1).bit_length()
    seqs = min(seqs, budget)
    request = Request.of({
        "model": model, "quantization": quantization, "gpu": ask.gpu, "gpu_total_gib": ask.gpu_total_gib,
        "vllm_version": ask.vllm_version, "max_model_len": ask.length, "max_num_seqs": seqs,
        "max_num_batched_tokens": budget, "kv_cache_dtype": None if kv == "auto" else kv,
        "concurrency": ask.concurrency, "rate": ask.rate_per_s, "input_tokens": ask.input_tokens,
        "output_tokens": ask.output_tokens, "tensor_parallel_size": cards,
    })  # fmt: skip
    quality = ask.quality.get((model, quantization))
    try:
        found = predict(request)
        lacking = hardware.lacking(request)
    except RequestError as refused:
        return Candidate(model, quantization, seqs, budget, kv, None, quality, "unknown", str(refused), cards)
    if lacking:  # how fast it would be is no answer, what it would hold is
        found = replace(found, speed=None)
    grade, why = ("does_not_start", lacking) if lacking else _graded(ask, found)
    return Candidate(model, quantization, seqs, budget, kv, found, quality, grade, why, cards)


def _graded(ask: Ask, found: Prediction) -> tuple[Grade, str]:
    if found.verdict == "does_not_start":
        return "does_not_start", found.reason
    if found.obstacle is not None:
        return "tight", found.reason
    requests, speed = found.full_length_requests, found.speed
    # In an open loop the requests in service follow from the prediction; a closed loop states them.
    wanted = float(ask.concurrency) if ask.concurrency is not None else (speed.in_service if speed else 0.0)
    if requests.value < wanted or (speed is not None and speed.saturated):
        if speed is not None and speed.saturated and ask.concurrency is None:
            return "waits", f"it saturates at {speed.most_requests_per_s:.3g} requests/s"
        return "waits", f"the KV cache holds {requests.value:.1f} of {wanted:.0f} requests at once"
    if speed is None:
        stated = ask.slo.ttft_s or ask.slo.tpot_s
        return ("likely" if stated else "meets"), "it fits; no throughput prediction for this card" + (
            ", so the targets are not checked" if stated else ""
        )
    missed, unsure = [], []
    for name, target, one in (("TTFT", ask.slo.ttft_s, speed.ttft), ("TPOT", ask.slo.tpot_s, speed.tpot)):
        if target is None or one is None:
            continue
        if one.value > target:
            missed.append(f"mean {name} {milliseconds(one.value)}, target {milliseconds(target)}")
        elif one.high > target:
            unsure.append(f"mean {name} {milliseconds(one.value)}, up to {milliseconds(one.high)} within the interval")
    if missed:
        return "misses", "; ".join(missed)
    short = requests.low < wanted
    if unsure or short:
        held = [f"the KV cache may hold only {requests.low:.1f} requests"] if short else []
        return "likely", "; ".join([*unsure, *held])
    left = found.settings.device.total_bytes - found.device_peak.value
    return "meets", f"{left / GIB:.1f} GiB of the card are left"
