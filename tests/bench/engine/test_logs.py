"""Log parsing. CPU logs under data/ are excerpts of real starts of vLLM 0.32.0.

CUDA lines are built here from the format strings of the named version's sources, because no start on a GPU is
recorded in this repository.
"""

from pathlib import Path

import pytest

from bench.engine.logs import GIB, ROUNDING_BYTES, clean_lines, parse_log

DATA = Path(__file__).parent / "data"


def near(gib: float) -> int:
    return round(gib * GIB)


# The V1 runner of 0.25.1 with graphs and VLLM_LOGGING_LEVEL=DEBUG.
CUDA_0_25_1 = """
(EngineCore pid=77) INFO 07-01 10:00:00 [core.py:115] Initializing a V1 LLM engine (v0.25.1) with config: model='m'
(EngineCore pid=77) INFO 07-01 10:00:01 [cuda.py:477] Using FLASH_ATTN attention backend out of potential backends: ['FLASH_ATTN', 'FLASHINFER'].
(EngineCore pid=77) INFO 07-01 10:00:02 [auto_awq.py:473] Using MacheteLinearKernel for AutoAWQMarlinLinearMethod
(EngineCore pid=77) INFO 07-01 10:00:02 [unquantized.py:203] Using TRITON Unquantized MoE backend out of potential backends: ['TRITON'].
(EngineCore pid=77) INFO 07-01 10:00:05 [default_loader.py:431] Loading weights took 2.31 seconds
(EngineCore pid=77) INFO 07-01 10:00:06 [gpu_model_runner.py:5307] Model loading took 15.27 GiB memory and 4.123456 seconds
(EngineCore pid=77) INFO 07-01 10:00:07 [monitor.py:20] torch.compile took 21.40 s in total
(EngineCore pid=77) INFO 07-01 10:00:08 [gpu_model_runner.py:6640] Estimated CUDA graph memory: 0.53 GiB total
(EngineCore pid=77) DEBUG 07-01 10:00:08 [gpu_worker.py:526] Initial free memory: 78.60 GiB; Requested memory: 0.920000 (util), 72.78 GiB
(EngineCore pid=77) DEBUG 07-01 10:00:08 [gpu_worker.py:537] Memory profiling takes 6.12 seconds. Total non KV cache memory: 16.82GiB; torch peak memory increase: 1.21GiB; non-torch forward increase memory: 0.34GiB; weights memory: 15.27GiB.
(EngineCore pid=77) INFO 07-01 10:00:08 [gpu_worker.py:539] Available KV cache memory: 55.43 GiB
(EngineCore pid=77) INFO 07-01 10:00:08 [kv_cache_utils.py:2146] GPU KV cache size: 454,096 tokens
(EngineCore pid=77) INFO 07-01 10:00:08 [kv_cache_utils.py:2148] Maximum concurrency for 32,768 tokens per request: 13.86x
(EngineCore pid=77) INFO 07-01 10:00:20 [gpu_model_runner.py:6708] Graph capturing finished in 11 secs, took 0.61 GiB
(EngineCore pid=77) INFO 07-01 10:00:20 [gpu_worker.py:771] CUDA graph pool memory: 0.61 GiB (actual), 0.53 GiB (estimated), difference: 0.08 GiB (13.1%).
(EngineCore pid=77) DEBUG 07-01 10:00:20 [gpu_worker.py:835] Free memory on device (78.6/79.11 GiB) on startup. Desired GPU memory utilization is (0.92, 72.78 GiB). Actual usage is 15.27 GiB for weight, 1.21 GiB for peak activation, 0.34 GiB for non-torch memory, and 0.61 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with `--kv-cache-memory=59231838208` (55.16 GiB) to fit into requested memory, or `--kv-cache-memory=65480048640` (60.98 GiB) to fully utilize gpu memory. Current kv cache memory in use is 55.43 GiB.
(EngineCore pid=77) INFO 07-01 10:00:21 [core.py:328] init engine (profile, create kv cache, warmup model) took 41.70 s (compilation: 21.40 s)
"""  # noqa: E501

