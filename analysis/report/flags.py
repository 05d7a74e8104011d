"""What a row's flags mean, for people."""

from __future__ import annotations

from typing import Final

MEANING: Final[dict[str, str]] = {
    # of an engine start
    "foreign_processes": "Another process held memory on the device: its peak is not this engine's alone.",
    "foreign_gpu_memory": "Memory on the device came and went that was not this engine's.",
    "device_not_clean_after": "The device did not return to its idle level after the stop.",
    "no_memory_report": "The engine gave no structured memory report; terms are from its log or missing.",
    "survivors": "Processes of the engine outlived the stop and were killed.",
    "throttled": "The GPU lowered its clocks under load (heat or power): speed is lower than it could be.",
    "gpu_lost": "The GPU stopped answering during the run.",
    "telemetry_lost": "The sampler died: the timeline and the peaks taken from it are incomplete.",
    "launcher_fallback": "The requested launcher was not used; peaks of process trees differ between launchers.",
    "quantization_not_applied": "The loaded bytes are not those of the requested format.",
    # of a workload
    "no_completed_requests": "No request completed: there are no latencies and no throughputs.",
    "failed_requests": "Some requests failed: figures are of the others only.",
    "aborted": "The run was called off before all requests were answered.",
    "warmup_failures": "Some warm-up requests failed.",
    "fewer_requests_than_slots": "Fewer requests than slots: the concurrency was not reached.",
    "few_requests_per_slot": "Fewer than two requests per slot: nearly all are part of ramp or drain.",
    "not_steady": "The requests in flight did not level off: the engine fell behind, or the run was too short to tell.",
    "held_back": "The cap on requests in flight held requests back; their wait is in their latency.",
    "shared_prefix_unused": "Prompts share a beginning, but none of it came from the prefix cache.",
    "no_steady_state": "At no time were all slots busy: only whole-window rates exist.",
    "few_samples_p95": "Fewer than 20 completed requests: p95 is hardly more than the maximum.",
    "few_samples_p99": "Fewer than 100 completed requests: p99 is hardly more than the maximum.",
    "prompt_tokens_mismatch": "The engine counted other prompt lengths than were sent.",
    "prefix_cache_hits": "Prompts were partly answered from the prefix cache: prefill looks too fast.",
    "preemptions": "The engine preempted requests: its KV cache was too small for this load.",
    "coalesced_tokens": "Tokens came several at a time: gaps between them are averages.",
    "resends": "Requests were sent again because the server had closed their connection.",
    "client_lag": "The client's event loop ran so late that it blurs inter-token latencies.",
    "client_starved": "Other processes kept the client waiting for a core: latencies are partly the client's.",
    "client_share": "The client took a large share of the machine, which the engine may have missed.",
    "client_cpu_bound": "The client used most of a core and may have limited the throughput.",
    "client_bound": "The client, not the engine, may have limited the throughput.",
    "send_delay": "The client sent requests later than they were due.",
}

def meaning(flag: str) -> str:
    return MEANING.get(flag, "No explanation is known here; results/README.md documents the columns.")
