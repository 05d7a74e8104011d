"""The figures and claims of the rule-of-thumb guide that this project checks, as data.

The guide ("VRAM Calculation Reference & Quick Setup Guide") was written for one 96 GB card. Its sizes are in GB, which
are read as 10^9 bytes; `section` names the heading where a figure stands. Nothing here is a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

GB = 10**9

ESTIMATES = "Model-Specific VRAM Estimates"
FORMULA = "Quick VRAM Calculation Formula"
SCENARIOS = "96GB GPU Budget Scenarios"
TUNING = "VRAM Tuning Parameters"
MULTI = "Multi-Model Setup Examples"
MONITORING = "Memory Monitoring During Runtime"
TREE = "Quantization Method Decision Tree"
DOWNLOADS = "Pre-Download Command Examples"
TROUBLE = "Troubleshooting VRAM Issues"


@dataclass(frozen=True, slots=True)
class Range:
    """A figure of the guide; `low` and `high` are equal where it gives one number. `unit` is GB or 1 (a factor)."""

    low: float
    high: float
    section: str
    unit: str = "GB"

    def text(self) -> str:
        numbers = f"{self.low:g}" if self.low == self.high else f"{self.low:g}-{self.high:g}"
        return f"{numbers} GB" if self.unit == "GB" else f"{numbers} x"


@dataclass(frozen=True, slots=True)
class Estimate:
    """One block of the guide's table: a model size in one format, GB per model."""

    weights: Range
    kv: Range
    overhead: Range
    total: Range


def _estimate(size: str, weights: tuple[float, float], kv: tuple[float, float], overhead: tuple[float, float],
              total: tuple[float, float]) -> Estimate:  # fmt: skip
    section = f"{ESTIMATES}, {size} Models"
    return Estimate(*(Range(low, high, section) for low, high in (weights, kv, overhead, total)))


TABLE: dict[tuple[str, str], Estimate] = {
    ("7B", "bf16"): _estimate("7B", (14, 14), (8, 10), (2, 4), (24, 28)),
    ("7B", "awq"): _estimate("7B", (3.5, 4), (14, 18), (1, 3), (18, 25)),
    ("14B", "bf16"): _estimate("14B", (28, 28), (12, 15), (2, 4), (42, 47)),
    ("14B", "awq"): _estimate("14B", (7, 8), (18, 24), (2, 4), (27, 36)),
    ("33B", "bf16"): _estimate("33B", (66, 66), (8, 10), (2, 5), (76, 81)),
    ("33B", "awq"): _estimate("33B", (18, 20), (25, 30), (2, 5), (45, 55)),
    ("33B", "gptq"): _estimate("33B", (15, 16), (28, 35), (2, 5), (45, 56)),
}
"""Model size and weight format (a name in conf/quantization; bf16 stands for both 16-bit types)."""

MULTIPLIERS: dict[str, Range] = {
    "7B": Range(3.0, 4.0, f"{FORMULA}, total", "1"),
    "33B": Range(2.5, 3.0, f"{FORMULA}, total", "1"),
}
"""Total over weights by model size; the guide gives none for 14B."""

BYTES_PER_PARAMETER: dict[str, Range] = {
    "bf16": Range(2.0, 2.0, f"{FORMULA}, weights", "1"),
    "gptq": Range(0.5, 0.5, f"{FORMULA}, weights", "1"),
    "awq": Range(0.5, 0.6, f"{FORMULA}, weights", "1"),
    "int8-w8a8": Range(1.0, 1.0, f"{FORMULA}, weights", "1"),
    "fp8": Range(1.0, 1.0, f"{FORMULA}, weights", "1"),
}

BATCHING_SHARE = Range(0.10, 0.20, f"{FORMULA}, total", "1")
"""What batching adds to model and KV cache."""

EXAMPLE_33B_AWQ_WEIGHTS = Range(18.0, 18.0, f"{FORMULA}, example")
EXAMPLE_33B_KV_AT_4096 = Range(44.0, 44.0, f"{TUNING}, Token Batching")

