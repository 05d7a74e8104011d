"""Diagnosis. Everything under data/ is an excerpt of a real start of vLLM 0.32.0 on a CPU.

CUDA messages are built from the format strings in the sources of vLLM 0.25.1 and 0.33.0 and of torch.
"""

import signal
from pathlib import Path

import pytest

from bench.engine.failure import CAUSES, PHASES, Failure, diagnose
from bench.engine.readings import read_probe_reports
from bench.engine.tracebacks import exceptions, root_exception

DATA = Path(__file__).parent / "data"
GIB = 2**30


def real(case: str, **facts) -> Failure:
    folder = DATA / case
    return diagnose((folder / "log.txt").read_bytes(), read_probe_reports(folder), **facts)


@pytest.mark.parametrize(
    ("case", "phase", "cause", "words"),
    [
        ("gptq8_no_kernel", "load", "missing_kernel", "Marlin does not run uint8b128"),
        ("fp8_block_no_kernel", "load", "missing_kernel", "requires AMX tile support"),
        ("fp8_missing_operator", "load", "missing_kernel", "_C::static_scaled_fp8_quant"),
        (
            "max_model_len_exceeds_kv",
            "kv_allocation",
            "max_model_len_exceeds_kv",
            "up to 896 tokens would fit",
        ),
        ("max_model_len_derived", "config", "bad_argument", "greater than the derived max_model_len"),
        ("unknown_flag", "config", "bad_argument", "--no-such-flag"),
        ("invalid_value", "config", "bad_argument", "max_num_batched_tokens: Input should be greater"),
        ("kv_larger_than_memory", "kv_allocation", "insufficient_free_memory", "55.88 GiB"),
        ("unknown_quantization", "config", "unsupported_quantization", "bitsandbytes"),
        ("no_such_model", "config", "bad_checkpoint", "neither a directory nor"),
        ("corrupt_config", "config", "bad_checkpoint", "not a valid JSON file"),
        ("port_in_use", "api", "port_in_use", "listens on the engine's port"),
        ("host_out_of_memory", "load", "out_of_memory", "6.10 GiB were asked for while loading weights"),
        (
            "worker_killed_while_loading",
            "load",
            "crash",
            "ended without naming an error while loading weights (killed from outside, as by the host's out-of-memory "
            "killer, or crashed in native code)",
        ),
    ],
)
@pytest.mark.parametrize("with_probe", [True, False])
def test_real_failed_starts(case, phase, cause, words, with_probe):
    folder = DATA / case
    reports = read_probe_reports(folder) if with_probe else []
    found = diagnose((folder / "log.txt").read_bytes(), reports, exit_code=2 if case == "unknown_flag" else 1)
    assert (found.phase, found.cause) == (phase, cause)
    assert words in found.sentence
    assert "\n" not in found.sentence
    assert "Engine core initialization failed" not in found.sentence
    assert found.detail


def test_kernel_missing_at_the_first_request():
    found = real("gptq4_missing_operator", ready=True)
    assert (found.phase, found.cause, found.missing_kernel) == (
        "runtime",
        "missing_kernel",
        "_C::cpu_gemm_wna16",
    )


def test_worker_dead_at_the_first_request():
    found = real("awq_worker_died", ready=True)
    assert (found.phase, found.cause) == ("runtime", "crash")
    assert "serving requests" in found.sentence


def test_kernel_names():
    assert real("gptq8_no_kernel").missing_kernel == "Marlin"
    assert real("fp8_block_no_kernel").missing_kernel == "CPUFp8W8A8BlockScaledMMKernel"


def test_shortfall_of_the_pool():
    assert real("kv_larger_than_memory").shortfall_bytes == pytest.approx(
        (55.88 - 6.35) * GIB, abs=0.01 * GIB
    )


def test_healthy_start_has_no_cause():
    """Its log holds a traceback (at WARNING) about the tokenizer that is not there."""
    text = (DATA / "healthy" / "log.txt").read_text()
    assert "Traceback" in text
    found = real("healthy", ready=True)
    assert found.cause == "unknown"


def test_timeout_of_a_healthy_but_slow_start():
    found = real("healthy", timed_out=True, timeout_s=30.0)
    assert (found.phase, found.cause) == ("api", "timeout")
    assert "30 s" in found.sentence


def test_an_error_in_the_log_is_the_cause_of_a_timeout():
    assert real("gptq8_no_kernel", timed_out=True, timeout_s=30.0).cause == "missing_kernel"


def test_out_of_memory_killer_by_the_cgroup_counter():
    case = "worker_killed_while_loading"
    assert real(case, exit_code=1, oom_killed=True).cause == "out_of_memory"
    not_by_it = real(case, exit_code=1, oom_killed=False)
    assert not_by_it.cause == "crash"
    assert "out-of-memory" not in not_by_it.sentence


def test_oom_counter_does_not_hide_a_named_cause():
    """Another process of the same cgroup may have been the one that was killed."""
    assert real("gptq8_no_kernel", exit_code=1, oom_killed=True).cause == "missing_kernel"


