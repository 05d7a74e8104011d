"""What is wanted: the card, the models, the load, the targets, and what is known of quality."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis import catalogue
from analysis.predict.request import RequestError

FORMATS = ("bf16", "fp8", "int8-w8a8", "awq", "gptq")
"""Weight formats that are tried unless the user names others."""


@dataclass(frozen=True, slots=True)
class Slo:
    """Targets in seconds, held against the predicted means; None: none stated."""

    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """One question. Lengths in tokens; `concurrency` or `rate_per_s` states the load. `quality` maps (model, format) to
    a score of the user's, higher is better; its scale is theirs."""

    models: tuple[str, ...]
    gpu: str | None
    gpu_total_gib: float | None
    vllm_version: str | None
    concurrency: int | None
    rate_per_s: float | None
    input_tokens: int
    output_tokens: int
    slo: Slo = Slo()
    formats: tuple[str, ...] = FORMATS
    quality: Mapping[tuple[str, str], float] = field(default_factory=dict)
    least_quality: float | None = None

    @property
    def length(self) -> int:
        """Tokens of one request, prompt and answer."""
        return self.input_tokens + self.output_tokens

    def __post_init__(self) -> None:
        if not self.models:
            raise RequestError("there is no model: give --model, once for each")
        if (self.concurrency is None) == (self.rate_per_s is None):
            raise RequestError("state the load once: --concurrency N for a closed loop, --rate PER_S for an open one")
        known = catalogue.quantization_names()
        for name in self.formats:
            if name not in known:
                raise RequestError(f"--formats names {name!r}; there are {', '.join(known)}")
        if self.least_quality is not None and not self.quality:
            raise RequestError("--min-quality needs scores: give them with --quality FILE")


def milliseconds(value_s: float) -> str:
    """A time for people: ms below ten seconds."""
    return f"{value_s * 1000:,.0f} ms" if value_s < 10 else f"{value_s:,.1f} s"


def targets(ask: Ask) -> str:
    """The targets as the end of a heading; empty where none is stated."""
    found = [f"{name} {value * 1000:g} ms" for name, value in (("TTFT", ask.slo.ttft_s), ("TPOT", ask.slo.tpot_s))
             if value is not None]  # fmt: skip
    return f"; targets: mean {', mean '.join(found)}" if found else ""


def seconds(field_name: str, text: str) -> float:
    """`0.5`, `0.5s` or `500ms` as seconds. Raises RequestError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s)?\s*", text)
    value = float(match[1]) / (1000 if match[2] == "ms" else 1) if match else 0.0
    if not value > 0:
        raise RequestError(f"{field_name} is {text!r}; write a time above 0, such as 500ms or 0.5s")
    return value


def read_quality(path: Path) -> dict[tuple[str, str], float]:
    """Scores from CSV with the columns model, quantization, quality, or JSON lines or a JSON list of such objects.

    Raises RequestError naming the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--quality {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    rows = _json_rows(path, text) if text.lstrip()[:1] in ("[", "{") else list(csv.DictReader(text.splitlines()))
    found = {}
    for number, row in enumerate(rows, start=1):
        try:
            score = float(row["quality"])
            key = (str(row["model"]).strip(), str(row["quantization"]).strip())
        except (KeyError, TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise RequestError(f"--quality {path}, entry {number}: needs model, quantization and a number as quality")
        found[key] = score
    if not found:
        raise RequestError(f"--quality {path} holds no entry; write the columns model, quantization, quality")
    return found


def _json_rows(path: Path, text: str) -> Sequence[Any]:
    try:
        if text.lstrip().startswith("["):
            return list(json.loads(text))
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise RequestError(f"--quality {path} is not JSON: {error}") from None