# 0.33.0, V2 runner: the summary is an INFO line and counts the graph estimate into the activations.
CUDA_0_33 = """
(EngineCore pid=8) INFO 07-01 10:00:00 [core.py:140] Initializing a V1 LLM engine (v0.33.0) with config: model='m'
(Worker_TP0 pid=9) INFO 07-01 10:00:01 [gpu_worker.py:513] Using V2 Model Runner
(Worker_TP0 pid=9) INFO 07-01 10:00:02 [__init__.py:945] Using MarlinLinearKernel for mixed-precision linear
(Worker_TP0 pid=9) INFO 07-01 10:00:02 [int_wna16.py:287] Using 'MARLIN' WNA16 MoE backend.
(Worker_TP0 pid=9) INFO 07-01 10:00:06 [model_runner.py:429] Model loading took 7.63 GiB memory and 3.100000 seconds
(Worker_TP1 pid=10) INFO 07-01 10:00:06 [model_runner.py:429] Model loading took 7.65 GiB memory and 3.200000 seconds
(Worker_TP0 pid=9) INFO 07-01 10:00:07 [model_runner.py:1164] Graph capturing finished in 1 secs, took 0.10 GiB
(Worker_TP0 pid=9) INFO 07-01 10:00:08 [gpu_worker.py:773] Available KV cache memory: 62.20 GiB
(EngineCore pid=8) INFO 07-01 10:00:08 [kv_cache_utils.py:1147] GPU KV cache size: 1,018,976 tokens, Maximum concurrency for 32,768 tokens per request: 31.10x
(Worker_TP0 pid=9) INFO 07-01 10:00:20 [model_runner.py:1164] Graph capturing finished in 9 secs, took 0.72 GiB
(Worker_TP0 pid=9) INFO 07-01 10:00:20 [gpu_worker.py:1003] CUDA graph pool memory: 0.72 GiB (actual), 0.66 GiB (estimated), difference: 0.06 GiB (8.3%).
(Worker_TP0 pid=9) INFO 07-01 10:00:20 [gpu_worker.py:1066] Free memory on device (78.6/79.11 GiB) on startup. Desired GPU memory utilization is (0.92, 72.78 GiB). Actual usage is 8.31 GiB for consumed memory (weights + non-torch), 1.61 GiB for peak activation, and 0.72 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with `--kv-cache-memory=66571993088` (62.0 GiB) to fit into requested memory, or `--kv-cache-memory=72820203520` (67.82 GiB) to fully utilize gpu memory. Current kv cache memory in use is 62.2 GiB.
(EngineCore pid=8) INFO 07-01 10:00:21 [core.py:413] init engine (profile, create kv cache, warmup model) took 20.05 s
"""  # noqa: E501


def test_cuda_v1_runner_of_0_25():
    facts = parse_log(CUDA_0_25_1)
    assert facts.vllm_version == "0.25.1"
    assert facts.weights_bytes == near(15.27)
    assert facts.load_s == 4.123456
    assert facts.weights_read_s == 2.31
    assert facts.activation_peak_bytes == near(1.21)
    assert facts.non_torch_bytes == near(0.34)
    assert facts.total_consumed_bytes is None
    assert facts.cuda_graph_estimate_bytes == near(0.53)
    assert facts.cuda_graph_bytes == near(0.61)
    assert facts.graph_capture_s == 11
    assert facts.available_kv_cache_bytes == near(55.43)
    assert facts.kv_cache_tokens == 454096
    assert (facts.max_concurrency_tokens, facts.max_concurrency) == (32768, 13.86)
    assert facts.suggested_kv_cache_bytes == 59231838208
    assert (facts.init_free_bytes, facts.init_total_bytes) == (near(78.6), near(79.11))
    assert facts.requested_bytes == near(72.78)
    assert facts.profile_s == 6.12
    assert facts.compile_s == 21.4
    assert facts.init_engine_s == 41.7
    assert facts.attention_backend == "FLASH_ATTN"
    assert facts.linear_kernels == ["AutoAWQMarlinLinearMethod: MacheteLinearKernel"]
    assert facts.moe_backends == ["Unquantized: TRITON"]


def test_cuda_v2_runner_of_0_33_with_two_ranks():
    facts = parse_log(CUDA_0_33)
    assert facts.model_runner == "v2"
    assert facts.weights_bytes == near(7.65), "the largest rank"
    assert facts.weights_by_rank_bytes == [near(7.63), near(7.65)]
    assert facts.total_consumed_bytes == near(8.31)
    assert facts.activation_peak_with_graphs_bytes == near(1.61)
    assert facts.activation_peak_bytes == pytest.approx(near(1.61 - 0.66), abs=2)
    assert facts.cuda_graph_bytes == near(0.72), "the capture, not the estimate's trial"
    assert facts.graph_capture_s == 9
    assert facts.kv_cache_tokens == 1018976
    assert facts.max_concurrency == 31.1
    assert facts.linear_kernels == ["mixed-precision linear: MarlinLinearKernel"]
    assert facts.moe_backends == ["WNA16: MARLIN"]