def test_probe_alone_is_enough():
    reports = read_probe_reports(DATA / "kv_larger_than_memory")
    found = diagnose("", reports, exit_code=1)
    assert (found.cause, found.phase) == ("insufficient_free_memory", "kv_allocation")


# -- CUDA, from format strings ----------------------------------------------------------------------

CORE = "(EngineCore pid=7) ERROR 07-01 10:00:08 [core.py:1510] "
PASSED_ON = """Traceback (most recent call last):
  File "vllm/entrypoints/cli/main.py", line 80, in main
    args.dispatch_function(args)
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}
"""


def failed_core(*message: str, before: str = "") -> str:
    frames = ["EngineCore failed to start.", "Traceback (most recent call last):",
              '  File "vllm/v1/engine/core.py", line 1482, in run_engine_core', "    x()"]  # fmt: skip
    return before + "\n".join(CORE + line for line in [*frames, *message]) + "\n" + PASSED_ON


OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of "
    "79.11 GiB "
    "of which 1.25 GiB is free. Including non-PyTorch memory, this process has 77.86 GiB memory in use."
)


def test_cuda_out_of_memory_says_how_much():
    loading = "(EngineCore pid=7) INFO 07-01 10:00:01 [model_runner.py:390] Loading model from scratch...\n"
    found = diagnose(failed_core(OOM, before=loading), exit_code=1)
    assert (found.phase, found.cause) == ("load", "out_of_memory")
    assert found.shortfall_bytes == round(1.25 * GIB)
    assert "2.50 GiB were asked for, 1.25 GiB were free of 79.11 GiB while loading weights" in found.sentence


def test_out_of_memory_in_the_sampler_warm_up_keeps_the_amount():
    """vLLM raises its advice from torch's error: the amount is in the first of the chain."""
    advice = (
        "RuntimeError: CUDA out of memory occurred when warming up sampler with 256 dummy requests. Please "
        "try "
        "lowering `max_num_seqs` or `gpu_memory_utilization` when initializing the engine."
    )
    found = diagnose(
        failed_core(
            OOM, "",
            "The above exception was the direct cause of the following exception:", "",
            "Traceback (most recent call last):",
            '  File "vllm/v1/worker/gpu_worker.py", line 860, in compile_or_warm_up_model',
            "    raise RuntimeError(", advice,
        ),
        exit_code=1,
    )  # fmt: skip
    assert (found.cause, found.shortfall_bytes) == ("out_of_memory", round(1.25 * GIB))


@pytest.mark.parametrize(
    ("message", "cause", "shortfall_gib", "phase"),
    [
        ("ValueError: Free memory on device cuda:0 (20.5/79.11 GiB) on startup is less than desired GPU "
         "memory "
         "utilization (0.92, 72.78 GiB). Decrease GPU memory utilization or reduce GPU memory used by other "
         "processes.",
         "insufficient_free_memory", 52.28, "init_device"),
        ("ValueError: Free memory on device cuda:0 (20.5/79.11 GiB) on startup is less than the engine's "
         "budget after "
         "excluding external process's weights (0.92, 30.5 GiB). Decrease GPU memory utilization",
         "insufficient_free_memory", 10, "init_device"),
        ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
         "initializing the engine.", "no_kv_memory", None, "kv_allocation"),
        ("ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV "
         "cache is needed, "
         "which is larger than the available KV cache memory (9.5 GiB). Based on the available memory, the "
         "estimated "
         "maximum model length is 77824. Try increasing", "max_model_len_exceeds_kv", 6.5, "kv_allocation"),
        ("NotImplementedError: No WNA16 MoE backend supports the deployment configuration.",
         "missing_kernel", None, "init_device"),
        ("RuntimeError: CUDA error: no kernel image is available for execution on the device",
         "missing_kernel", None, "init_device"),
        ("ValueError: The quantization method awq_marlin is not supported for the current GPU. Minimum "
         "capability: 80.",
         "unsupported_quantization", None, "init_device"),
        ("ValueError: GPTQ group activation ordering (desc_act=True) is no longer supported. Use a "
         "checkpoint",
         "unsupported_quantization", None, "init_device"),
        ("torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
         "engine_error", None, "init_device"),
    ],
)  # fmt: skip
def test_cuda_messages(message, cause, shortfall_gib, phase):
    prefix = "(EngineCore pid=7) INFO 07-01 10:00:00 [core.py:115] "
    start = prefix + "Initializing a V1 LLM engine (v0.33.0) with config: x\n"
    found = diagnose(failed_core(message, before=start), exit_code=1)
    assert (found.cause, found.phase) == (cause, phase)
    if shortfall_gib is None:
        assert found.shortfall_bytes is None
    else:
        assert found.shortfall_bytes == pytest.approx(shortfall_gib * GIB, abs=2)


def test_engine_core_killed_is_read_from_the_exit_code_of_its_parent():
    text = PASSED_ON.replace("{'EngineCore': 1}", "{'EngineCore_DP0': -9}")
    found = diagnose(text, exit_code=1)
    assert found.cause == "crash" and "SIGKILL" in found.sentence and "out-of-memory" in found.sentence