CARD_GB = 96.0
UTILIZATION = 0.90
USABLE_GB = 86.4
TWO_MODELS_UTILIZATION = 0.88
TWO_MODELS_ADVICE = 0.85
DEFAULT_MAX_NUM_SEQS = 256
SEQUENCE_SAVINGS = {128: 0.50, 64: 0.75}
"""max-num-seqs, to the share of KV memory it is said to save against 256."""
LONGER_CONTEXT = (4096, 8192, 0.50)
"""From a length to another, and how much larger the KV cache is said to become."""
TOKEN_BUDGETS = (8192, 6144)
"""max-num-batched-tokens, balanced and for tight memory; said to control the size of the KV cache."""
ACCURACY = 0.989
DISK_GB = {"33B": Range(15.0, 20.0, DOWNLOADS), "7B": Range(3.0, 5.0, DOWNLOADS)}

FLAGS = (
    "--model", "--quantization", "--gpu-memory-utilization", "--max-num-batched-tokens", "--max-num-seqs",
    "--cpu-offload-gb", "--port",
)  # fmt: skip
STATS_ROUTE = "/stats"
OLD_SERVER_MODULE = "vllm.entrypoints.api_server"
WARNING_TEXT = "GPU is running out of memory"


_SEVEN_B = (
    "The guide names no format for its Qwen2.5 7B and gives it 18 GB, which lies in its own range for a 7B model in "
    "AWQ (18-25 GB) and below the one in FP16 (24-28 GB): it is taken as AWQ."
)
_EIGHT_BIT = "The guide's 8-bit pair is taken as INT8 W8A8; its other 8-bit format is FP8."


@dataclass(frozen=True, slots=True)
class Scenario:
    """Two models on the card: (catalogue model, format, GB the guide gives it). `fits` and `batching` are what the
    guide says: both fit, and with room to serve several requests at once. `reading` says how its words were taken,
    where they leave a choice."""

    name: str
    first: tuple[str, str, float]
    second: tuple[str, str, float]
    fits: bool
    batching: bool
    reading: str = ""

    @property
    def models(self) -> tuple[tuple[str, str], ...]:
        """(catalogue model, format) of each."""
        return tuple((model, quantization) for model, quantization, _ in (self.first, self.second))

    @property
    def total_gb(self) -> float:
        return self.first[2] + self.second[2]


SCENARIO_LIST: tuple[Scenario, ...] = (
    Scenario("scenario-1", ("deepseek-coder-33b", "awq", 50), ("mistral-7b", "awq", 20), True, True),
    Scenario("scenario-2", ("deepseek-coder-33b", "awq", 50), ("qwen2.5-14b", "awq", 30), True, True),
    Scenario("scenario-3", ("qwen2.5-coder-32b", "awq", 50), ("qwen2.5-7b", "awq", 18), True, True, _SEVEN_B),
    Scenario("fp16-pair", ("deepseek-coder-33b", "bf16", 75), ("mistral-7b", "bf16", 25), False, False),
    Scenario("8-bit-pair", ("deepseek-coder-33b", "int8-w8a8", 60), ("mistral-7b", "int8-w8a8", 28), True, False,
             _EIGHT_BIT),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One line of the guide's closing table, for its 96 GB card. `scenario` is the one it sums up, None where the line
    stands alone; then `alone` is its model. `requests` is the number of concurrent requests that the scenario promises
    per model, (least, most), None where it promises none or no end."""

    name: str
    scenario: Scenario | None
    total_gb: float
    headroom_gb: float
    fits: bool
    requests: tuple[int | None, int | None] = (None, None)
    alone: tuple[tuple[str, str], ...] = ()

    @property
    def models(self) -> tuple[tuple[str, str], ...]:
        """(catalogue model, format) of each, as the scenario has them: one reading of the guide for all tables."""
        return self.scenario.models if self.scenario else self.alone


SUMMARY = "Summary Table"
SUMMARY_ROWS: tuple[SummaryRow, ...] = (
    SummaryRow("Recommended", SCENARIO_LIST[0], 70, 26, True, (8, None)),
    SummaryRow("Large General", SCENARIO_LIST[1], 80, 16, True, (4, 6)),
    SummaryRow("Qwen Family", SCENARIO_LIST[2], 68, 28, True, (8, 10)),
    SummaryRow("Budget FP16", SCENARIO_LIST[3], 100, -4, False),
    SummaryRow("8-bit Both", SCENARIO_LIST[4], 88, 8, True),
    SummaryRow("Single Model", None, 50, 46, True, alone=(("deepseek-coder-33b", "awq"),)),
)
"""Memory in GB of 10^9 bytes."""
