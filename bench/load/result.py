"""What a load run found, in one object that can become a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from bench.load.latency import (
    Distribution,
    Throughput,
    inter_token_latency,
    mean_in_flight,
    steady_window,
    whole_window,
)
from bench.load.metrics import MetricsDelta, MetricsSnapshot, delta
from bench.load.records import OUTCOMES, RequestRecord
from bench.load.selfcheck import ClientCheck
from bench.load.spec import LoadSpec

# Below these the client is held to be no part of the result. Lag: a tenth of what is measured, but not below
# what the event loop's timers can resolve. CPU: one thread near its limit queues requests. Delay: more than
# the turn of a loop that keeps up.
LAG_LIMIT_RATIO, LAG_LIMIT_MIN_S = 0.1, 0.002
CORE_SHARE_LIMIT = 0.7
WAIT_SHARE_LIMIT = 0.05
SEND_DELAY_LIMIT_S = 0.010
COALESCED_LIMIT = 1.5  # tokens per chunk

FLAGS: dict[str, str] = {
    "no_completed_requests": "No request completed; there are no latencies and no throughputs.",
    "failed_requests": "Some requests failed; latencies and throughputs are of the others only.",
    "aborted": "The run was called off before all requests were sent or answered.",
    "warmup_failures": "Some warm-up requests failed.",
    "fewer_requests_than_slots": "There were fewer requests than slots, so the concurrency was not reached.",
    "few_requests_per_slot": "Fewer than two requests per slot: nearly all are part of ramp or drain.",
    "no_steady_state": "There was no time at which all slots were busy; only the whole-window rates exist.",
    "few_samples_p95": "Fewer than 20 completed requests: p95 per request is hardly more than the maximum.",
    "few_samples_p99": "Fewer than 100 completed requests: p99 per request is hardly more than the maximum.",
    "prompt_tokens_mismatch": "The engine counted other prompt lengths than were sent.",
    "prefix_cache_hits": "Prompts were partly answered from the prefix cache; prefill looks too fast.",
    "preemptions": "The engine preempted requests: its KV cache was too small for this load.",
    "coalesced_tokens": "Tokens came several at a time; the gaps between them are averages.",
    "resends": "Requests were sent again because the server had closed their kept-alive connection.",
    "client_lag": "The client's event loop ran so late that it blurs the inter-token latencies.",
    "client_starved": "Other processes kept the client waiting for a core; give it one of its own.",
    "client_cpu_bound": "The client's thread used most of a core and may have limited the throughput.",
    "send_delay": "The client sent requests later than they were due.",
}


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands. ``failed``: known to have failed; reading the responses may add to it."""

    phase: str  # "warmup" or "measure"
    total: int
    sent: int
    finished: int
    failed: int
    elapsed_s: float

    @property
    def in_flight(self) -> int:
        return self.sent - self.finished


@dataclass(frozen=True)
class LoadResult:
    """One closed-loop run. Times are seconds, rates per second; statistics are of requests with outcome
    ``ok`` only.

    ``outcomes`` counts every sent request by kind (all kinds are present); ``not_sent`` are those that an
    abort left over. ``started_unix_s`` is the wall clock at the first sending.
    ``errors`` has the first sentence of each kind. ``flags`` are keys of :data:`FLAGS`.
    ``whole`` runs from the first sending to the last byte, ``steady`` while all slots were busy. ``engine``
    is what the engine's own counters gained during the measured window, ``cache_config`` its KV-cache
    configuration as reported; empty if it has no metrics page. ``abort_reason`` is empty unless the run was
    called off.
    """

    spec: LoadSpec
    outcomes: dict[str, int]
    not_sent: int
    started_unix_s: float | None
    whole: Throughput
    steady: Throughput
    ttft_s: Distribution
    tpot_s: Distribution
    itl_s: Distribution
    e2e_s: Distribution
    mean_in_flight: float | None
    tokens_per_chunk: float | None
    client: ClientCheck
    engine: MetricsDelta
    cache_config: dict[str, str]
    warmup_completed: int
    warmup_failed: int
    resends: int
    abort_reason: str
    errors: dict[str, str]
    flags: list[str]
    records: list[RequestRecord] = field(repr=False)

    @property
    def completed(self) -> int:
        return self.outcomes["ok"]

    @property
    def failed(self) -> int:
        return sum(self.outcomes.values()) - self.completed

    @property
    def window_s(self) -> float | None:
        return self.whole.window_s

    def to_row(self) -> dict[str, object]:
        """All scalars as flat columns with their units in the names; the per-request records are left out."""
        row: dict[str, object] = dict(asdict(self.spec))
        row |= {"completed": self.completed, "failed": self.failed, "not_sent": self.not_sent}
        row |= {"started_unix_s": self.started_unix_s}
        row |= {f"outcome_{kind}": count for kind, count in self.outcomes.items()}
        for prefix, rates in (("", self.whole), ("steady_", self.steady)):
            row |= {f"{prefix}{name}": value for name, value in asdict(rates).items()}
        for name in ("ttft", "tpot", "itl", "e2e"):
            row |= getattr(self, f"{name}_s").columns(name)
        row |= {"mean_in_flight": self.mean_in_flight, "tokens_per_chunk": self.tokens_per_chunk}
        row |= {f"client_{name}": value for name, value in asdict(self.client).items()}
        row |= {f"engine_{name}": value for name, value in asdict(self.engine).items()}
        row |= {"engine_request_queue_time_mean_s": self.engine.request_queue_time_mean_s}
        row |= {"warmup_completed": self.warmup_completed, "warmup_failed": self.warmup_failed}
        row |= {"resends": self.resends, "abort_reason": self.abort_reason}
        row |= {"errors": dict(self.errors), "flags": list(self.flags)}
        return row