def test_worker_killed_as_0_33_words_it():
    text = ("(EngineCore pid=7) ERROR 07-01 10:00:08 [multiproc_executor.py:380] Worker proc VllmWorker-1 "
            "died "
            "unexpectedly (exit code: -11), shutting down executor.\n")  # fmt: skip
    found = diagnose(text, ready=True)
    assert (found.cause, found.phase) == ("crash", "runtime")
    assert "SIGSEGV" in found.sentence


def test_killed_without_a_word():
    assert diagnose("", signal=signal.SIGKILL).cause == "crash"
    assert diagnose("", signal=signal.SIGKILL, oom_killed=True).cause == "out_of_memory"
    assert "SIGILL" in diagnose("", exit_code=128 + signal.SIGILL).sentence


def test_nothing_to_go_by():
    assert diagnose() == Failure("unknown", "unknown", "the engine named no error", "")
    assert diagnose("", exit_code=3).cause == "engine_error"
    assert diagnose(b"\xff\x00garbage", [{"phases": []}, {}]).cause == "unknown"


def test_root_is_found_when_processes_write_across_each_other():
    worker = [
        "Traceback (most recent call last):", '  File "a.py", line 1, in f', "    g()",
        "ValueError: the root",
    ]  # fmt: skip
    core = [
        "Traceback (most recent call last):", '  File "b.py", line 2, in h', "    k()",
        "Exception: WorkerProc initialization failed due to an exception in a background process.",
    ]  # fmt: skip
    lines = []
    for a, b in zip(core, worker, strict=True):
        lines.append(CORE + a)
        lines.append("(Worker_TP1 pid=9) ERROR 07-01 10:00:08 [multiproc_executor.py:953] " + b)
        lines.append("(EngineCore pid=7) INFO 07-01 10:00:08 [x.py:1] something else")
    root = root_exception(exceptions("\n".join(lines)))
    assert root is not None
    assert (root.type, root.message, root.process) == ("ValueError", "the root", "Worker_TP1")


def test_old_style_prefix_on_bare_tracebacks():
    """0.25.1 puts the process before every line that a worker prints, also before Python's own tracebacks."""
    text = "\n".join(
        "(EngineCore_DP0 pid=5) " + line
        for line in [
            "Traceback (most recent call last):",
            '  File "a.py", line 1, in f',
            "    g()",
            "KeyError: 'w'",
        ]
    )
    assert diagnose(text, exit_code=1).sentence == "KeyError: 'w'"


def test_relayed_message_where_the_workers_own_is_cut_off():
    text = CORE + ("RuntimeError: Worker failed with error 'CUDA out of memory. Tried to allocate 1.00 "
    "GiB', please "
                   "check the stack trace above for the root cause")  # fmt: skip
    assert diagnose(text, exit_code=1).cause == "out_of_memory"


def test_vocabulary():
    assert len(set(PHASES)) == len(PHASES) and len(set(CAUSES)) == len(CAUSES)
    for case in DATA.iterdir():
        found = real(case.name, exit_code=1)
        assert found.phase in PHASES and found.cause in CAUSES


@pytest.mark.parametrize("case", [path.name for path in sorted(DATA.iterdir())])
def test_a_log_cut_anywhere_is_diagnosed(case):
    text = (DATA / case / "log.txt").read_text()
    reports = read_probe_reports(DATA / case)
    for end in range(0, len(text), 997):
        for part in (text[:end], text[end:]):
            found = diagnose(part, reports, exit_code=1)
            assert found.sentence and found.cause in CAUSES


def test_of_two_workers_the_one_least_far_holds_up_the_start():
    def worker(*names: str, stuck: bool) -> dict:
        phases = [{"name": name, "inside": [], "end_unix_s": 1.0, "error": None} for name in names]
        if stuck:
            phases[-1]["end_unix_s"] = None
        return {"phases": phases}

    behind = worker("worker_init", "init_device", "load_model", stuck=True)
    ahead = worker("worker_init", "init_device", "load_model", stuck=False)
    assert diagnose("", [behind, ahead], timed_out=True).phase == "load"
    assert diagnose("", [ahead, behind], timed_out=True).phase == "load"
    assert diagnose("", [ahead, ahead], timed_out=True).phase == "profile"


@pytest.mark.parametrize("oom_killed", [False, None])
def test_a_death_without_a_word_is_not_put_down_to_native_code(oom_killed):
    log = (
        "(APIServer pid=1) ERROR 11-28 10:00:00 [async_llm.py:1] Traceback (most recent call last):\n"
        "(APIServer pid=1) ERROR 11-28 10:00:00 [async_llm.py:1] vllm.v1.engine.exceptions.EngineDeadError: "
        "EngineCore encountered an issue. See stack trace (above) for the root cause.\n"
    )
    found = diagnose(log, exit_code=0, ready=True, oom_killed=oom_killed)
    assert (found.phase, found.cause) == ("runtime", "crash")
    killer = "" if oom_killed is False else ", as by the host's out-of-memory killer,"
    assert found.sentence == (
        "a process of the engine ended without naming an error while serving requests "
        f"(killed from outside{killer} or crashed in native code)"
    )