def test_v2_runner_of_0_25_lacks_the_word_memory():
    prefix = "(EngineCore pid=1) INFO 07-01 10:00:06 [model_runner.py:303] "
    text = prefix + "Model loading took 3.5 GiB and 1.250000 seconds"
    facts = parse_log(text)
    assert (facts.weights_bytes, facts.load_s) == (near(3.5), 1.25)


def test_profile_line_of_0_32_gives_the_consumed_memory():
    line = (
        "Memory profiling takes 2.00 seconds. Total non KV cache memory: 9.5GiB; torch peak memory "
        "increase: 1.9GiB; "
        "total consumed (from mem_get_info): 8.3GiB; weights memory: 7.6GiB."
    )
    facts = parse_log(line)
    assert facts.total_consumed_bytes == near(8.3)
    assert facts.activation_peak_bytes is None, "the increase is not what this version charges"


def test_fixed_pool_and_overridden_blocks():
    facts = parse_log(
        "Initial free memory 78.6 GiB, reserved 4.0 GiB memory for KV Cache as specified by "
        "kv_cache_memory_bytes config\n"
        "Overriding num_gpu_blocks=3000 with num_gpu_blocks_override=100\n"
    )
    assert facts.kv_cache_fixed_bytes == near(4)
    assert facts.init_free_bytes == near(78.6)
    assert (facts.num_gpu_blocks_profiled, facts.num_gpu_blocks_override) == (3000, 100)


def test_negative_available_memory():
    assert parse_log("Available KV cache memory: -1.37 GiB").available_kv_cache_bytes == near(-1.37)


def test_real_cpu_log():
    facts = parse_log((DATA / "healthy" / "log.txt").read_bytes())
    assert facts.vllm_version == "0.32.0"
    assert facts.model_runner == "v1"
    assert abs(facts.kv_cache_fixed_bytes - 64 * 2**20) <= ROUNDING_BYTES
    assert facts.kv_cache_tokens == 32768
    assert facts.max_concurrency == 64
    assert facts.init_engine_s is not None and facts.init_engine_s > 0
    assert "'max_num_seqs': 8" in facts.arguments


def test_real_w8a8_log_names_the_kernel():
    facts = parse_log((DATA / "w8a8_healthy" / "log.txt").read_bytes())
    assert facts.linear_kernels == ["CompressedTensorsW8A8Int8: CPUInt8ScaledMMLinearKernel"]


@pytest.mark.parametrize("text", [CUDA_0_25_1, CUDA_0_33])
def test_order_does_not_matter_but_for_the_capture(text):
    lines = [line for line in text.splitlines() if "Graph capturing" not in line]
    forward, backward = parse_log("\n".join(lines)), parse_log("\n".join(reversed(lines)))
    for facts in (forward, backward):
        facts.weights_by_rank_bytes.sort()
    assert forward == backward


def test_colours_carriage_returns_and_broken_bytes():
    colour = "\x1b[0;36m(EngineCore pid=7)\x1b[0;0m INFO 07-01 10:00:08 [gpu_worker.py:539] "
    colour += "Available KV cache memory: "
    raw = b"\xff\xfe garbage \x80\r\n" + colour.encode() + b"55.43 GiB\r\nprogress 10%\rprogress 20%\r\n"
    assert parse_log(raw).available_kv_cache_bytes == near(55.43)


@pytest.mark.parametrize("text", [CUDA_0_25_1, CUDA_0_33])
def test_a_log_cut_anywhere_parses(text):
    shown = text.index("KV cache size")
    for end in range(0, len(text), 37):
        facts = parse_log(text[:end])
        assert facts.kv_cache_tokens is None or end > shown
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if "KV cache size" in line)
    assert parse_log("\n".join(lines[: at + 1])).kv_cache_tokens == parse_log(text).kv_cache_tokens
    assert parse_log("") == parse_log(b"")


def test_prefixes():
    line = next(clean_lines("(Worker_TP1 pid=42) ERROR 07-01 10:00:08 [core.py:1510] ValueError: no"))
    assert (line.process, line.pid, line.level, line.where, line.text) == (
        "Worker_TP1", 42, "ERROR", "core.py:1510", "ValueError: no",
    )  # fmt: skip
    old = next(clean_lines("(EngineCore pid=3) Traceback (most recent call last):"))
    assert (old.process, old.level, old.text) == ("EngineCore", "", "Traceback (most recent call last):")
    bare = next(clean_lines("    return f(x)"))
    assert (bare.process, bare.text) == ("", "    return f(x)")
