"""Tensor layouts per architecture. A new architecture is one file here and one line in `REGISTRY`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from analysis.arithmetic.errors import MalformedConfig, UnknownArchitecture
from analysis.arithmetic.fields import Fields
from analysis.arithmetic.layout import Part
from analysis.arithmetic.models import (
    deepseek,
    gemma,
    gemma3_multimodal,
    gpt_oss,
    granite,
    llama,
    mixtral,
    phi,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
)
from analysis.arithmetic.parallel import Shard

Layout = Callable[[Fields, Shard], Iterator[Part]]

REGISTRY: dict[str, Layout] = {
    "DeepseekV2ForCausalLM": deepseek.parts,
    "DeepseekV3ForCausalLM": deepseek.parts,
    "Gemma2ForCausalLM": gemma.gemma2,
    "Gemma3ForCausalLM": gemma.gemma3,
    "Gemma3ForConditionalGeneration": gemma3_multimodal.parts,
    "GemmaForCausalLM": gemma.gemma,
    "GptOssForCausalLM": gpt_oss.parts,
    "GraniteForCausalLM": granite.parts,
    "GraniteMoeForCausalLM": granite.mixture,
    "LlamaForCausalLM": llama.parts,
    "MistralForCausalLM": llama.mistral,
    "MixtralForCausalLM": mixtral.parts,
    "Phi3ForCausalLM": llama.phi3,
    "PhiForCausalLM": phi.parts,
    "Qwen2ForCausalLM": qwen2.parts,
    "Qwen2MoeForCausalLM": qwen2_moe.parts,
    "Qwen3ForCausalLM": qwen3.parts,
    "Qwen3MoeForCausalLM": qwen3_moe.parts,
}


def architecture(config: Mapping[str, Any]) -> str:
    """The first registered name in `architectures`. Raises UnknownArchitecture or MalformedConfig."""
    named = Fields(config).config.get("architectures")
    if not named or not isinstance(named, list | tuple):
        raise MalformedConfig("architectures", "is missing" if not named else f"is {named!r}, not a list")
    for name in named:
        if isinstance(name, str) and name in REGISTRY:
            return name
    raise UnknownArchitecture(named[0] if len(named) == 1 else list(named), REGISTRY)


def parts(config: Mapping[str, Any], shard: Shard) -> list[Part]:
    """What one rank of this model is made of."""
    return list(REGISTRY[architecture(config)](Fields(config), shard))


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the language model, with those that the published files of its family leave out.

    Of a plain text model it is config.json itself. Raises UnknownArchitecture or MalformedConfig.
    """
    name = architecture(config)
    if name == "Gemma3ForConditionalGeneration":
        return gemma.with_defaults(gemma3_multimodal.block(Fields(config), "text_config"))
    return gemma.with_defaults(config) if name == "Gemma3ForCausalLM" else dict(config)
