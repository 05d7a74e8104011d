"""The samples table: the telemetry timeline."""

from __future__ import annotations

from bench.record.fields import Group, count, number, seconds, size, text

SAMPLES = (
    Group(
        "Telemetry timeline",
        (
            text("run_id", "The engine start"),
            number("t_s", "s", "Since the sampler started, monotonic"),
            number("t_unix_s", "s", "Wall clock, Unix time"),
            text("phase", "gate, idle, launch, ready, warmup:NAME, load:NAME, stop"),
            count("device_index", "NVML index; null on a host without GPU"),
            size("device_memory_used_bytes", "NVML: device"),
            size("process_memory_used_bytes", "NVML: this engine"),
            size("foreign_memory_used_bytes", "NVML: other processes"),
            number("power_w", "W", "Power"),
            number("sm_clock_mhz", "MHz", "SM clock"),
            number("mem_clock_mhz", "MHz", "Memory clock"),
            number("temperature_c", "degC", "Temperature"),
            count("throttle_reasons", "NVML bit mask", ""),
            number("gpu_utilization_pct", "%", "GPU busy"),
            number("memory_utilization_pct", "%", "Memory interface busy"),
            size("tree_rss_bytes", "Process tree RSS"),
            size("tree_pss_bytes", "Process tree PSS; null between readings"),
            size("tree_uss_bytes", "Process tree private pages; null between readings"),
            count("tree_processes", "Processes in the tree"),
            seconds("tree_cpu_s", "CPU time of the tree so far"),
            size("cgroup_bytes", "Memory cgroup, current"),
        ),
    ),
)
