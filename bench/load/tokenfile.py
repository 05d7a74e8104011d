"""Rows of token counts from a file: JSON Lines, CSV with a header, or plain numbers, one a line.

Column names differ between published traces; those of Mooncake (and vLLM's trace replay, which took them over),
Azure's public LLM traces and BurstGPT are known.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from bench.errors import BadRequest

_CHECKOUT = Path(__file__).resolve().parents[2]

COLUMNS: dict[str, tuple[str, ...]] = {
    "timestamp": ("timestamp_s", "timestamp_ms", "timestamp", "arrived_at", "arrival_time"),
    "input_tokens": ("input_length", "input_tokens", "prompt_tokens", "contexttokens", "num_prefill_tokens",
                     "request tokens", "input_len", "prompt_len"),
    "output_tokens": ("output_length", "output_tokens", "completion_tokens", "generatedtokens", "num_decode_tokens",
                      "response tokens", "output_len"),
}  # fmt: skip
"""What a column holds -> names it goes by, compared without case."""

Row = Mapping[str, Any]


def find_file(setting: str, path: str) -> Path:
    """The file at ``path``, taken from the working folder or else from the checkout. Raises :class:`BadRequest`."""
    for candidate in (Path(path), _CHECKOUT / path):
        if candidate.is_file():
            return candidate
    raise BadRequest(f"{setting}={path}: there is no such file")


def read_rows(setting: str, path: str) -> Sequence[Row]:
    """All rows, keys in lower case. A file of plain numbers has the one key ``""``. Raises :class:`BadRequest`."""
    file = find_file(setting, path)
    status = file.stat()
    return _read(setting, path, file, status.st_mtime_ns, status.st_size)


def column_of(
    setting: str, path: str, rows: Sequence[Row], holds: str, name: str | None = None, *, alone: bool = False
) -> str:
    """The key under which ``rows`` keep what ``holds`` names; with ``alone`` plain numbers will do. Raises
    :class:`BadRequest` if there is none."""
    known = (name.lower(),) if name else COLUMNS[holds]
    for key in known:
        if key in rows[0]:
            return key
    if "" in rows[0] and name is None and alone:
        return ""
    there = ", ".join(key for key in rows[0] if key) or "plain numbers"
    raise BadRequest(f"{setting}={path}: it has no column {' or '.join(known)} for the {holds} (it has: {there})")


def tokens_of(setting: str, path: str, rows: Sequence[Row], key: str) -> list[int]:
    """The whole numbers of at least 1 in one column. Raises :class:`BadRequest` with the row's number."""
    counts = []
    for number, row in enumerate(rows, 1):
        try:
            value = float(row[key])
            if not math.isfinite(value) or value < 1 or value != math.floor(value):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise BadRequest(
                f"{setting}={path}: row {number} has {key or 'the value'} {row.get(key)!r}; "
                "every row needs a whole number of tokens greater than 0"
            ) from None
        counts.append(int(value))
    return counts


def read_column(setting: str, path: str, column: str | None, holds: str) -> list[int]:
    """Token counts of one column; ``holds`` is ``input_tokens`` or ``output_tokens``."""
    rows = read_rows(setting, path)
    return tokens_of(setting, path, rows, column_of(setting, path, rows, holds, column, alone=True))


@lru_cache(maxsize=8)
def _read(setting: str, path: str, file: Path, mtime_ns: int, size_bytes: int) -> Sequence[Row]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = _parse(lines.read())
    except (OSError, ValueError, csv.Error) as error:
        said = str(error).splitlines()[0]
        raise BadRequest(f"{setting}={path}: cannot be read as JSON Lines, CSV or plain numbers ({said})") from None
    if not rows:
        raise BadRequest(f"{setting}={path}: it has no rows")
    return rows


def _parse(text: str) -> list[Row]:
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    if lines[0].lstrip().startswith("{"):
        rows: list[Row] = []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not an object")
            rows.append({str(key).lower(): value for key, value in row.items()})
        return rows
    if lines[0].lstrip().startswith("["):
        raise ValueError("a JSON array; write one object a line")
    if _is_number(lines[0]):
        return [{"": line.strip()} for line in lines]
    return [
        {str(key).strip().lower(): value for key, value in row.items() if key is not None}
        for row in csv.DictReader(lines)
    ]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
