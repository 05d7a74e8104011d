"""Statistics over request records. Only requests with outcome ``ok`` enter; failures are counted elsewhere.

Definitions, all from the sending of a request:

- TTFT: to the arrival of the first chunk with a token.
- E2E: to the arrival of the last token (not of the closing usage message).
- TPOT: (E2E - TTFT) / (output tokens - 1), one value per request; undefined for a single token, and when
  all tokens came in one chunk (nothing tells when the others were made).
- ITL: one value per *token*. A chunk of k tokens that arrives after a gap g gives k values of g / k: an
  engine that sends k tokens at once produced them over that gap, and "g, 0, 0, ..." would report a median of
  0 and a tail of g for a steady stream. The tokens of the first chunk have no gap and give no value.

Percentiles interpolate linearly between the closest ranks (NumPy's default method, "linear").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

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
        p50, p90, p95, p99 = (float(p) for p in np.percentile(values, (50, 90, 95, 99)))
        return cls(int(values.size), float(values.mean()), p50, p90, p95, p99, float(values.max()))

    def columns(self, name: str) -> dict[str, float | int | None]:
        """Flat columns ``{name}_mean_s`` ... ``{name}_max_s`` and ``{name}_count``."""
        row: dict[str, float | int | None] = {
            f"{name}_{item.name}_s": getattr(self, item.name) for item in fields(self) if item.name != "count"
        }
        return {f"{name}_count": self.count, **row}


@dataclass(frozen=True, slots=True)
class Throughput:
    """Rates over a window of ``window_s`` seconds; None where there is no window.

    ``total`` is prompt and output tokens together; ``counted_output_tokens`` are those output in the window.
    """

    window_s: float | None = None
    counted_output_tokens: int = 0
    output_tokens_per_s: float | None = None
    total_tokens_per_s: float | None = None
    requests_per_s: float | None = None

    @classmethod
    def over(cls, window_s: float, output_tokens: int, prompt_tokens: int, requests: int) -> Throughput:
        if window_s <= 0:
            return cls()
        return cls(
            window_s,
            output_tokens,
            output_tokens / window_s,
            (output_tokens + prompt_tokens) / window_s,
            requests / window_s,
        )


def inter_token_latencies_s(record: RequestRecord) -> npt.NDArray[np.float64]:
    """One ITL in seconds for each token after the first chunk."""
    arrivals_ns = np.frombuffer(record.chunk_ns, dtype=np.int64)
    tokens = np.frombuffer(record.chunk_tokens, dtype=np.intc)[1:]
    return np.repeat(np.diff(arrivals_ns) / 1e9 / tokens, tokens)


def inter_token_latency(records: Sequence[RequestRecord]) -> Distribution:
    """ITL over every token of every request."""
    gaps = [inter_token_latencies_s(record) for record in records]
    return Distribution.of(np.concatenate(gaps) if gaps else np.empty(0))


def whole_window(ok: Sequence[RequestRecord]) -> Throughput:
    """Rates from the first sending to the last byte, ramp and drain included."""
    if not ok:
        return Throughput()
    window_ns = max(r.end_ns for r in ok) - min(r.sent_ns for r in ok)
    tokens, prompt_tokens = sum(r.output_tokens for r in ok), sum(r.prompt_tokens or 0 for r in ok)
    return Throughput.over(window_ns / 1e9, tokens, prompt_tokens, len(ok))


def steady_window(records: Sequence[RequestRecord], ok: Sequence[RequestRecord], slots: int) -> Throughput:
    """Rates while all ``slots`` were busy: neither ramp nor drain.

    The window opens when the last slot has its first token and closes when the first slot ends its last
    request and finds no other to send. Output tokens count when they arrive in it, prompt tokens when their
    request's first token does, requests when their last token does. Without such a window (a slot that never
    had a token, or a first slot that ran out before the last had begun) all fields are empty.
    """
    began: dict[int, int] = {}
    ran_out: dict[int, int] = {}
    for record in records:
        ran_out[record.slot] = max(record.end_ns, ran_out.get(record.slot, 0))
        if record.first_token_ns is not None:
            began[record.slot] = min(record.first_token_ns, began.get(record.slot, record.first_token_ns))
    if len(began) < slots or not ok:
        return Throughput()
    opens_ns, closes_ns = max(began.values()), min(ran_out.values())
    output_tokens = prompt_tokens = requests = 0
    for record in ok:
        assert record.first_token_ns is not None and record.last_token_ns is not None
        arrivals_ns = np.frombuffer(record.chunk_ns, dtype=np.int64)
        inside = (arrivals_ns > opens_ns) & (arrivals_ns <= closes_ns)
        output_tokens += int(np.frombuffer(record.chunk_tokens, dtype=np.intc)[inside].sum())
        prompt_tokens += (record.prompt_tokens or 0) if opens_ns < record.first_token_ns <= closes_ns else 0
        requests += opens_ns < record.last_token_ns <= closes_ns
    return Throughput.over((closes_ns - opens_ns) / 1e9, output_tokens, prompt_tokens, requests)


def mean_in_flight(ok: Sequence[RequestRecord]) -> float | None:
    """Requests in flight on average over the whole window; near the concurrency if the loop was full."""
    if not ok:
        return None
    window_ns = max(r.end_ns for r in ok) - min(r.sent_ns for r in ok)
    return sum(r.end_ns - r.sent_ns for r in ok) / window_ns if window_ns > 0 else None
