"""One figure, from the best there is: rows that measured it, else arithmetic, else a calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from analysis import estimate
from analysis.predict import prediction, terms
from analysis.predict.answer import predict
from analysis.predict.prediction import Prediction
from analysis.predict.request import Request, RequestError
from analysis.tables.measured import Measured, Reading

MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS, MAX_MODEL_LEN = 256, 8192, 4096
"""Settings of the tables: the guide's, and those of the GPU sweeps."""

OVERHEAD_TERMS = ("activation", "cuda_graph", "non_torch", "context", "runtime")
"""What an engine takes on the device besides weights and KV pool."""

WEIGHTS = "sum of the rank's tensors, allocator-rounded (analysis.arithmetic.weight_bytes)"
KV = "sequences x tokens in whole blocks x bytes per token (analysis.arithmetic.kv_bytes_per_token)"
OVERHEAD = "activation + CUDA graphs + non-torch + context + runtime (analysis.calibration)"
TOTAL = "weights + KV + overhead"


@dataclass(frozen=True, slots=True)
class Figure:
    """A size in bytes with its 90 % interval and where it is from.

    `basis` is `exact`, `measured`, `predicted (CALIBRATIONS)`, or the two last joined by ` + `. Of measured figures
    the interval is the least and the most of the rows.
    """

    value: float
    low: float
    high: float
    basis: str
    formula: str
    run_ids: tuple[str, ...] = ()
    calibrations: tuple[str, ...] = ()

    @classmethod
    def exact(cls, value: float, formula: str) -> Figure:
        return cls(value, value, value, "exact", formula)

    @classmethod
    def measured(cls, reading: Reading, formula: str, factor: float = 1.0) -> Figure:
        values = (reading.value * factor, reading.low * factor, reading.high * factor)
        return cls(*values, "measured", formula, reading.run_ids)


def added(figures: Sequence[Figure], formula: str) -> Figure:
    """The sum; independent errors add in quadrature."""
    parts = [estimate.Estimate(one.value, one.low, one.high, "calibrated") for one in figures]
    whole = prediction.total(parts)
    ids = tuple(sorted({name for one in figures for name in one.run_ids}))
    names = tuple(sorted({name for one in figures for name in one.calibrations}))
    words = (["measured"] if ids else []) + ([f"predicted ({', '.join(names)})"] if names else [])
    return Figure(whole.value, whole.low, whole.high, " + ".join(words) or "exact", formula, ids, names)


class Evidence:
    """Figures of one GPU and one vLLM release."""

    def __init__(self, gpu: str, vllm_version: str, measured: Measured | None = None) -> None:
        self.gpu, self.vllm_version = gpu, vllm_version
        self.rows = measured or Measured([], gpu, vllm_version)

    def predicted(self, model: str, quantization: str, **settings: Any) -> Prediction:
        """The prediction at the tables' settings, unless `settings` says otherwise. Raises RequestError."""
        return _predicted(self.gpu, self.vllm_version, model, quantization, tuple(sorted(settings.items())))

    def weights(self, model: str, quantization: str) -> Figure:
        """Bytes. Raises RequestError where they are neither measured nor computable."""
        if reading := self.rows.weights(model, quantization):
            return Figure.measured(reading, "weights_bytes of the rows, median")
        return Figure.exact(self.predicted(model, quantization).weights_bytes, WEIGHTS)

    def kv(self, model: str, quantization: str, sequences: int, tokens: int) -> Figure:
        """Bytes of the KV cache that `sequences` of `tokens` hold at once."""
        if reading := self.rows.kv_bytes_per_token(model, quantization):
            formula = "kv_bytes_per_block / kv_block_size_tokens of the rows x tokens, in whole blocks"
            block = self.predicted(model, quantization).settings.block_size
            return Figure.measured(reading, formula, sequences * -(-tokens // block) * block)
        found = self.predicted(model, quantization, max_model_len=tokens)
        return Figure.exact(sequences * _request_bytes(found, tokens), KV)

    def overhead(
        self, model: str, quantization: str, seqs: int = MAX_NUM_SEQS, batched: int = MAX_NUM_BATCHED_TOKENS
    ) -> Figure:
        """Bytes besides weights and KV pool, each term from the rows where they have it."""
        found = self.predicted(model, quantization, max_num_seqs=seqs, max_num_batched_tokens=batched)
        s = found.settings
        calibration = terms.select(s.version_text, s.runner, s.device.name, s.tensor_parallel_size).calibration
        parts = []
        for term in OVERHEAD_TERMS:
            reading = self.rows.term(term, model, quantization, seqs, batched)
            if reading is not None:
                parts.append(Figure.measured(reading, OVERHEAD))
                continue
            one: estimate.Estimate = getattr(found, term)
            origin = f"predicted ({calibration.origin(term)})"
            parts.append(Figure(one.value, one.low, one.high, origin, OVERHEAD, (), (calibration.origin(term),)))
        return added(parts, OVERHEAD)

    def total(self, model: str, quantization: str, sequences: int, tokens: int) -> Figure:
        """Bytes on the device for weights, that much KV cache, and the rest."""
        parts = [
            self.weights(model, quantization), self.kv(model, quantization, sequences, tokens),
            self.overhead(model, quantization),
        ]  # fmt: skip
        return added(parts, TOTAL)

    def multiplier(self, model: str, quantization: str, sequences: int, tokens: int) -> Figure:
        """Total over weights, a plain factor."""
        weights = self.weights(model, quantization)
        whole = self.total(model, quantization, sequences, tokens)
        rest = added([self.kv(model, quantization, sequences, tokens), self.overhead(model, quantization)], TOTAL)
        # Of weights that repeats measured differently, the least total goes with the least weights.
        low, high = 1 + rest.low / weights.high, 1 + rest.high / weights.low
        return Figure(
            whole.value / weights.value, low, high, whole.basis, "total / weights", whole.run_ids, whole.calibrations
        )


def _request_bytes(found: Prediction, tokens: int) -> int:
    """KV bytes of one request, in whole blocks."""
    block = found.settings.block_size
    return -(-tokens // block) * block * found.kv_bytes_per_token


@lru_cache(maxsize=4096)
def _predicted(
    gpu: str, vllm_version: str, model: str, quantization: str, settings: tuple[tuple[str, Any], ...]
) -> Prediction:
    asked: dict[str, Any] = {
        "model": model, "quantization": quantization, "gpu": gpu, "vllm_version": vllm_version,
        "max_num_seqs": MAX_NUM_SEQS, "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS,
        "max_model_len": MAX_MODEL_LEN,
    }  # fmt: skip
    return predict(Request.of({**asked, **dict(settings)}))


__all__ = ["Evidence", "Figure", "RequestError", "added"]
