"""The workloads table: one row per workload on a live engine, and one per trial of a knee search."""

from __future__ import annotations

from bench.load.flags import client_limits_text
from bench.load.percentiles import METRICS, STATISTICS, column
from bench.record.fields import Field, Group, count, flag, number, seconds, size, text, texts

_MEANINGS = {
    "ttft": "Time to first token, from when the request was due",
    "tpot": "Time per output token after the first",
    "itl": "Inter-token latency, one value a token",
    "e2e": "From when the request was due until its last token",
}


def _latencies(prefix: str = "", where: str = "") -> tuple[Field, ...]:
    return tuple(
        seconds(prefix + column(metric, statistic), f"{_MEANINGS[metric]}{where}: {statistic}")
        for metric in METRICS
        for statistic in STATISTICS
    )


def _rates(prefix: str, window: str) -> tuple[Field, ...]:
    return (
        number(f"{prefix}output_tokens_per_s", "tokens/s", f"Generated tokens over {window}"),
        number(f"{prefix}total_tokens_per_s", "tokens/s", f"Prompt and generated tokens over {window}"),
        number(f"{prefix}requests_per_s", "requests/s", f"Completed requests over {window}"),
        number(f"{prefix}goodput_requests_per_s", "requests/s", f"Requests that met every slo_* over {window}"),
        number(f"{prefix}goodput_share", "1", f"Share of requests that met every slo_*, failed ones counted, {window}"),
    )


IDENTITY = Group(
    "Identity",
    (
        text("run_id", "The engine start this ran on"),
        text("point_id", "Its point"),
        text("workload", "Name within the list; equal for all trials of a knee search"),
        count("position", "Order on the engine, from 0; with run_id it names this row"),
        number("started_unix_s", "s", "Wall clock at the first measured request"),
    ),
)

COLOCATION = Group(
    "A stream of a group of engines (null elsewhere); the ratios stand on rows of streams driven together",
    (
        text("colocation_id", "The run of the group: run_id of the colocations table"),
        text("colocation_member", "The engine it went to; a+b where the rules deal it out, and run_id is the group's"),
        text("colocation_mode", "direct (alone, past the router) | alone (through it) | together (all at once)"),
        count("colocation_repeat", "Which turn of alone and together, from 0"),
        number("colocation_overlap", "1", "Share of this stream's time in which all the others were under way too"),
        number("interference_output_tokens_per_s", "1", "Output tokens/s together over those alone, of the same turn"),
        number("interference_ttft_p50", "1", "TTFT p50 together over alone"),
        number("interference_tpot_p50", "1", "TPOT p50 together over alone"),
        number("interference_e2e_p50", "1", "E2E p50 together over alone"),
    ),
)

LOAD = Group(
    "Load, as asked",
    (
        text("pattern", "closed_loop | constant | poisson | gamma | ramp | trace"),
        count("concurrency", "Closed loop: clients, each with one request in flight. Open loop: cap on those in flight",
              "requests"),
        number("rate_per_s", "requests/s", "Open loop: rate asked; of a ramp the rate at its start"),
        number("rate_end_per_s", "requests/s", "Ramp: rate asked at its end"),
        number("burstiness", "1", "Shape of the gaps between requests: 1 Poisson, less is burstier, more is evener"),
        text("trace_file", "Trace that was replayed"),
        number("trace_speed", "1", "Its time divided by this"),
        count("num_requests", "Measured requests", "requests"),
        seconds("duration_s", "No request is due later than this after the first"),
        count("warmup_requests", "Warm-up requests, a run before this one, not measured", "requests"),
        count("input_tokens", "Prompt length; of a distribution the mean, rounded", "tokens"),
        count("output_tokens", "Output length; of a distribution the mean, rounded", "tokens"),
        count("input_tokens_min", "Shortest prompt sent", "tokens"),
        count("input_tokens_max", "Longest prompt sent", "tokens"),
        count("output_tokens_min", "Shortest output asked", "tokens"),
        count("output_tokens_max", "Longest output asked", "tokens"),
        text("input_tokens_json", "Distribution of prompt lengths; null where all are equal"),
        text("output_tokens_json", "Distribution of output lengths; null where all are equal"),
        number("shared_prefix_ratio", "1", "Share of a prompt that is common to its group; 0: prompts are unique"),
        count("prefix_groups", "Groups with a prefix of their own"),
        number("temperature", "1", "Sampling temperature"),
        number("top_p", "1", "Nucleus"),
        count("seed", "Seed of the workload as configured"),
        count("run_seed", "Seed derived from it for this row: its prompts, lengths and arrival times follow from it"),
        seconds("slo_ttft_s", "Objective of goodput: longest TTFT"),
        seconds("slo_tpot_s", "... longest TPOT"),
        seconds("slo_itl_s", "... longest ITL, one value a token"),
        seconds("slo_e2e_s", "... longest time to the last token"),
    ),
)  # fmt: skip

