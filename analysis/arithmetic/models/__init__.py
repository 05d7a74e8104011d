"""Tensor layouts per architecture. A new architecture is one file here and one line in `REGISTRY`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from analysis.arithmetic.errors import MalformedConfig, UnknownArchitecture
from analysis.arithmetic.fields import Fields
from analysis.arithmetic.layout import Part
from analysis.arithmetic.models import llama, qwen2, qwen3, qwen3_moe
from analysis.arithmetic.parallel import Shard

Layout = Callable[[Fields, Shard], Iterator[Part]]

REGISTRY: dict[str, Layout] = {
    "LlamaForCausalLM": llama.parts,
    "MistralForCausalLM": llama.parts,
    "Qwen2ForCausalLM": qwen2.parts,
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
