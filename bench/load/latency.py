"""Statistics over request records. Only requests with outcome ``ok`` enter; failures are counted elsewhere.

Definitions, all from when a request was due (closed loop: when its slot was free), so that a client or an engine that
makes requests wait cannot hide it:

- TTFT: to the arrival of the first chunk with a token.
- E2E: to the arrival of the last token (not of the closing usage message).
- TPOT: (E2E - TTFT) / (output tokens - 1), one value per request; undefined for a single token, and when
  all tokens came in one chunk (nothing tells when the others were made).
- ITL: one value per *token*. A chunk of k tokens that arrives after a gap g gives k values of g / k: an
  engine that sends k tokens at once produced them over that gap, and "g, 0, 0, ..." would report a median of
  0 and a tail of g for a steady stream. The tokens of the first chunk have no gap and give no value.
- Goodput: requests per second that meet every stated limit; its share is of all requests that were not aborted by the
  client, so a failed request counts as one that missed. The limit on ITL is for its longest ITL.

Percentiles interpolate linearly between the closest ranks (NumPy's default method, "linear").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from bench.load.percentiles import METRICS, PERCENTILES, STATISTICS, column
from bench.load.records import RequestRecord


@dataclass(frozen=True, slots=True)
class Distribution:
    """Seconds over ``count`` samples; the rest is None when there are none."""

    count: int = 0
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None

    @classmethod
    def of(cls, samples: Iterable[float | None] | npt.NDArray[np.float64]) -> Distribution:
        """Summarise ``samples``, leaving out None."""
        values = (
            samples
            if isinstance(samples, np.ndarray)
            else np.array([s for s in samples if s is not None], dtype=np.float64)
        )
        if values.size == 0:
            return cls()
        found = np.percentile(values, PERCENTILES)
        ranks = {f"p{percent}": float(value) for percent, value in zip(PERCENTILES, found, strict=True)}
        return cls(count=int(values.size), mean=float(values.mean()), max=float(values.max()), **ranks)

    def columns(self, name: str) -> dict[str, float | int | None]:
        """Flat columns ``{name}_mean_s`` ... ``{name}_max_s`` and ``{name}_count``."""
        row: dict[str, float | int | None] = {column(name, part): getattr(self, part) for part in STATISTICS}
        return {f"{name}_count": self.count, **row}


@dataclass(frozen=True, slots=True)
class Window:
    """Rates and latencies of one part of a run, ``window_s`` seconds long; None where there is none.

    ``total`` is prompt and output tokens together; ``counted_output_tokens`` are those output in the window. Goodput
    is None without a stated limit.
    """

    window_s: float | None = None
    counted_output_tokens: int = 0
    output_tokens_per_s: float | None = None
    total_tokens_per_s: float | None = None
    requests_per_s: float | None = None
    goodput_requests_per_s: float | None = None
    goodput_share: float | None = None
    ttft_s: Distribution = field(default_factory=Distribution)
    tpot_s: Distribution = field(default_factory=Distribution)
    itl_s: Distribution = field(default_factory=Distribution)
    e2e_s: Distribution = field(default_factory=Distribution)

    def columns(self, prefix: str = "") -> dict[str, object]:
        """Flat columns, each name preceded by ``prefix``."""
        row: dict[str, object] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            row |= value.columns(item.name[:-2]) if isinstance(value, Distribution) else {item.name: value}
        return {f"{prefix}{name}": value for name, value in row.items()}


def inter_token_latencies_s(record: RequestRecord) -> npt.NDArray[np.float64]:
    """One ITL in seconds for each token after the first chunk."""
    arrivals_ns = np.frombuffer(record.chunk_ns, dtype=np.int64)
    tokens = np.frombuffer(record.chunk_tokens, dtype=np.intc)[1:]
    return np.repeat(np.diff(arrivals_ns) / 1e9 / tokens, tokens)


def longest_itl_s(record: RequestRecord) -> float | None:
    """The longest ITL of a response, per token as everywhere; None where all came in one chunk."""
    if len(record.chunk_ns) < 2:
        return None
    return float(inter_token_latencies_s(record).max())


def meets(record: RequestRecord, slo: Mapping[str, float]) -> bool:
    """Whether a request ended well and within every limit; a latency it has not got breaks none."""
    if record.outcome != "ok":
        return False
    found = {"ttft": record.ttft_s, "tpot": record.tpot_s, "e2e": record.e2e_s}
    if "itl" in slo:
        found["itl"] = longest_itl_s(record)
    return all((found[metric] or 0.0) <= limit for metric, limit in slo.items())


def whole_window(records: Sequence[RequestRecord], slo: Mapping[str, float]) -> Window:
    """From the first request's due time to the last byte of the last that went well, ramp and drain included."""
    ok = [record for record in records if record.outcome == "ok"]
    if not ok:
        return Window()
    window_s = (max(r.end_ns for r in ok) - min(r.scheduled_ns for r in records)) / 1e9
    tokens, prompt_tokens = sum(r.output_tokens for r in ok), sum(r.prompt_tokens or 0 for r in ok)
    return _window(window_s, tokens, prompt_tokens, len(ok), records, slo)


