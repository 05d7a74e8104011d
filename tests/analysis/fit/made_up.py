"""Starts with known terms, for fits whose truth is known."""

from __future__ import annotations

import itertools
import random

from analysis.estimate import Features
from analysis.fit.drivers import DRIVERS
from analysis.fit.starts import GIB, Start, setting_of

MODELS = {
    "a": (2048, 8192, 24, 32000), "b": (4096, 14336, 32, 128256), "c": (3584, 18944, 28, 152064),
    "d": (5120, 17920, 40, 100352), "e": (2304, 9216, 26, 256000), "f": (8192, 28672, 80, 64000),
}  # fmt: skip
"""Hidden size, MLP width, layers, vocabulary."""


def features(model: str, seqs: int = 256, tokens: int = 2048, tp: int = 1, eager: bool = False) -> Features:
    hidden, width, layers, vocabulary = MODELS[model]
    return Features(
        architecture="LlamaForCausalLM", hidden_size=hidden, intermediate_size=width, layers=layers, attention_heads=32,
        kv_heads=8, head_dim=128, vocab_size=vocabulary, experts=0, tensor_parallel_size=tp, pipeline_parallel_size=1,
        max_num_seqs=seqs, max_num_batched_tokens=tokens, max_model_len=4096, enforce_eager=eager,
        graph_count=0 if eager else 70, graph_max_size=0 if eager else 512, dtype_bytes=2, quantization="none",
    )  # fmt: skip


def true_terms(of: Features) -> dict[str, float]:
    def sum_of(**coefficients: float) -> float:
        return sum(value * DRIVERS[name](of) for name, value in coefficients.items())

    return {
        "activation": max(sum_of(logit_bytes=1, logits=9.0, hidden_bytes=2.0), sum_of(mlp_bytes=3, hidden_bytes=5.0)),
        "cuda_graph": sum_of(captured=0.25 * GIB, graph_layers=0.3e-3 * GIB),
        "non_torch": 0.2 * GIB + sum_of(layers=0.5e-3 * GIB) if of.tensor_parallel_size == 1 else 2.1 * GIB,
        "context": 0.5 * GIB,
    }


def starts(noise_gib: float = 0.003, seed: int = 1) -> list[Start]:
    """Six models on both sides of the kink, errors of a log's rounding."""
    chance = random.Random(seed)
    made = []
    grid = ((1024, 2048), (256, 2048), (8, 2048), (8, 16384), (64, 8192))
    for model, (seqs, tokens) in itertools.product(MODELS, grid):
        of = features(model, seqs, tokens)
        terms = {name: value + chance.gauss(0, noise_gib) * GIB for name, value in true_terms(of).items()}
        made.append(Start(f"{model}-{seqs}-{tokens}", model, setting_of(of), of, terms))
    return made
