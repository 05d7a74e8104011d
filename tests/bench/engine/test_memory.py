"""Memory terms. data/healthy is what the probe wrote in a real CPU engine; the CUDA reports are built here
with the attributes that vLLM 0.26.0 and 0.33.0 have in their sources, because no GPU start is recorded in
this repository."""

import copy
import json
from pathlib import Path

import pytest

from bench.engine import memory
from bench.engine.logs import GIB, LogFacts, parse_log

DATA = Path(__file__).parent / "data"
LABELS = {
    "num_gpu_blocks": "256", "block_size": "128", "effective_attention_block_size": "128",
    "kv_cache_size_tokens": "32768", "kv_cache_memory_bytes": "67108864", "num_gpu_blocks_override": "None",
}  # fmt: skip


def healthy() -> dict:
    return json.loads(next((DATA / "healthy").glob("worker-*.json")).read_text())


def write(folder: Path, *reports: dict) -> Path:
    for number, report in enumerate(reports):
        (folder / f"worker-{100 + number}.json").write_text(json.dumps(report))
    return folder


def reading(*, rss=0, peak=0, allocated=None, allocated_peak=0, reserved=0, free=0, at=0.0) -> dict:
    cuda = None
    if allocated is not None:
        cuda = {
            "allocated_bytes": allocated, "allocated_peak_bytes": allocated_peak, "reserved_bytes": reserved,
            "reserved_peak_bytes": reserved, "free_bytes": free, "total_bytes": 80 * GIB,
        }  # fmt: skip
    return {"unix_s": at, "host": {"rss_bytes": rss, "rss_peak_bytes": peak}, "cuda": cuda}


def phase(name, *, before=None, after=None, inside=(), result=None, error=None, begin=0.0, end=1.0) -> dict:
    return {
        "name": name, "inside": list(inside), "begin_unix_s": begin, "end_unix_s": end, "result": result,
        "error": error, "before": before or reading(), "after": after or reading(), "arguments": {}, "where":
        "x",
    }  # fmt: skip


