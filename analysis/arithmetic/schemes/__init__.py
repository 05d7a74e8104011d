"""How weights are stored: the formats, and the quantization_config blocks that choose among them."""

from __future__ import annotations

from analysis.arithmetic.schemes.base import PLAIN, Format, Plain, Platform, Target
from analysis.arithmetic.schemes.selection import Quantization, quantization

__all__ = ["PLAIN", "Format", "Plain", "Platform", "Quantization", "Target", "quantization"]