OUTCOME = Group(
    "Outcome",
    (
        text("status", "ok | failed"),
        text("failure_cause", "Why it failed, as a word"),
        text("failure_sentence", "Why, for a person"),
        count("completed", "Requests completed", "requests"),
        count("failed", "Requests that did not, never part of a latency or a rate", "requests"),
        count("not_sent", "Requests left over when the run was called off", "requests"),
        text("outcomes_json", "Requests by outcome: ok, http_error, connection_error, timeout, stalled, ..."),
        text("errors_json", "First sentence of each kind of failure"),
        count("resends", "Requests sent once more because the server had closed a kept connection", "requests"),
        texts("flags", "Reasons not to trust the row blindly"),
    ),
)

THROUGHPUT = Group(
    "Throughput over the whole run, ramp and drain included",
    (
        seconds("window_s", "First request due until last byte"),
        *_rates("", "the window"),
        number("offered_requests_per_s", "requests/s", "Open loop: requests due over the time in which they were due"),
        number("served_requests_per_s", "requests/s", "Open loop: completions a second, from the first to the last"),
        number("latency_growth", "s/s", "Open loop, later half of it: how much longer a request took for each second "
               "that it was due later; 1/r - 1 where only the share r of the load is served"),
        number("mean_in_flight", "requests", "Requests in flight on average"),
        count("peak_in_flight", "Most requests in flight", "requests"),
        number("tokens_per_chunk", "tokens", "Tokens the engine sent at once"),
    ),
)

LATENCY = Group(
    "Latency of completed requests of the whole run, from when each was due (no coordinated omission)",
    (*_latencies(), count("itl_count", "Inter-token gaps seen")),
)

STEADY = Group(
    "Steady state: the part of the run without warm-up and drain",
    (
        text("steady_rule", "The rule that found it"),
        seconds("steady_begin_s", "Where it begins, after the first request was due"),
        seconds("steady_end_s", "Where it ends"),
        seconds("steady_window_s", "Its length; null where there is none"),
        seconds("steady_left_out_before_s", "Left out before it"),
        seconds("steady_left_out_after_s", "Left out after it"),
        count("steady_requests", "Completed requests that were due in it", "requests"),
        count("steady_left_out_requests", "Completed requests left out", "requests"),
        *_rates("steady_", "the steady state"),
        *_latencies("steady_", ", steady state"),
    ),
)

ENGINE = Group(
    "The engine over the same run, by its own counters",
    (
        count("preemptions", "Requests preempted"),
        count("prefix_cache_hit_tokens", "Prompt tokens found in the prefix cache; 0 for unique prompts", "tokens"),
        seconds("queue_time_mean_s", "Mean time a request waited in the engine"),
        count("engine_generation_tokens", "Tokens the engine says it generated", "tokens"),
        count("received_tokens", "Tokens the client received, those of failed requests included", "tokens"),
        count("token_count_difference", "The former less the latter; not 0 without failures is flagged", "tokens"),
        number("kv_cache_usage_peak", "1", "Highest share of the KV pool seen in use; null if no reading saw any"),
        number("requests_running_mean", "requests", "Requests the engine worked on at once, mean of the readings"),
        count("requests_running_peak", "... the most seen", "requests"),
        count("requests_waiting_peak", "Requests in the engine's queue, the most seen", "requests"),
        count("gauge_readings", "Readings of the engine's gauges"),
        number("gauge_poll_hz", "Hz", "Readings a second, as achieved"),
    ),
)

MACHINE = Group(
    "Memory, power and processors during the run",
    (
        size("device_memory_peak_bytes", "NVML: device peak during this workload"),
        size("process_memory_peak_bytes", "NVML: this engine's peak during this workload"),
        size("tree_pss_peak_bytes", "Process tree PSS peak during this workload"),
        size("torch_allocated_peak_bytes", "torch's allocator, peak during this workload"),
        size("worker_rss_peak_bytes", "Worker's high-water mark during this workload"),
        size("activation_peak_bytes", "That peak above the idle level"),
        number("power_mean_w", "W", "Mean power of the engine's GPUs together"),
        number("energy_j", "J", "Their energy over the window"),
        text("energy_source", "counter (the driver's) | power_integral"),
        number("energy_j_per_token", "J/token", "Energy over the tokens received"),
        number("sm_clock_mean_mhz", "MHz", "Mean SM clock"),
        number("sm_clock_min_mhz", "MHz", "Lowest SM clock seen"),
        number("temperature_peak_c", "degC", "Highest temperature"),
        number("gpu_utilization_mean_pct", "%", "Mean GPU utilization"),
        texts("throttle_reasons", "Throttle reasons seen; null without a GPU"),
        seconds("engine_cpu_s", "CPU time of the engine's process tree over the window, all cores"),
        number("engine_cpu_us_per_token", "us/token", "... over the tokens received: on a CPU the analogue of energy"),
        number("engine_cpu_cores", "1", "... over the window: cores the engine kept busy"),
        count("window_samples", "Telemetry samples within the window"),
        number("steady_power_mean_w", "W", "Mean power, steady state"),
        number("steady_energy_j_per_token", "J/token", "Energy over generated tokens, steady state"),
        number("steady_engine_cpu_us_per_token", "us/token", "Engine CPU time over generated tokens, steady state"),
    ),
)