def build_result(
    spec: LoadSpec,
    records: Sequence[RequestRecord],
    warmup: Sequence[RequestRecord],
    client: ClientCheck,
    abort_reason: str,
    before: MetricsSnapshot | None,
    after: MetricsSnapshot | None,
    kv_cache_usage_max_ratio: float | None,
    unix_offset_ns: int,
) -> LoadResult:
    """Statistics, counts and flags for the measured ``records``; of ``warmup`` only successes are counted.

    ``unix_offset_ns`` turns the records' clock into Unix time.
    """
    ok = [record for record in records if record.outcome == "ok"]
    kinds = Counter(record.outcome for record in records)
    sent_ns = [record.sent_ns for record in records if record.sent_ns]
    chunks = sum(len(record.chunk_ns) for record in ok)
    errors: dict[str, str] = {}
    for record in [*records, *warmup]:
        if record.error:
            errors.setdefault(record.outcome, record.error)
    engine = delta(before or MetricsSnapshot(), after or MetricsSnapshot(), kv_cache_usage_max_ratio)
    warmup_completed = sum(record.outcome == "ok" for record in warmup)
    result = LoadResult(
        spec=spec,
        outcomes={kind: kinds.get(kind, 0) for kind in OUTCOMES},
        not_sent=spec.num_requests - len(records),
        started_unix_s=min(sent_ns) / 1e9 + unix_offset_ns / 1e9 if sent_ns else None,
        whole=whole_window(ok),
        steady=steady_window(records, ok, spec.slots),
        ttft_s=Distribution.of(record.ttft_s for record in ok),
        tpot_s=Distribution.of(record.tpot_s for record in ok),
        itl_s=inter_token_latency(ok),
        e2e_s=Distribution.of(record.e2e_s for record in ok),
        mean_in_flight=mean_in_flight(ok),
        tokens_per_chunk=sum(record.output_tokens for record in ok) / chunks if chunks else None,
        client=client,
        engine=engine,
        cache_config=dict((after or before or MetricsSnapshot()).cache_config),
        warmup_completed=warmup_completed,
        warmup_failed=len(warmup) - warmup_completed,
        resends=sum(record.resends for record in records),
        abort_reason=abort_reason,
        errors=errors,
        flags=[],
        records=list(records),
    )
    result.flags.extend(_flags(result, ok))
    return result


def _flags(result: LoadResult, ok: Sequence[RequestRecord]) -> list[str]:
    spec, client = result.spec, result.client
    latency_s = result.itl_s.p50 if result.itl_s.p50 is not None else result.ttft_s.p50
    lag_limit_s = max(LAG_LIMIT_MIN_S, LAG_LIMIT_RATIO * (latency_s or 0.0))
    holds = {
        "no_completed_requests": not ok,
        "failed_requests": result.failed > 0,
        "aborted": bool(result.abort_reason),
        "warmup_failures": result.warmup_failed > 0,
        "fewer_requests_than_slots": spec.num_requests < spec.concurrency,
        "few_requests_per_slot": spec.num_requests < 2 * spec.concurrency,
        "no_steady_state": bool(ok) and result.steady.window_s is None,
        "few_samples_p95": 0 < len(ok) < 20,
        "few_samples_p99": 0 < len(ok) < 100,
        "prompt_tokens_mismatch": any(record.prompt_tokens not in (None, spec.input_tokens) for record in ok),
        "prefix_cache_hits": (result.engine.prefix_cache_hits_tokens or 0) > 0,
        "preemptions": (result.engine.num_preemptions or 0) > 0,
        "coalesced_tokens": (result.tokens_per_chunk or 1.0) > COALESCED_LIMIT,
        "resends": result.resends > 0,
        "client_lag": (client.loop_lag_p99_s or 0.0) > lag_limit_s,
        "client_starved": (client.cpu_wait_s or 0.0) > WAIT_SHARE_LIMIT * (result.whole.window_s or 0.0) > 0,
        "client_cpu_bound": (client.core_share or 0.0) > CORE_SHARE_LIMIT,
        "send_delay": (client.send_delay_p99_s or 0.0) > SEND_DELAY_LIMIT_S,
    }
    assert holds.keys() == FLAGS.keys()
    return [flag for flag, held in holds.items() if held]
