"""The one way a configuration value is refused: field, value, what to write instead."""

from __future__ import annotations

import re
from typing import Any

from bench.errors import BadRequest

_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def require(ok: bool, field: str, value: Any, fix: str) -> None:
    """Raise `BadRequest` naming `field`, its `value` and the `fix` unless `ok`."""
    if not ok:
        raise BadRequest(f"{field}={value}: {fix}")


def positive(
    field: str, value: int | float | None, *, optional: bool = False, null: str = "vLLM's own default"
) -> None:
    """Refuse zero and negative values; None only where ``optional``, and ``null`` says what it then means."""
    if value is None:
        require(optional, field, value, "a value is needed here, greater than 0")
        return
    leave = f", or null for {null}" if optional else ""
    require(value > 0, field, value, f"must be greater than 0{leave}")


def one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a word outside `allowed`."""
    require(value in allowed, field, value, f"choose one of {', '.join(allowed)}")


def parse_bytes(field: str, value: Any) -> int | None:
    """Bytes from an integer or from text with a unit, such as `4GiB` (2**30) or `4GB` (10**9)."""
    if value is None or isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(value))
    if match and match[2].lower() in _UNITS:
        return int(float(match[1]) * _UNITS[match[2].lower()])
    raise BadRequest(f"{field}={value}: write bytes as a whole number or with a unit, such as 512MiB or 4GiB")