def cuda_report(*, version: str, fixed_pool: bool = False) -> dict:
    """A dense model on an 80 GiB card, as the probe would write it."""
    loaded = reading(allocated=15 * GIB, allocated_peak=16 * GIB, reserved=16 * GIB, free=62 * GIB)
    peak = reading(
        allocated=15 * GIB, allocated_peak=17 * GIB, reserved=17 * GIB, free=60 * GIB
    )  # 3 GiB outside torch: 1 of them was there before
    budget = {
        "requested_memory": 72 * GIB, "model_memory_usage": 15 * GIB,
        "init_snapshot": {"free_memory": 78 * GIB, "total_memory": 80 * GIB, "non_torch_memory": 1 * GIB},
    }  # fmt: skip
    if not fixed_pool:
        budget |= {"available_kv_cache_memory_bytes": 50 * GIB, "cudagraph_memory_estimate": GIB // 2}
        budget["profile"] = {"torch_peak_increase": 2 * GIB, "non_torch_increase": 2 * GIB}
        if version == "0.26.0":
            budget |= {"peak_activation_memory": 2 * GIB, "non_torch_memory": 2 * GIB}
        else:
            budget |= {"peak_activation_memory": 5 * GIB // 2, "total_consumed": 17 * GIB}
            budget["profile"]["transient_peak_headroom"] = 2 * GIB
    return {
        "rank": 0, "budget": budget, "runtime": {"windows": []}, "runner": {"version": "v2"},
        "config": {"kv_cache_memory_bytes": 4 * GIB if fixed_pool else None, "max_num_seqs": 256},
        "kv_cache": {"num_blocks": 1001, "allocated_bytes": 1001 * 2**20, "bytes_per_block": 2**20,
                     "groups": [{"block_size_tokens": 16}]},
        "weights": {"loads": [{
            "before_repack": {"total_bytes": 14 * GIB, "parameter_bytes": 13 * GIB, "buffer_bytes": GIB},
            "after_repack": {"total_bytes": 15 * GIB, "parameter_bytes": 14 * GIB, "buffer_bytes": GIB}}]},
        "kernels": {"attention_backends": {"FLASH_ATTN": 32}, "linear": [
            {"layer": "QKVParallelLinear", "method": "AutoAWQMarlinLinearMethod", "scheme": None,
             "kernels": ["MacheteLinearKernel"], "count": 32},
            {"layer": "VocabParallelEmbedding", "method": "UnquantizedEmbeddingMethod", "kernels": []}],
            "moe": []},
        "phases": [
            phase("init_device", after=reading(rss=10, peak=10)),
            phase("load_model", after=loaded),
            phase("runner.profile_run", before=loaded, after=peak, inside=["determine_available_memory"]),
            phase("runner.capture_model", inside=["determine_available_memory",
            "runner.profile_cudagraph_memory"],
                  result=7),
            phase("runner.capture_model", inside=["compile_or_warm_up_model"], result=3 * GIB // 4),
            phase("compile_or_warm_up_model"),
        ],
    }  # fmt: skip


def test_real_cpu_start():
    terms = memory.from_probe(DATA / "healthy")
    per_layer = 512 * 257 + 256 * 256 + 2 * 512 * 256 + 256 * 512 + 2 * 256
    parameters = 4 * (2 * 1024 * 256 + 2 * per_layer + 256)
    assert terms.weights_parameter_bytes == parameters
    rope_cache, kv_scales = 2048 * 64 * 4, 2 * 4 * 4
    assert terms.weights_tensor_bytes == parameters + rope_cache + kv_scales
    assert terms.weights_bytes is None and terms.cuda_graph_bytes is None
    assert terms.weights_resident_bytes > parameters
    assert terms.kv_cache_bytes == 64 * 2**20 == terms.kv_cache_blocks * terms.kv_bytes_per_block
    assert terms.kv_cache_tokens == (256 - 1) * 128
    assert terms.worker_rss_start_bytes < terms.worker_rss_load_bytes < terms.worker_rss_kv_bytes
    assert terms.worker_rss_kv_bytes - terms.worker_rss_load_bytes >= terms.kv_cache_bytes
    assert terms.runtime_activation_peak_bytes > 0
    assert terms.worker_rss_runtime_peak_bytes > terms.worker_rss_ready_bytes
    assert (terms.model_runner, terms.attention_backend) == ("v1", "CPU_ATTN")
    assert "UnquantizedLinearMethod/onednn_mm" in terms.linear_kernels
    assert terms.effective_max_num_seqs == 8
    assert set(terms.sources.values()) == {"probe"}


def test_real_sources_agree():
    log = memory.from_log(parse_log((DATA / "healthy" / "log.txt").read_text()))
    merged = memory.merge(memory.from_probe(DATA / "healthy"), memory.from_metrics(LABELS), log)
    assert merged.warnings == []
    assert merged.sources["kv_cache_blocks"] == "probe"
    assert merged.sources["kv_cache_reported_tokens"] == "metrics"
    assert merged.kv_cache_reported_tokens == 32768


def test_columns_are_those_of_the_table():
    tables = pytest.importorskip("bench.record.tables")
    columns = memory.from_probe(DATA / "healthy").columns()
    assert set(columns) <= set(tables.table_schema("engines").names)
    assert json.loads(columns["memory_sources_json"])["kv_cache_bytes"] == "probe"
    assert set(memory.MemoryTerms().columns()) == set(columns), "always the same columns"


@pytest.mark.parametrize("version", ["0.26.0", "0.33.0"])
def test_cuda_activation_is_free_of_the_graph_estimate(tmp_path, version):
    terms = memory.from_probe(write(tmp_path, cuda_report(version=version)))
    assert terms.activation_peak_bytes == 2 * GIB
    assert terms.non_torch_bytes == 2 * GIB
    assert terms.total_consumed_bytes == (None if version == "0.26.0" else 17 * GIB)
    assert terms.weights_bytes == 15 * GIB
    assert terms.weights_tensor_bytes == 14 * GIB
    assert terms.weights_resident_bytes == 15 * GIB
    assert terms.cuda_graph_estimate_bytes == GIB // 2
    assert terms.cuda_graph_bytes == 3 * GIB // 4, "the capture for serving, not the estimate's trial"
    assert terms.kv_cache_tokens == 1000 * 16
    assert terms.torch_allocated_peak_bytes == 17 * GIB
    assert (terms.init_free_bytes, terms.init_total_bytes) == (78 * GIB, 80 * GIB)
    assert terms.linear_kernels == ["AutoAWQMarlinLinearMethod/MacheteLinearKernel"]


def test_cuda_fixed_pool_takes_the_profiling_forward_itself(tmp_path):
    terms = memory.from_probe(write(tmp_path, cuda_report(version="0.33.0", fixed_pool=True)))
    assert terms.activation_peak_bytes == 2 * GIB
    assert terms.non_torch_bytes == (80 - 60 - 17 - 1) * GIB
    assert terms.available_kv_cache_bytes is None


def test_cuda_eager_has_no_graphs(tmp_path):
    report = cuda_report(version="0.33.0")
    report["phases"] = [p for p in report["phases"] if p["name"] != "runner.capture_model"]
    assert memory.from_probe(write(tmp_path, report)).cuda_graph_bytes == 0
    report["phases"] = [p for p in report["phases"] if p["name"] != "compile_or_warm_up_model"]
    assert memory.from_probe(write(tmp_path, report)).cuda_graph_bytes is None, "it never got there"


def test_log_contradiction_is_told_and_rounding_is_not(tmp_path):
    probe = memory.from_probe(write(tmp_path, cuda_report(version="0.33.0")))
    close = LogFacts(weights_bytes=15 * GIB + GIB // 200, available_kv_cache_bytes=50 * GIB)
    assert memory.merge(probe, None, memory.from_log(close)).warnings == []
    far = LogFacts(weights_bytes=15 * GIB + GIB // 20)
    merged = memory.merge(probe, None, memory.from_log(far))
    assert merged.warnings == ["weights_bytes: the probe says 15.000 GiB, the log 15.050 GiB"]
    assert merged.weights_bytes == 15 * GIB


def test_metrics_contradiction(tmp_path):
    probe = memory.from_probe(write(tmp_path, cuda_report(version="0.33.0")))
    merged = memory.merge(probe, memory.from_metrics({"num_gpu_blocks": "999", "block_size": "16"}), None)
    assert merged.warnings == ["kv_cache_blocks: the probe says 1001, the metrics 999"]


def test_without_a_probe_metrics_come_before_the_log():
    log = memory.from_log(LogFacts(weights_bytes=GIB, kv_cache_tokens=5, attention_backend="FLASH_ATTN"))
    merged = memory.merge(None, memory.from_metrics(LABELS), log)
    assert (merged.kv_cache_reported_tokens, merged.sources["kv_cache_reported_tokens"]) == (32768, "metrics")
    assert (merged.weights_bytes, merged.sources["weights_bytes"]) == (GIB, "log")
    assert merged.kv_cache_tokens == 255 * 128


def test_labels_that_are_no_numbers():
    assert memory.from_metrics({"num_gpu_blocks": "None", "block_size": "auto"}) == memory.MemoryTerms()
    assert memory.from_metrics({}) == memory.MemoryTerms()


def test_ranks_largest_cost_smallest_capacity(tmp_path):
    first, second = cuda_report(version="0.33.0"), cuda_report(version="0.33.0")
    second |= {"rank": 1}
    second["budget"] = second["budget"] | {"model_memory_usage": 16 * GIB}
    second["kv_cache"] = second["kv_cache"] | {"num_blocks": 900}
    terms = memory.from_probe(write(tmp_path, second, first))
    assert terms.weights_bytes == 16 * GIB
    assert terms.kv_cache_blocks == 900
    assert [rank["weights_bytes"] for rank in terms.ranks] == [15 * GIB, 16 * GIB], "by rank"
    assert len(json.loads(terms.columns()["ranks_json"])) == 2
    log = memory.from_log(LogFacts(weights_bytes=15 * GIB + GIB // 2))
    assert memory.merge(terms, None, log).warnings == [], "between the ranks' values"


def test_hybrid_cache_groups_share_the_blocks(tmp_path):
    report = cuda_report(version="0.33.0")
    report["kv_cache"]["groups"] = [{"block_size_tokens": 16}, {"block_size_tokens": 32}]
    assert memory.from_probe(write(tmp_path, report)).kv_cache_tokens == 1000 // 2 * 16


def test_draft_model_adds_its_weights(tmp_path):
    report = cuda_report(version="0.33.0")
    report["weights"]["loads"].append(copy.deepcopy(report["weights"]["loads"][0]))
    assert memory.from_probe(write(tmp_path, report)).weights_tensor_bytes == 28 * GIB


@pytest.mark.parametrize(
    "case",
    ["worker_killed_while_loading", "host_out_of_memory", "max_model_len_exceeds_kv", "fp8_missing_operator"],
)
def test_failed_starts_keep_what_they_had(case):
    terms = memory.from_probe(DATA / case)
    assert terms.worker_rss_start_bytes > 100 * 2**20
    assert terms.kv_cache_bytes is None
    loaded = case in ("max_model_len_exceeds_kv", "fp8_missing_operator")
    assert (terms.weights_tensor_bytes is not None) == loaded
    terms.columns()


def test_no_files_and_spoilt_files(tmp_path):
    assert memory.from_probe(tmp_path / "nowhere") == memory.MemoryTerms()
    (tmp_path / "worker-1.json").write_text('{"phases": [')
    (tmp_path / "worker-2.json").write_text("[1]")
    (tmp_path / "worker-3.json.tmp").write_text("{}")
    (tmp_path / "worker-4.json").write_text('{"phases": []}')
    assert memory.from_probe(tmp_path) == memory.MemoryTerms()
    assert memory.merge(None, None, None) == memory.MemoryTerms()


def test_runtime_peaks_are_of_the_open_window_on_cuda():
    def window(base, peak, end=True):
        begin = reading(allocated=base, allocated_peak=base, rss=5, peak=5, at=1.0)
        return {
            "begin": begin,
            "end": reading(allocated=base, allocated_peak=peak, rss=5, peak=9) if end else None,
        }

    current = reading(allocated=10, allocated_peak=25, rss=5, peak=7, at=2.0)
    report = {"runtime": {"windows": [window(10, 90), window(10, 0, end=False)], "current": current}}
    assert memory.runtime_peaks([report]) == {
        "torch_allocated_peak_bytes": 25, "worker_rss_peak_bytes": 7, "activation_peak_bytes": 15,
    }  # fmt: skip
    assert memory.runtime_peaks([report], all_windows=True)["activation_peak_bytes"] == 80
    stale = report["runtime"]["current"] | {"unix_s": 0.5}
    report["runtime"]["current"] = stale
    assert set(memory.runtime_peaks([report]).values()) == {None}, "that reading is older than the window"


def test_runtime_peaks_of_nothing():
    assert set(memory.runtime_peaks([]).values()) == {None}
    assert set(memory.runtime_peaks([{"problems": ["x"]}]).values()) == {None}


def test_the_estimates_trial_capture_is_not_the_graphs(tmp_path):
    report = cuda_report(version="0.33.0")
    report["phases"] = report["phases"][:-2]  # it failed before it captured for serving
    assert memory.from_probe(write(tmp_path, report)).cuda_graph_bytes is None
