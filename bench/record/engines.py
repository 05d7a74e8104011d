"""The engines table: one row per engine start."""

from __future__ import annotations

from bench.record.fields import Group, count, flag, number, seconds, size, text, texts

IDENTITY = Group(
    "Identity",
    (
        text("run_id", "This engine start: point, restart, time. Joins the tables"),
        text("point_id", "Hash of everything measured; equal for restarts of one point, in any set"),
        text("environment_id", "Hash of the checked metadata; rows that differ here are never pooled silently"),
        text("set_name", "Result set this row was written for"),
        text("sweep", "Named sweep it came from"),
        count("repeat", "Which restart of the point, from 0"),
        number("started_unix_s", "s", "Wall clock at the start of the run, Unix time"),
        number("ended_unix_s", "s", "Wall clock at its end, Unix time"),
    ),
)

OUTCOME = Group(
    "Outcome",
    (
        text("status", "ok | memory_only (started and measured, but it could not generate) | failed | pruned"),
        text("failure_phase", "Where it failed: config, import, init_device, load, profile, kv_allocation, "
             "graph_capture, api, runtime, gate, unknown"),
        text("failure_cause", "Why, as a word: out_of_memory, missing_kernel, timeout, ..."),
        text("failure_sentence", "Why, for a person: the root cause"),
        text("failure_detail", "The lines of the log that say so"),
        text("missing_kernel", "Kernel or operator that this machine's engine lacks for the format"),
        count("shortfall_bytes", "Memory that was missing, where the failure says how much", "B"),
        texts("flags", "Reasons not to trust the row blindly; empty for a clean one"),
        texts("warnings", "Sentences about the row for people"),
    ),
)  # fmt: skip

MITIGATION = Group(
    "Rung of a walk that answers a start that failed for memory (null elsewhere); otherwise a point like any other",
    (
        text("mitigates_run_id", "The start that failed, or was pruned"),
        count("mitigation_rung", "Number of this rung in its walk, from 1"),
        text("mitigation_name", "Kind of change"),
        text("mitigation_change", "What was changed of the failed start's settings"),
        text("mitigation_cost", "What the change costs"),
        size("mitigation_gain_bytes", "Memory that it was predicted to free"),
        size("mitigation_short_bytes", "Memory that was short, as known before this rung (measured, or predicted for "
             "a pruned point); null where no failure said how much"),
    ),
)  # fmt: skip

COLOCATION = Group(
    "Place in a group of engines on one device at once (null for an engine alone, whose terms these rows are not)",
    (
        text("colocation_id", "The run of the group: run_id of the colocations table"),
        text("colocation", "Name of the group"),
        text("colocation_point_id", "Hash of all that runs at once, this engine among it"),
        text("colocation_member", "Name of this engine in it"),
        count("colocation_position", "Its place in the order of start, from 0"),
        count("colocation_members", "Engines of the group"),
    ),
)

CONFIGURATION = Group(
    "Configuration, as requested (null: vLLM's own default)",
    (
        text("model", "Catalogue name of the model"),
        text("model_family", "Family of the architecture"),
        text("model_hub_id", "Hub checkpoint of this shape"),
        text("model_source", "config (dummy weights) | path | hub"),
        text("load_format", "vLLM's --load-format"),
        text("architecture", "Model class named in config.json"),
        text("model_config_json", "The config.json the engine read"),
        text("quantization", "Catalogue name of the weight format"),
        text("quantization_label", "The format for people"),
        count("weight_bits", "Bits of a quantized weight", "bit"),
        text("dtype", "Type of activations, embeddings and unquantized weights"),
        text("kv_pool_mode", "fixed (given in bytes) | auto (sized from gpu_memory_utilization)"),
        count("max_num_seqs", "Most sequences in one step", "sequences"),
        count("max_num_batched_tokens", "Token budget of one step", "tokens"),
        count("max_model_len", "Longest request", "tokens"),
        number("gpu_memory_utilization", "1", "Share of the device's memory the engine may fill"),
        size("kv_cache_memory_bytes", "Requested KV pool, fixed mode"),
        text("kv_cache_dtype", "Type of KV entries, as requested"),
        count("block_size", "Tokens per KV block, as requested", "tokens"),
        flag("enforce_eager", "No torch.compile, no CUDA graphs"),
        flag("enable_prefix_caching", "Prefix cache on"),
        count("tensor_parallel_size", "Tensor-parallel ranks"),
        count("pipeline_parallel_size", "Pipeline-parallel ranks"),
        number("cpu_offload_gb", "GiB", "Weights kept in host memory (vLLM's flag says GB and means GiB)"),
        texts("extra_args", "Further vllm serve flags"),
        text("workload", "Name of the workload list"),
        text("request_json", "The whole request, every setting"),
        text("effective_config_json", "The configuration the engine resolved, as its worker holds it"),
    ),
)

