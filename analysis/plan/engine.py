"""One engine of a plan: which model, for which load, and what it needs of the card."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Any

from analysis import defaults
from analysis.estimate import Estimate
from analysis.predict.answer import predict
from analysis.predict.prediction import Prediction, total
from analysis.predict.request import Request, RequestError, human_integer

_SETTINGS = ("max_num_seqs", "max_num_batched_tokens", "kv_cache_dtype", "enforce_eager")
_OPTIONS = ("concurrency", "length", "checkpoint", *_SETTINGS)


@dataclass(frozen=True, slots=True)
class Engine:
    """What one engine is to serve: `concurrency` requests at once of `length` tokens each, prompt and answer
    together. `settings` are fields of a prediction request that are not the defaults."""

    model: str
    quantization: str | None
    concurrency: int
    length: int
    settings: tuple[tuple[str, Any], ...] = ()
    checkpoint: str | None = None

    @property
    def name(self) -> str:
        return f"{self.model}:{self.quantization}" if self.quantization else self.model

    @property
    def max_num_seqs(self) -> int:
        """As given, else the power of two that admits the stated load."""
        given = dict(self.settings).get("max_num_seqs")
        return given if given is not None else 1 << (self.concurrency - 1).bit_length()

    @classmethod
    def parse(cls, text: str, concurrency: int, length: int) -> Engine:
        """`NAME[:QUANTIZATION][,option=value ...]`, such as `mistral-7b:awq,concurrency=32,length=2048`.

        `concurrency` and `length` apply where the text has none. Raises RequestError.
        """
        name, *options = text.split(",")
        model, _, quantization = name.strip().partition(":")
        if not model:
            raise RequestError(f"--model is {text!r}; write NAME, NAME:QUANTIZATION or NAME:QUANTIZATION,option=value")
        found: dict[str, Any] = {"concurrency": concurrency, "length": length}
        settings: dict[str, Any] = {}
        for option in options:
            key, equals, value = option.partition("=")
            key = key.strip().replace("-", "_")
            if key not in _OPTIONS or not equals:
                near = difflib.get_close_matches(key, _OPTIONS, n=1)
                meant = f"; did you mean {near[0]}?" if near and equals else f"; there are {', '.join(_OPTIONS)}"
                raise RequestError(f"--model {text!r}: {option!r} is no option=value known here{meant}")
            if key in ("concurrency", "length"):
                found[key] = human_integer(key, value)
            elif key == "checkpoint":
                found[key] = value
            else:
                settings[key] = value
        for key in ("concurrency", "length"):
            if not 1 <= found[key] <= 10**7:
                raise RequestError(f"{key} of {name} is {found[key]}; it must be from 1 to 10,000,000")
        # Checked as `predict` checks its own, so that a wrong value is refused in the same words.
        checked = Request.of({"model": model, **settings})
        known = tuple((key, getattr(checked, key)) for key in settings)
        return cls(model, quantization.strip() or None, settings=known, **found)


@dataclass(frozen=True, slots=True)
class Card:
    """The device of a plan and the vLLM that runs on it."""

    gpu: str | None
    gpu_total_gib: float | None
    vllm_version: str | None

    def request(self, engine: Engine, **fields: Any) -> Request:
        """The prediction request of `engine` here."""
        given = {
            "model": engine.model, "quantization": engine.quantization, "gpu": self.gpu,
            "gpu_total_gib": self.gpu_total_gib, "vllm_version": self.vllm_version, "max_model_len": engine.length,
            **dict(engine.settings), "max_num_seqs": engine.max_num_seqs, **fields,
        }  # fmt: skip
        return Request.of(given)


@dataclass(frozen=True, slots=True)
class Need:
    """What one engine takes of the card, bytes; intervals of 90 %.

    `inside`: weights, activations, memory outside torch and what is set aside for CUDA graphs: the engine's budget
    without its KV pool. `outside`: the CUDA context, graphs beyond what was set aside, and what serving adds; it comes
    on top of the budget. `kv_bytes` holds the stated load.
    """

    engine: Engine
    prediction: Prediction
    inside: Estimate
    outside: Estimate
    kv_bytes: int

    @property
    def budget(self) -> Estimate:
        """The least budget that holds the load."""
        return total([self.inside], exact=self.kv_bytes)


def need(engine: Engine, card: Card) -> Need:
    """What `engine` needs for its load on `card`. Raises RequestError."""
    if engine.max_num_seqs < engine.concurrency:  # the scheduler admits no more, whatever the memory
        raise RequestError(
            f"max_num_seqs of {engine.name} is {engine.max_num_seqs}, fewer than the {engine.concurrency} requests it "
            f"is to hold at once; give max_num_seqs={engine.concurrency} or concurrency={engine.max_num_seqs}"
        )
    alone = predict(card.request(engine))
    version = alone.settings.version
    if alone.obstacle is not None and alone.obstacle.phase == "config":
        raise RequestError(f"{engine.name}: {alone.obstacle.sentence}")
    blocks = engine.concurrency * alone.kv_blocks_per_request
    # One block serves no request where the release reserves it.
    blocks += 1 if defaults.null_block_reserved(version) else 0
    used = [alone.activation, alone.non_torch, alone.cuda_graph_estimate]
    outside = [alone.cuda_graph, alone.runtime]
    (used if defaults.context_in_budget(version) else outside).append(alone.context)
    return Need(
        engine,
        alone,
        inside=total(used, exact=alone.weights_bytes),
        outside=total(outside, [alone.cuda_graph_estimate]),
        kv_bytes=blocks * alone.kv_block_bytes,
    )


def with_load(engine: Engine, concurrency: int | None = None, length: int | None = None) -> Engine:
    """The same engine for another load."""
    return replace(engine, concurrency=concurrency or engine.concurrency, length=length or engine.length)
