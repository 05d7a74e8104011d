"""Values of a router's configuration as YAML gives them: of the right kind, or refused in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bench.config.checks import require


def text(field: str, value: Any, *, optional: bool = False) -> None:
    """A word, or null where `optional`."""
    if not (optional and value is None):
        fix = "write text, in quotes where YAML would read something else" + (", or null" if optional else "")
        require(isinstance(value, str) and bool(value.strip()), field, repr(value), fix)


def number(field: str, value: Any, *, least: float, above: bool = False, whole: bool = False) -> None:
    """A finite number of at least `least`, or `above` it."""
    kind = "a whole number" if whole else "a number"
    good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    require(good and math.isfinite(value), field, repr(value), f"write {kind}, without quotes or a unit")
    if above:
        require(value > least, field, value, f"must be greater than {least:g}")
    else:
        require(value >= least, field, value, f"must be {least:g} or more")


def mapping(field: str, value: Any, example: str) -> dict[str, Any]:
    """A mapping whose keys are text; `example` shows one."""
    require(isinstance(value, Mapping), field, repr(value), f"write keys and values, as in {example}")
    odd = next((key for key in value if not isinstance(key, str)), None)
    require(odd is None, field, value, f"the key {odd} is not text; write it in quotes")
    return dict(value)


def sequence(field: str, value: Any, example: str) -> list[Any]:
    """A list; text is none, although it can be iterated."""
    require(isinstance(value, (list, tuple)), field, repr(value), f"write a list, as in {example}")
    return list(value)