ENGINE = Group(
    "The engine as it really ran",
    (
        text("launcher", "spawn | warm: how it was started"),
        text("launcher_fallback", "Why the requested launcher was not used, if it was not"),
        text("model_runner", "vLLM's model runner, v1 or v2"),
        text("attention_backend", "Attention implementation selected"),
        texts("linear_kernels", "Linear methods and kernels selected"),
        count("effective_max_num_seqs", "max_num_seqs in force", "sequences"),
        count("effective_max_num_batched_tokens", "max_num_batched_tokens in force", "tokens"),
        count("effective_max_model_len", "max_model_len in force", "tokens"),
        text("log_file", "The engine's log, beside the tables"),
    ),
)

STARTUP = Group(
    "Time, by phase",
    (
        seconds("gate_before_s", "Wait for a clean device before the launch"),
        seconds("startup_s", "Launch until /health answered"),
        seconds("import_s", "Launch until the worker began (imports, argument parsing)"),
        seconds("init_device_s", "Device and distributed set-up"),
        seconds("load_s", "Weights created and loaded, repacking included"),
        seconds("profile_s", "Memory profiling run"),
        seconds("kv_allocation_s", "KV pool allocated"),
        seconds("graph_capture_s", "Compilation, warm-up and graph capture"),
        seconds("api_s", "Worker ready until /health answered"),
        seconds("workloads_s", "All workloads, warm-up included"),
        seconds("stop_s", "SIGTERM until no process was left"),
        text("stopped_by", "SIGTERM, or SIGKILL where that was not enough"),
        seconds("gate_after_s", "Wait for a clean device afterwards"),
        seconds("total_s", "The whole run"),
    ),
)

MEMORY_TERMS = Group(
    "Memory, by term, as the engine accounts for it (largest rank)",
    (
        size("weights_bytes", "Model weights: CUDA, as the engine counts them; CPU, the sum of tensors as created"),
        size("weights_tensor_bytes", "Parameters and buffers as created, before kernels repack them"),
        size("weights_resident_bytes", "Weights as held after repacking (CPU: growth of the worker's memory)"),
        size("activation_peak_bytes", "Peak of activations in the profiling run, without CUDA graphs"),
        size("non_torch_bytes", "Memory outside torch's allocator, within the engine's budget"),
        size("total_consumed_bytes", "Weights and non-torch memory together, where the engine reports only the sum"),
        size("cuda_graph_estimate_bytes", "CUDA graph memory as estimated before capture"),
        size("cuda_graph_bytes", "CUDA graph memory as taken"),
        size("requested_bytes", "The engine's budget: utilization x total"),
        size("available_kv_cache_bytes", "What the profile left for the KV pool"),
        size("kv_cache_bytes", "KV pool as allocated"),
        count("kv_cache_blocks", "Blocks in the pool", "blocks"),
        count("kv_block_size_tokens", "Tokens per block in force", "tokens"),
        size("kv_bytes_per_block", "Bytes of one block over all layers of the rank"),
        count("kv_cache_tokens", "Tokens the pool holds: usable blocks x tokens per block", "tokens"),
        count("kv_cache_reported_tokens", "The engine's own figure: full-length requests x max_model_len", "tokens"),
        size("torch_allocated_peak_bytes", "Peak of torch's allocator, in use"),
        size("torch_reserved_peak_bytes", "Peak of torch's allocator, reserved from the driver"),
        size("runtime_activation_peak_bytes", "Peak above the idle level under load (CUDA: torch; CPU: the worker)"),
        size("init_free_bytes", "Free device memory when the engine looked first"),
        size("init_total_bytes", "Total device memory as the engine saw it"),
        size("worker_rss_start_bytes", "Worker's resident memory before the model"),
        size("worker_rss_load_bytes", "... after loading"),
        size("worker_rss_kv_bytes", "... after the KV pool"),
        size("worker_rss_ready_bytes", "... when ready"),
        size(
            "worker_rss_load_peak_bytes", "Worker's peak until ready (kernel high-water mark): the loader's transient"
        ),
        size("worker_rss_runtime_peak_bytes", "Worker's peak under load (high-water mark, reset when ready)"),
        text("memory_sources_json", "Where each term came from: probe, metrics or log"),
        text("ranks_json", "Terms of every rank, where there are several"),
    ),
)

