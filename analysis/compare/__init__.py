"""Result sets against each other: matched cells, stated tests, and what the figures are worth."""

from analysis.compare.model import CompareError, Comparison, Options
from analysis.compare.run import compare_sets

__all__ = ["Comparison", "CompareError", "Options", "compare_sets"]
