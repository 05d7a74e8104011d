"""Recorded traffic: when each request came and how long it was, to be sent again at the same times."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bench.errors import BadRequest
from bench.load.tokenfile import Row, column_of, read_rows, tokens_of

TIME_UNITS = ("auto", "s", "ms")
LONG_GAP_S, SHORT_GAP_S = 10.0, 0.002  # mean gaps of traffic worth replaying lie between
FEW_ROWS = 10  # whoever writes so few of them by hand may mean anything
_UNIT_S = {"s": 1.0, "ms": 1e-3}
_LONG_FRACTION = re.compile(r"(\.\d{6})\d+")  # Azure's traces have seven digits, Python reads six


@dataclass(frozen=True)
class Trace:
    """Requests in the order of their arrival; ``offsets_s`` are seconds after the first."""

    offsets_s: Sequence[float]
    input_tokens: Sequence[int]
    output_tokens: Sequence[int]


def read_trace(path: str, time_unit: str = "auto") -> Trace:
    """Read a trace of columns timestamp, input length and output length, JSON Lines or CSV.

    ``time_unit`` says what numbers in the timestamp column are. ``auto``: a name that ends in ``_s`` or ``_ms`` says
    so itself; Mooncake's files (known by their ``hash_ids``) are in milliseconds, dates (Azure's) need no unit, and
    all else is in seconds, which is also what vLLM's trace replay takes them for. Where such a guess gives a mean gap
    that the other unit explains better (whole numbers of seconds more than :data:`LONG_GAP_S` apart, milliseconds less
    than :data:`SHORT_GAP_S`, over more than :data:`FEW_ROWS` rows), the file is refused and the unit must be said.
    Rows need not be in order.

    Raises :class:`BadRequest` naming the file and the row.
    """
    setting = "trace_file"
    rows = read_rows(setting, path)
    times_key = column_of(setting, path, rows, "timestamp")
    inputs = tokens_of(setting, path, rows, column_of(setting, path, rows, "input_tokens"))
    outputs = tokens_of(setting, path, rows, column_of(setting, path, rows, "output_tokens"))
    unit_s = _unit_s(rows[0], times_key, time_unit)
    times_s = [_seconds(path, number, row.get(times_key), unit_s) for number, row in enumerate(rows, 1)]
    order = sorted(range(len(rows)), key=lambda i: times_s[i])
    first_s = times_s[order[0]]
    if time_unit == "auto" and len(rows) > FEW_ROWS:
        _check_guess(path, times_key, [row.get(times_key) for row in rows], unit_s, times_s[order[-1]] - first_s)
    return Trace(
        [times_s[i] - first_s for i in order], [inputs[i] for i in order], [outputs[i] for i in order]
    )  # fmt: skip


def _unit_s(row: Row, key: str, time_unit: str) -> float:
    if time_unit != "auto":
        return _UNIT_S[time_unit]
    if key.endswith("_ms") or "hash_ids" in row:
        return _UNIT_S["ms"]
    return _UNIT_S["s"]


def _check_guess(path: str, key: str, given: Sequence[Any], unit_s: float, span_s: float) -> None:
    """Refuse a unit that no name states and that makes an unlikely load."""
    if key.endswith(("_s", "_ms")):
        return
    try:
        whole = all(float(value).is_integer() for value in given)
    except (TypeError, ValueError):
        return  # dates
    gap_s = span_s / (len(given) - 1)
    unlikely = gap_s > LONG_GAP_S if unit_s == _UNIT_S["s"] else 0 < gap_s < SHORT_GAP_S
    if whole and unlikely:
        taken = "seconds" if unit_s == _UNIT_S["s"] else "milliseconds"
        raise BadRequest(
            f"trace_time_unit=auto: {path} does not say the unit of its {key}, and as {taken} its requests would be "
            f"{gap_s:.3g} s apart on average; write trace_time_unit=s or trace_time_unit=ms"
        )


def _seconds(path: str, number: int, value: Any, unit_s: float) -> float:
    try:
        seconds = float(value) * unit_s
        if math.isfinite(seconds):
            return seconds
    except (TypeError, ValueError):
        pass
    try:
        when = datetime.fromisoformat(_LONG_FRACTION.sub(r"\1", str(value).strip()))
    except ValueError:
        raise BadRequest(
            f"trace_file={path}: row {number} has the timestamp {value!r}; write seconds, milliseconds or an ISO date"
        ) from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