EXPECTATION = Group(
    "Against the arithmetic",
    (
        size("expected_weights_bytes", "Weights that config.json implies"),
        number("weights_error", "1", "Loaded weights over expected, minus one"),
        flag("quantization_applied", "The loaded bytes are those of the requested format"),
        size("expected_kv_bytes_per_token", "KV bytes a token that config.json implies"),
    ),
)

DEVICE_MEMORY = Group(
    "Memory, seen from outside",
    (
        size("device_memory_baseline_bytes", "NVML: device memory in use before the launch"),
        size("device_memory_peak_bytes", "NVML: device memory in use, peak of the whole run"),
        size("device_memory_load_peak_bytes", "NVML: device peak under load"),
        size("process_memory_peak_bytes", "NVML: this engine's processes, peak"),
        text("process_memory_hidden", "Why NVML could not tell this engine's share, if it could not"),
        size("foreign_memory_peak_bytes", "NVML: other processes on the device, peak"),
        size("tree_pss_ready_bytes", "Engine's process tree when ready, proportional share (PSS)"),
        size("tree_pss_peak_bytes", "Engine's process tree, PSS, peak of the samples"),
        size("tree_rss_peak_bytes", "Engine's process tree, RSS, peak; counts shared pages more than once"),
        size("tree_uss_peak_bytes", "Engine's process tree, private pages, peak of the samples"),
        size("cgroup_peak_bytes", "Memory cgroup, peak; page cache included"),
        text("cgroup_scope", "own (the engine's processes alone) | shared (everything in this container)"),
    ),
)

TELEMETRY = Group(
    "Telemetry and what it cost",
    (
        number("sample_hz", "Hz", "Samples a second achieved"),
        count("samples", "Samples taken"),
        count("missed_ticks", "Samples that came too late to be taken"),
        seconds("sampler_cpu_s", "CPU time of the sampler"),
        number("sampler_cpu_share", "1", "... as a share of one core"),
        number("pss_hz", "Hz", "PSS readings a second achieved"),
        number("power_mean_w", "W", "Mean power under load"),
        number("power_peak_w", "W", "Peak power"),
        number("energy_j", "J", "Energy of the whole run"),
        text("energy_source", "counter | power_integral"),
        number("sm_clock_min_mhz", "MHz", "Lowest SM clock under load"),
        number("sm_clock_median_mhz", "MHz", "Median SM clock under load"),
        number("temperature_peak_c", "degC", "Highest temperature"),
        texts("throttle_reasons", "Throttle reasons seen under load"),
        number("gpu_utilization_mean_pct", "%", "Mean GPU utilization under load"),
        flag("gpu_lost", "The GPU stopped answering during the run"),
    ),
)

ENVIRONMENT = Group(
    "Checked metadata: rows that differ here answer another question",
    (
        text("device_kind", "cuda | cpu"),
        text("device_name", "GPU, or CPU model"),
        size("device_memory_total_bytes", "GPU memory as NVML gives it, or the host's memory"),
        count("device_count", "Devices of the engine"),
        text("gpu_uuid", "First GPU"),
        number("gpu_power_limit_w", "W", "Power limit in force"),
        text("gpu_compute_capability", "Such as 9.0"),
        text("gpu_mig_mode", "MIG mode"),
        text("driver_version", "NVIDIA driver"),
        text("cuda_driver_version", "CUDA version of the driver"),
        text("vllm_version", "vLLM"),
        text("torch_version", "torch"),
        text("transformers_version", "transformers"),
        text("python_version", "Python"),
        text("harness_version", "This project"),
        text("harness_commit", "Its git commit, + for a changed tree"),
        text("host_id", "Hash of the host's name"),
        text("host_cpu", "CPU model"),
        text("host_cpu_isa", "Vector and matrix extensions that select kernels"),
        count("host_cpu_count", "Logical CPUs this process may use"),
        count("cpu_threads", "OpenMP threads of a CPU engine"),
        size("host_memory_bytes", "Host memory, or the container's limit"),
        size("host_node_memory_bytes", "Memory of the NUMA node of a CPU engine, as the sweep began"),
        text("host_kernel", "Operating system kernel"),
        text("container", "Container or virtual machine, where it shows"),
    ),
)

ENGINES = (
    IDENTITY, OUTCOME, MITIGATION, COLOCATION, CONFIGURATION, ENGINE, STARTUP, MEMORY_TERMS, EXPECTATION,
    DEVICE_MEMORY, TELEMETRY, ENVIRONMENT,
)  # fmt: skip
