"""The cells of the tables: every model and format, every quantity, ours beside the guide's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from analysis import guide
from analysis.predict.request import RequestError
from analysis.tables.evidence import Evidence, Figure

MODELS: tuple[tuple[str, str, str], ...] = (
    ("7B", "mistral-7b", "Mistral-7B v0.3"),
    ("7B", "qwen2.5-7b", "Qwen2.5-7B"),
    ("14B", "qwen2.5-14b", "Qwen2.5-14B"),
    ("33B", "deepseek-coder-33b", "DeepSeek-Coder-33B"),
    ("33B", "qwen2.5-coder-32b", "Qwen2.5-Coder-32B"),
)
"""The guide's size, the catalogue entry, the name for people."""

FORMATS: tuple[tuple[str, str], ...] = (
    ("bf16", "FP16/BF16"),
    ("awq", "AWQ int4"),
    ("gptq", "GPTQ int4"),
    ("int8-w8a8", "INT8 W8A8"),
    ("fp8", "FP8"),
)
"""The catalogue entry and the name for people. 4-bit formats are those of groups of 128."""

LOADS: tuple[tuple[int, int], ...] = ((8, 4096), (64, 4096))
"""Sequences x tokens whose KV cache is counted."""

QUANTITIES = ("weights", "kv", "overhead", "total", "multiplier")


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure. Sizes in bytes, multipliers plain; None where there is no data, and `basis` is `no data`."""

    size: str
    model: str
    quantization: str
    quantity: str
    sequences: int | None
    tokens: int | None
    value: float | None
    low: float | None
    high: float | None
    basis: str
    formula: str
    run_ids: tuple[str, ...]
    calibrations: tuple[str, ...]
    guide: guide.Range | None

    @property
    def unit(self) -> str:
        return "1" if self.quantity == "multiplier" else "B"

    @property
    def guide_bounds(self) -> tuple[float, float] | None:
        """The guide's range in this cell's unit: GB are 10^9 bytes."""
        if self.guide is None:
            return None
        factor = guide.GB if self.guide.unit == "GB" else 1
        return self.guide.low * factor, self.guide.high * factor

    @property
    def ratio(self) -> tuple[float, float] | None:
        """Our value over the guide's upper and over its lower end."""
        if self.value is None or self.guide_bounds is None:
            return None
        low, high = self.guide_bounds
        return self.value / high, self.value / low


def cells(evidence: Evidence) -> Iterator[Cell]:
    """Every cell, in the order of the tables."""
    for size, model, _ in MODELS:
        for quantization, _ in FORMATS:
            said = guide.TABLE.get((size, quantization))
            by_quantity = {
                "weights": said.weights if said else None, "kv": said.kv if said else None,
                "overhead": said.overhead if said else None, "total": said.total if said else None,
                "multiplier": guide.MULTIPLIERS.get(size),
            }  # fmt: skip
            for quantity in QUANTITIES:
                loads = [None] if quantity in ("weights", "overhead") else list(LOADS)
                for load in loads:
                    yield _cell(evidence, size, model, quantization, quantity, load, by_quantity[quantity])


def _cell(
    evidence: Evidence, size: str, model: str, quantization: str, quantity: str, load: tuple[int, int] | None,
    beside: guide.Range | None,
) -> Cell:  # fmt: skip
    sequences, tokens = load or (None, None)
    try:
        of: Callable[..., Figure] = getattr(evidence, quantity)
        found = of(model, quantization, *(load or ()))
    except RequestError as refused:
        return Cell(size, model, quantization, quantity, sequences, tokens, None, None, None, "no data", str(refused),
                    (), (), beside)  # fmt: skip
    return Cell(size, model, quantization, quantity, sequences, tokens, found.value, found.low, found.high,
                found.basis, found.formula, found.run_ids, found.calibrations, beside)  # fmt: skip
