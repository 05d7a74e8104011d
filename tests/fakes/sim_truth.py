"""A client's figures beside the simulated server's own send times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.load.prompts import prompt_token_ids
from bench.load.result import LoadResult


@dataclass(frozen=True)
class Compared:
    """How far reported percentiles are from the truth, in seconds, and whether the counts are the same."""

    ttft_p50_s: float
    ttft_p99_s: float
    itl_p50_s: float
    itl_p99_s: float
    counts_agree: bool

    @property
    def accurate(self) -> bool:
        """p50 within 1 ms, p99 within 3 ms."""
        return max(self.ttft_p50_s, self.itl_p50_s) <= 0.001 and max(self.ttft_p99_s, self.itl_p99_s) <= 0.003


def compare(result: LoadResult, truth: list[dict[str, Any]], vocab_size: int) -> Compared:
    """Match every completed request with the server's record of it, by the unique beginning of its prompt.

    The true TTFT runs from when the request was due to when the server sent its first token, the true ITL between
    sends; a client that is late with a stamp or with a request does not move either.
    """
    by_head = {tuple(line["head"]): line for line in truth}
    ok = [record for record in result.records if record.outcome == "ok"]
    lines = [by_head[tuple(prompt_token_ids(result.spec.seed, r.index, r.input_tokens, vocab_size)[:2])] for r in ok]
    ttft = np.array(
        [(line["sends"][0][0] - record.scheduled_ns) / 1e9 for record, line in zip(ok, lines, strict=True)]
    )
    itl = np.concatenate([np.diff([at for at, _ in line["sends"]]) for line in lines]) / 1e9
    sent = [sum(tokens for _, tokens in line["sends"]) for line in lines]

    def off(reported: float | None, samples: np.ndarray, percent: float) -> float:
        return abs((reported or 0.0) - float(np.percentile(samples, percent)))

    return Compared(
        off(result.ttft_s.p50, ttft, 50),
        off(result.ttft_s.p99, ttft, 99),
        off(result.itl_s.p50, itl, 50),
        off(result.itl_s.p99, itl, 99),
        len(truth) == len(ok) and sent == [record.output_tokens for record in ok],
    )
