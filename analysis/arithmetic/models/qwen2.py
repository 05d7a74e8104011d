"""Qwen2 and Qwen2.5 (vLLM model_executor/models/qwen2.py)."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.arithmetic.fields import Fields
from analysis.arithmetic.layout import Part
from analysis.arithmetic.models import windows
from analysis.arithmetic.models.decoder import Traits, decoder
from analysis.arithmetic.parallel import Shard


def parts(fields: Fields, shard: Shard) -> Iterator[Part]:
    """QKV always carries a bias, nothing else does."""
    return decoder(fields, shard, Traits(qkv_bias=True, window=windows.qwen(fields)))
