"""Llama, Mistral and Phi-3/Phi-4 (vLLM model_executor/models/llama.py, mistral.py, phi3.py)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from analysis.arithmetic.fields import Fields
from analysis.arithmetic.layout import Part
from analysis.arithmetic.models import windows
from analysis.arithmetic.models.decoder import Traits, decoder
from analysis.arithmetic.parallel import Shard


def traits(fields: Fields) -> Traits:
    """`attention_bias` puts a bias on all four projections, `qkv_bias` overrides it for QKV alone."""
    bias = fields.flag("attention_bias", False) or fields.flag("bias", False)
    return Traits(
        qkv_bias=fields.flag("qkv_bias", bias),
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        kv_heads_default=True,
        window=windows.declared(fields),
    )


def parts(fields: Fields, shard: Shard) -> Iterator[Part]:
    return decoder(fields, shard, traits(fields))


def mistral(fields: Fields, shard: Shard) -> Iterator[Part]:
    """A config.json without `sliding_window` means 4096, as transformers has it; null means none."""
    return decoder(fields, shard, replace(traits(fields), window=windows.declared(fields, 4096)))


def phi3(fields: Fields, shard: Shard) -> Iterator[Part]:
    """The checkpoint stacks QKV and gate/up already."""
    return decoder(fields, shard, replace(traits(fields), fused_on_disk=True))
