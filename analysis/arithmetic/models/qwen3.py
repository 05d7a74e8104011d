"""Qwen3, dense (vLLM model_executor/models/qwen3.py)."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.arithmetic.fields import Fields
from analysis.arithmetic.layout import Part
from analysis.arithmetic.models import windows
from analysis.arithmetic.models.decoder import Traits, decoder
from analysis.arithmetic.parallel import Shard


def traits(fields: Fields) -> Traits:
    """Per-head norms of query and key; QKV bias only where `attention_bias` says so."""
    return Traits(
        qkv_bias=fields.flag("attention_bias", False),
        qk_norm=True,
        head_dim_required=True,
        window=windows.qwen(fields),
    )


def parts(fields: Fields, shard: Shard) -> Iterator[Part]:
    return decoder(fields, shard, traits(fields))