def window_between(
    records: Sequence[RequestRecord], begin_ns: int | None, end_ns: int | None, slo: Mapping[str, float]
) -> Window:
    """Between two times of ``time.perf_counter_ns()``.

    For the rates, output tokens count when they arrive in it, prompt tokens when their request's first token does,
    requests when their last token does. Latencies and goodput are of the requests that were due in it, also where they
    ended later: to choose by the end would prefer the short ones.
    """
    ok = [record for record in records if record.outcome == "ok"]
    if begin_ns is None or end_ns is None or end_ns <= begin_ns or not ok:
        return Window()
    output_tokens = prompt_tokens = requests = 0
    for record in ok:
        assert record.first_token_ns is not None and record.last_token_ns is not None
        arrivals_ns = np.frombuffer(record.chunk_ns, dtype=np.int64)
        inside = (arrivals_ns > begin_ns) & (arrivals_ns <= end_ns)
        output_tokens += int(np.frombuffer(record.chunk_tokens, dtype=np.intc)[inside].sum())
        prompt_tokens += (record.prompt_tokens or 0) if begin_ns < record.first_token_ns <= end_ns else 0
        requests += begin_ns < record.last_token_ns <= end_ns
    due = due_between(records, begin_ns, end_ns)
    return _window((end_ns - begin_ns) / 1e9, output_tokens, prompt_tokens, requests, due, slo)


def due_between(records: Sequence[RequestRecord], begin_ns: int, end_ns: int) -> list[RequestRecord]:
    """The requests that were due in a window, both ends included."""
    return [record for record in records if begin_ns <= record.scheduled_ns <= end_ns]


def mean_in_flight(records: Sequence[RequestRecord]) -> float | None:
    """Requests in flight on average, from the first sending to the last byte of those that went well."""
    ok = [record for record in records if record.outcome == "ok"]
    if not ok:
        return None
    window_ns = max(r.end_ns for r in ok) - min(r.sent_ns for r in ok)
    return sum(r.end_ns - r.sent_ns for r in ok) / window_ns if window_ns > 0 else None


def _window(
    window_s: float, output_tokens: int, prompt_tokens: int, requests: int, due: Sequence[RequestRecord],
    slo: Mapping[str, float],
) -> Window:  # fmt: skip
    if window_s <= 0:
        return Window()
    ok = [record for record in due if record.outcome == "ok"]
    judged = sum(record.outcome != "aborted" for record in due)
    good = sum(meets(record, slo) for record in due) if slo else None
    gaps = [inter_token_latencies_s(record) for record in ok]
    return Window(
        window_s=window_s,
        counted_output_tokens=output_tokens,
        output_tokens_per_s=output_tokens / window_s,
        total_tokens_per_s=(output_tokens + prompt_tokens) / window_s,
        requests_per_s=requests / window_s,
        goodput_requests_per_s=None if good is None else good / window_s,
        goodput_share=None if good is None or not judged else good / judged,
        ttft_s=Distribution.of(record.ttft_s for record in ok),
        tpot_s=Distribution.of(record.tpot_s for record in ok),
        itl_s=Distribution.of(np.concatenate(gaps) if gaps else np.empty(0)),
        e2e_s=Distribution.of(record.e2e_s for record in ok),
    )


assert tuple(item.name for item in fields(Window) if item.name.endswith("_s") and item.name[:-2] in METRICS) == tuple(
    f"{metric}_s" for metric in METRICS
)
