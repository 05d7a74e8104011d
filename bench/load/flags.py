"""Reasons not to trust a load run blindly, and the thresholds behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.load import selfcheck
from bench.load.selfcheck import client_bound

if TYPE_CHECKING:
    from bench.load.result import LoadResult

MACHINE_SHARE_LIMIT = 0.25  # of all cores; more is missed by an engine on the same machine
COALESCED_LIMIT = 1.5  # tokens per chunk

CLIENT_BOUND_FLAGS = ("client_lag", "client_starved", "client_cpu_bound", "client_share", "send_delay")
"""Each of them makes a row ``client_bound``; their limits are those of :mod:`bench.load.selfcheck` and this module."""

FLAGS: dict[str, str] = {
    "no_completed_requests": "No request completed; there are no latencies and no throughputs.",
    "failed_requests": "Some requests failed; latencies and throughputs are of the others only.",
    "aborted": "The run was called off before all requests were sent or answered.",
    "fewer_requests_than_slots": "There were fewer requests than slots, so the concurrency was not reached.",
    "few_requests_per_slot": "Fewer than two requests per slot: nearly all are part of ramp or drain.",
    "no_steady_state": "No steady state was found; only the figures of the whole window exist.",
    "not_steady": "The requests in flight did not level off: the engine fell behind, or the run was too short to tell.",
    "held_back": "The cap on requests in flight held requests back; their wait is in their latency.",
    "few_samples_p95": "Fewer than 20 completed requests: p95 per request is hardly more than the maximum.",
    "few_samples_p99": "Fewer than 100 completed requests: p99 per request is hardly more than the maximum.",
    "prompt_tokens_mismatch": "The engine counted other prompt lengths than were sent.",
    "prefix_cache_hits": "Unique prompts were partly answered from the prefix cache; prefill looks too fast.",
    "shared_prefix_unused": "Prompts share a beginning, but none of it came from the prefix cache: it is off, or the "
                            "part is shorter than a block.",
    "preemptions": "The engine preempted requests: its KV cache was too small for this load.",
    "coalesced_tokens": "Tokens came several at a time; the gaps between them are averages.",
    "resends": "Requests were sent again because the server had closed their kept-alive connection.",
    "client_lag": "The client's event loop ran so late that it blurs the inter-token latencies.",
    "client_starved": "Other processes kept the client waiting for a core; give it one of its own.",
    "client_cpu_bound": "A client thread used most of a core and may have limited the throughput.",
    "client_share": "The client took a large share of the machine, which the engine may have missed.",
    "send_delay": "The client sent requests later than they were due.",
    "client_bound": "The client may be part of the result: at least one of its own limits was broken.",
}


def client_limits_text() -> str:
    """The limits of a client that is no part of the result, in words; beyond any of them a row is ``client_bound``."""
    return (
        f"event-loop lag p50 over {selfcheck.LAG_P50_LIMIT_S * 1e3:g} ms or p99 over "
        f"{selfcheck.LAG_P99_LIMIT_S * 1e3:g} ms, where the kernel stamps arrivals "
        f"{selfcheck.STAMPED_LAG_P50_LIMIT_S * 1e3:g} and {selfcheck.STAMPED_LAG_P99_LIMIT_S * 1e3:g} ms (client_lag); "
        f"a client thread waiting for a core over "
        f"{selfcheck.WAIT_SHARE_LIMIT:.0%} of the window (client_starved) or on one over "
        f"{selfcheck.CORE_SHARE_LIMIT:.0%} of it (client_cpu_bound); the client on over {MACHINE_SHARE_LIMIT:.0%} of "
        f"all cores (client_share); send delay p99 over {selfcheck.SEND_DELAY_LIMIT_S * 1e3:g} ms (send_delay)"
    )


def flags_of(result: LoadResult) -> list[str]:
    """The keys of :data:`FLAGS` that hold, in their order."""
    spec, client = result.spec, result.client
    ok = [record for record in result.records if record.outcome == "ok"]
    limits = client_bound(client, result.whole.window_s)
    slots = 0 if spec.is_open else (spec.concurrency or 0)
    total = len(result.records) if spec.total is None else spec.total
    holds = {
        "no_completed_requests": not ok,
        "failed_requests": result.failed > 0,
        "aborted": bool(result.abort_reason),
        "fewer_requests_than_slots": total < slots,
        "few_requests_per_slot": total < 2 * slots,
        "no_steady_state": bool(ok) and spec.kind.has_steady_state and result.steady.window_s is None,
        "not_steady": result.window.drifts,
        "held_back": any(record.released_ns > record.scheduled_ns for record in result.records),
        "few_samples_p95": 0 < len(ok) < 20,
        "few_samples_p99": 0 < len(ok) < 100,
        "prompt_tokens_mismatch": any(record.prompt_tokens not in (None, record.input_tokens) for record in ok),
        "prefix_cache_hits": spec.shared_prefix_ratio == 0 and (result.engine.prefix_cache_hits_tokens or 0) > 0,
        "shared_prefix_unused": spec.shared_prefix_ratio > 0 and result.engine.prefix_cache_hits_tokens == 0,
        "preemptions": (result.engine.num_preemptions or 0) > 0,
        "coalesced_tokens": (result.tokens_per_chunk or 1.0) > COALESCED_LIMIT,
        "resends": result.resends > 0,
        "client_lag": "client_lag" in limits,
        "client_starved": "client_starved" in limits,
        "client_cpu_bound": "client_cpu_bound" in limits,
        "client_share": (client.share_of_machine or 0.0) > MACHINE_SHARE_LIMIT,
        "send_delay": "send_delay" in limits,
    }
    holds["client_bound"] = any(holds[flag] for flag in CLIENT_BOUND_FLAGS)
    assert holds.keys() == FLAGS.keys()
    return [flag for flag, held in holds.items() if held]
