"""Which weight formats and types a card can run under vLLM, by its compute capability, and why.

The rules are those of vLLM 0.32's sources, which releases since 0.8 share unless a rule says otherwise; each names its
source. Memory is another question: a format that does not run may well fit. A device that is not in the table has no
known capability, and nothing is said of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from analysis import gpus
from analysis.predict import models
from analysis.predict.features import quantization_method, text_config
from analysis.predict.request import Request
from analysis.predict.settings import DEFAULT_GPU

Capability = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Rule:
    """Compute capabilities that run a format: from `least`, and where `below` is given only under that. `instead`
    names catalogue formats that give up about as much, the nearest first."""

    least: Capability
    source: str
    below: Capability | None = None
    why_below: str = ""
    instead: tuple[str, ...] = ()


RULES: dict[str, Rule] = {
    "awq": Rule((7, 5), "quantization/auto_awq.py: get_min_capability", instead=("gptq",)),
    "gptq": Rule((6, 0), "quantization/auto_gptq.py: get_min_capability"),
    "w4a16": Rule((7, 5), "compressed_tensors_wNa16.py: get_min_capability", instead=("gptq",)),
    # Below 8.9 FP8 weights are kept and multiplied in 16 bits (Marlin), which is no refusal.
    "fp8": Rule((7, 5), "quantization/fp8.py and compressed_tensors_w8a16_fp8.py: get_min_capability",
                instead=("gptq-int8",)),
    "int8-w8a8": Rule(
        (7, 5), "compressed_tensors_w8a8_int8.py: get_min_capability; docs.vllm.ai, features/quantization/int8: not "
        "supported on compute capability >= 10.0; github.com/vllm-project/vllm/issues/54311", below=(10, 0),
        why_below="vLLM's CUTLASS kernels have no INT8 for 10.0 and later, and the start ends there",
        instead=("fp8", "gptq-int8"),
    ),
    "mxfp4": Rule((8, 0), "quantization/mxfp4.py: get_min_capability"),
}  # fmt: skip
"""Weight format to what runs it. vLLM compares the first (config/vllm.py: `get_quantization_config`, and
compressed_tensors.py: `_check_scheme_supported`) and refuses to start."""

BFLOAT16: Capability = (8, 0)
"""platforms/cuda.py: `check_if_supports_dtype` refuses --dtype bfloat16 below; `auto` takes float16 there."""

FP8_ARITHMETIC: Capability = (8, 9)
"""Below, FP8 weights are multiplied in 16 bits (docs.vllm.ai, features/quantization/fp8)."""

FP8_CACHE: Capability = (8, 0)
"""Below, only the Triton attention backend is left, whose fp8 KV cache wants 8.9 (v1/attention/backends:
flashinfer.py: `supports_compute_capability`, triton_attn.py: `TritonAttentionImpl`)."""

NO_FLOAT16 = ("gemma2", "gemma3", "gemma3_text", "glm4")
"""model_type of models that vLLM refuses in float16 for numerical reasons (config/model.py)."""


def lacking(request: Request) -> str:
    """Why vLLM does not run this model, format or KV type on this card, as a clause; empty where nothing is known
    against it. Raises RequestError where there is no such model."""
    card = _card(request)
    if card is None:
        return ""
    config = models.resolve(request).config
    of = format_of(config)
    rule, have, named = RULES.get(of), _text(card.capability), request.quantization or of
    where = f"{card.title} (compute capability {have})"
    if rule is not None and card.capability < rule.least:
        return f"{named} does not run on {where}: vLLM wants {_text(rule.least)} or later for it"
    if rule is not None and rule.below is not None and card.capability >= rule.below:
        return f"{named} does not run on {where}: {rule.why_below}"
    kind = str(text_config(config).get("model_type") or config.get("model_type"))
    if card.capability < BFLOAT16 and kind in NO_FLOAT16 and request.quantization != "fp32":
        return f"{kind} models do not run in 16 bits on {where}: it has no bfloat16, and vLLM refuses them in float16"
    if card.capability < FP8_CACHE and (request.kv_cache_dtype or "").startswith("fp8"):
        return f"an fp8 KV cache does not run on {where}: vLLM wants {_text(FP8_CACHE)} or later for it"
    return ""


def format_of(config: Mapping[str, Any]) -> str:
    """The weight format of a config.json, as a key of RULES; `none` for plain weights, vLLM's name for others."""
    method = quantization_method(text_config(config) if "quantization_config" not in config else config)
    if method != "compressed-tensors":
        return method
    groups = (config.get("quantization_config") or {}).get("config_groups")
    group = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights, inputs = ((group.get(name) if isinstance(group, Mapping) else None) for name in
                       ("weights", "input_activations"))  # fmt: skip
    if not isinstance(weights, Mapping):
        return method
    if weights.get("type") == "float" and weights.get("num_bits") == 8:
        return "fp8"
    if weights.get("type") == "int":
        return "int8-w8a8" if isinstance(inputs, Mapping) and inputs.get("num_bits") == 8 else "w4a16"
    return method


def nearest(request: Request) -> str | None:
    """The catalogue format to take where the one of `request` does not run on its card; None where it runs or no such
    format is known. Raises RequestError."""
    rule = RULES.get(format_of(models.resolve(request).config))
    if rule is None or not lacking(request) or request.quantization is None:
        return None
    return next((one for one in rule.instead if not lacking(replace(request, quantization=one))), None)


def half_note(quantization: str | None, gpu: str | None) -> str:
    """Why the command of a bf16 model says --dtype half on this card; empty where it does not."""
    card = _named(gpu)
    if quantization != "bf16" or card is None or card.capability >= BFLOAT16:
        return ""
    return (
        f"bf16 is served with --dtype half: {card.title} (compute capability {_text(card.capability)}) has no "
        "bfloat16; float16 has a smaller range, which few models mind"
    )


def dtype_flag(quantization: str | None, gpu: str | None) -> str | None:
    """What follows --dtype for a catalogue entry that is a plain type; None for all others."""
    if half_note(quantization, gpu):
        return "half"
    return models.PLAIN_DTYPES.get(quantization or "")


def slower_note(quantization: str, gpu: str | None) -> str:
    """What a format loses on a card that runs it without the arithmetic; empty where it loses nothing."""
    card = _named(gpu)
    if not quantization.startswith("fp8") or card is None or card.capability >= FP8_ARITHMETIC:
        return ""
    return (
        f"{card.title} (compute capability {_text(card.capability)}) has no FP8 arithmetic: it keeps FP8 weights and "
        "computes in 16 bits"
    )


def _card(request: Request) -> gpus.Gpu | None:
    """The card of a request, as a prediction takes it."""
    if request.gpu is None and request.gpu_total_gib is not None:
        return None
    return _named(request.gpu or DEFAULT_GPU)


def _named(gpu: str | None) -> gpus.Gpu | None:
    try:
        return gpus.find(gpu) if gpu else None
    except gpus.UnknownGpu:
        return None


def _text(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"
