"""The colocations table: one row per group of engines that ran on one device at once."""

from __future__ import annotations

from bench.record.fields import Group, count, flag, number, seconds, size, text, texts

IDENTITY = Group(
    "Identity",
    (
        text("run_id", "This run of the group; `colocation_id` of its rows in engines and workloads"),
        text("point_id", "Hash of everything measured: engines, order, streams, rules"),
        text("environment_id", "Hash of the checked metadata"),
        text("set_name", "Result set this row was written for"),
        text("sweep", "Named sweep it came from"),
        text("colocation", "Name of the group (conf/colocate)"),
        count("repeat", "Which restart of the whole group, from 0"),
        number("started_unix_s", "s", "Wall clock at the start of the run, Unix time"),
        number("ended_unix_s", "s", "Wall clock at its end, Unix time"),
    ),
)

OUTCOME = Group(
    "Outcome",
    (
        text("status", "ok | failed | pruned"),
        text("failure_member", "The engine that did not start, or ended"),
        text("failure_phase", "Where it failed"),
        text("failure_cause", "Why, as a word"),
        text("failure_sentence", "Why, for a person"),
        size("shortfall_bytes", "Memory that was missing, where the failure says how much"),
        texts("not_started", "Engines whose turn did not come"),
        texts("flags", "Reasons not to trust the row blindly; empty for a clean one"),
    ),
)

WHAT = Group(
    "What ran at once",
    (
        texts("members", "Engines in the order of their start"),
        text("members_json", "Of each: run_id, model, weight format, share or pool, limits, status"),
        text("streams_json", "Of each stream: what the rules see of it, where it goes, its load"),
        text("router_json", "The router's rules and limits"),
        count("stream_repeats", "Times each stream was driven alone and all together"),
        text("device_kind", "cuda | cpu"),
        text("device_name", "GPU, or CPU model"),
        text("vllm_version", "vLLM"),
    ),
)

MEMORY = Group(
    "Memory of the device over the whole group",
    (
        size("device_memory_baseline_bytes", "NVML: in use before the first engine"),
        size("device_memory_ready_bytes", "NVML: peak between the last engine's ready and the first load"),
        size("device_memory_peak_bytes", "NVML: peak of the device over the group's life"),
        size("tree_pss_ready_bytes", "PSS of all process trees at one time, all ready; shared pages count once"),
        size("tree_pss_peak_bytes", "... the largest sum at one time, each tree's last reading carried to the next"),
        size("tree_pss_peaks_sum_bytes", "Sum of each engine's own peak, which need not fall together: never below it"),
        size("weights_sum_bytes", "Weights of all engines"),
        size("kv_cache_sum_bytes", "KV pools of all engines"),
    ),
)  # fmt: skip

SPEED = Group(
    "All streams at once, medians over the repeats",
    (
        number("joint_output_tokens_per_s", "tokens/s", "Of all streams, while all were under way"),
        number("joint_requests_per_s", "requests/s", "Of all streams, while all were under way"),
        seconds("joint_window_s", "Time in which all were under way"),
        number("alone_sum_output_tokens_per_s", "tokens/s", "Sum of what each stream reached alone"),
        number("joint_share", "1", "Joint over that sum: 1 undisturbed, 1/N where N engines take turns"),
        text("interference_json", "Per stream and metric: together over alone, median, least and most of the repeats"),
        text("interference_basis", "What it rests on, for a person"),
        flag("interference_stated", "Every stream was driven alone and together without a failure"),
    ),
)  # fmt: skip

ROUTER = Group(
    "The router between streams and engines",
    (
        count("router_requests", "Requests that passed it, warm-up included"),
        count("router_unrouted", "Requests no rule answered"),
        text("router_outcomes_json", "Per engine: requests by outcome, most in flight, most waiting"),
        seconds("router_forward_p50_s", "From a request's arrival to its forwarding, waiting for a slot included: p50"),
        seconds("router_forward_p99_s", "... p99"),
        text("router_cost_json", "Per stream: TTFT and TPOT through it less past it, s; tokens/s over; medians"),
    ),
)  # fmt: skip

COLOCATIONS = (IDENTITY, OUTCOME, WHAT, MEMORY, SPEED, ROUTER)
