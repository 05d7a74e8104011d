"""The calculator: what `predict` computes, in the browser, from a page that asks the network for nothing."""

from analysis.calculator.page import fragment, standalone

__all__ = ["fragment", "standalone"]
