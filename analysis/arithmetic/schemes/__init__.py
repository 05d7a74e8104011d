"""How weights are stored: the formats, and the quantization_config blocks that choose among them."""

from __future__ import annotations

from analysis.arithmetic.schemes.base import Format, Plain, Target
from analysis.arithmetic.schemes.selection import Quantization, quantization

__all__ = ["Format", "Plain", "Quantization", "Target", "quantization"]