CLIENT = Group(
    "The client's own share",
    (
        flag("client_bound", f"The client may be part of the result: {client_limits_text()}"),
        count("workers", "Worker processes of the client"),
        text("client_event_loop", "uvloop | asyncio"),
        text("client_placement", "Cores the client and the engine were held to, or why they were not"),
        seconds("client_cpu_s", "Client CPU time, all workers"),
        number("client_cpu_us_per_token", "us/token", "Client CPU time a generated token"),
        number("client_core_share", "1", "Part of one core, of the busiest worker"),
        number("client_share_of_machine", "1", "Client CPU over all cores"),
        seconds("client_cpu_wait_s", "Time the client was ready and had no core"),
        seconds("client_parse_cpu_s", "CPU time of reading the responses, after the clock had stopped"),
        number("kernel_stamped_share", "1", "Part of the client's readings with the kernel's time of arrival"),
        seconds("loop_lag_p50_s", "Event loop lag: p50"),
        seconds("loop_lag_p99_s", "Event loop lag: p99"),
        seconds("loop_lag_max_s", "Event loop lag: max"),
        *(
            seconds(f"send_delay_{statistic}_s", f"Delay between due and real send: {statistic}")
            for statistic in STATISTICS
        ),
    ),
)



def _drift(name: str, what: str) -> tuple[Field, ...]:
    meanings = {"": "Slope over the load", "late_": "Slope over its second half"}
    return (
        text(f"drift_{name}_verdict", f"{what}: leak | levels_off | flat | undecided"),
        text(f"drift_{name}_metric", "The column of the samples table it was found in"),
        size(f"drift_{name}_first_bytes", "Level at first"),
        size(f"drift_{name}_growth_bytes", "Level at the end less that"),
        *(
            number(f"drift_{name}_{part}slope{end}_bytes_per_s", "B/s", meaning + said)
            for part, meaning in meanings.items()
            for end, said in (("", " (Theil-Sen)"), ("_low", ": low end of its 95 % interval"), ("_high", ": high end"))
        ),
    )


DRIFT = Group(
    "Memory over time, of loads with a stated duration_s (not of ramps, traces and knee searches)",
    (
        text("drift_verdict", "The worse of the two: leak (the second half still grows) | undecided | levels_off (it "
             "grew and stopped) | flat"),
        seconds("drift_seconds", "Time from the first to the last sample of the load"),
        number("drift_least_bytes_per_s", "B/s", "Growth that was worth naming"),
        *_drift("host", "Resident memory of the engine's process tree"),
        *_drift("device", "Memory of the engine's GPUs together, null without one"),
    ),
)  # fmt: skip

KNEE = Group(
    "Knee search (null elsewhere); the last six are equal on all trials of a search",
    (
        count("knee_trial", "Number of the trial, from 1"),
        text("knee_axis", "rate | concurrency"),
        number("knee_value", "1", "Load of this trial, requests/s or requests in flight"),
        flag("knee_met", "The objective held"),
        text("knee_reason", "Why not"),
        flag("knee_answer", "This is the row of the highest load that held (its last trial)"),
        text("knee_slo_json", "The objective: limit by column"),
        text("knee_outcome", "bracketed | at_least (nothing broke it) | below (the lowest load broke it) | unfinished"),
        number("knee_highest_met", "1", "Highest load that held, in the unit of knee_value"),
        number("knee_lowest_broken", "1", "Lowest load that did not"),
        count("knee_trials", "Trials of the search"),
        text("knee_notes", "What to know about the answer, for a person"),
    ),
)

WORKLOADS = (IDENTITY, COLOCATION, LOAD, OUTCOME, THROUGHPUT, LATENCY, STEADY, ENGINE, MACHINE, CLIENT, DRIFT, KNEE)
