"""Each node refuses what it cannot mean, in one sentence with field, value and fix."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bench.config import (
    BenchConfig,
    DeviceConfig,
    EngineConfig,
    ModelConfig,
    TelemetryConfig,
    WorkloadConfig,
    WorkloadPoint,
)
from bench.config.checks import parse_bytes
from bench.config.root import check_request, derived_max_model_len
from bench.errors import BadRequest
from bench.load.schedule import planned_requests

SHAPE = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096, "num_attention_heads": 8}


@pytest.mark.parametrize(
    ("make", "field", "value"),
    [
        (lambda: EngineConfig(max_num_seqs=-1), "engine.max_num_seqs", "-1"),
        (lambda: EngineConfig(max_num_seqs=0), "engine.max_num_seqs", "0"),
        (lambda: EngineConfig(max_num_batched_tokens=0), "engine.max_num_batched_tokens", "0"),
        (lambda: EngineConfig(max_num_seqs=8, max_num_batched_tokens=4), "engine.max_num_batched_tokens", "4"),
        (lambda: EngineConfig(gpu_memory_utilization=1.2), "engine.gpu_memory_utilization", "1.2"),
        (lambda: EngineConfig(gpu_memory_utilization=0.0), "engine.gpu_memory_utilization", "0.0"),
        (lambda: EngineConfig(kv_cache_memory_bytes="4 gigs"), "engine.kv_cache_memory_bytes", "4 gigs"),
        (lambda: EngineConfig(kv_cache_dtype="int3"), "engine.kv_cache_dtype", "int3"),
        (lambda: EngineConfig(port=80), "engine.port", "80"),
        (lambda: EngineConfig(extra_args=["--max-num-seqs=4"]), "engine.extra_args", "--max-num-seqs=4"),
        (lambda: EngineConfig(extra_args=["--max_num_seqs=4"]), "engine.extra_args", "--max_num_seqs=4"),
        (lambda: EngineConfig(extra_args=["--max-num-se", "4"]), "engine.extra_args", "--max-num-se"),
        (lambda: EngineConfig(extra_args=["--no-enforce-eager"]), "engine.extra_args", "--no-enforce-eager"),
        (lambda: EngineConfig(extra_args=["-tp=2"]), "engine.extra_args", "-tp=2"),
        (lambda: EngineConfig(extra_args=["--api-key", "x"]), "engine.extra_args", "--api-key"),
        (lambda: EngineConfig(env={"OMP_NUM_THREADS": "1"}), "engine.env", "OMP_NUM_THREADS"),
        (lambda: EngineConfig(env={"CALIBRATE_PROBE_DIR": "/x"}), "engine.env", "CALIBRATE_PROBE_DIR"),
        (lambda: EngineConfig(cpu_offload_gb=-1), "engine.cpu_offload_gb", "-1"),
        (lambda: WorkloadPoint(concurrency=0), "workload.points[closed-loop].concurrency", "0"),
        (lambda: WorkloadPoint(top_p=0), "workload.points[closed-loop].top_p", "0"),
        (lambda: DeviceConfig(kind="tpu"), "device.kind", "tpu"),
        (lambda: DeviceConfig(indices=[0, 0]), "device.indices", "[0, 0]"),
        (lambda: TelemetryConfig(hz=0), "telemetry.hz", "0"),
        (lambda: TelemetryConfig(hz=2), "telemetry.pss_hz", "4.0"),
        (lambda: ModelConfig(source="path"), "model.path", "None"),
        (lambda: BenchConfig(set="../elsewhere", model=ModelConfig(config=SHAPE)), "set", "../elsewhere"),
        (lambda: BenchConfig(repeats=0, model=ModelConfig(config=SHAPE)), "repeats", "0"),
    ],
)
def test_refusals_name_field_and_value(make, field, value):
    with pytest.raises(BadRequest) as refusal:
        make()
    sentence = str(refusal.value)
    assert sentence.startswith(f"{field}={value}: ")
    assert "\n" not in sentence and len(sentence) > len(f"{field}={value}: ") + 10


def test_flags_and_variables_that_the_harness_leaves_alone_pass():
    EngineConfig(extra_args=["--enable-lora", "--max-loras", "2", "--kv-cache-dtype-skip-layers=1"], env={"A": "b"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4GiB", 4 * 2**30), ("512 MiB", 512 * 2**20), ("1.5GiB", 3 * 2**29), ("2GB", 2 * 10**9), ("1024", 1024), (77, 77),
     (None, None)],
)  # fmt: skip
def test_bytes_with_and_without_units(text, expected):
    assert parse_bytes("f", text) == expected


def test_pool_mode_follows_the_pool():
    assert EngineConfig().kv_pool_mode == "auto"
    assert EngineConfig(kv_cache_memory_bytes="1GiB").kv_pool_mode == "fixed"


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        (None, 4096),
        ({"rope_type": "linear", "factor": 4.0}, 16384),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),
        ({"rope_type": "llama3", "factor": 8.0}, 4096),
    ],
)
def test_longest_request_follows_the_rope_scaling(rope, expected):
    assert derived_max_model_len(SHAPE | {"rope_scaling": rope}) == expected


def _request(**engine):
    return BenchConfig(model=ModelConfig(name="m", config=SHAPE), engine=EngineConfig(**engine))


def test_a_length_beyond_the_models_is_refused_and_one_at_the_limit_is_not():
    check_request(_request(max_model_len=4096), SHAPE)
    with pytest.raises(BadRequest, match=r"^engine\.max_model_len=4097: m takes at most 4096"):
        check_request(_request(max_model_len=4097), SHAPE)


def test_a_workload_longer_than_the_model_allows_is_refused():
    cfg = _request(max_model_len=128)
    cfg.workload.points.append(WorkloadPoint(name="long", input_tokens=120, output_tokens=9))
    with pytest.raises(BadRequest, match=r"^workload\.points\[long\]=prompt and output of 129 tokens: .* at most 128"):
        check_request(cfg, SHAPE)


def test_tensor_parallel_must_divide_the_heads():
    with pytest.raises(BadRequest, match=r"^engine\.tensor_parallel_size=3: m has 8 attention heads"):
        check_request(_request(tensor_parallel_size=3), SHAPE)


WORKLOADS = sorted((Path(__file__).resolve().parents[2] / "conf" / "workload").glob("*.yaml"))


@pytest.mark.parametrize("file", WORKLOADS, ids=lambda file: file.stem)
def test_every_workload_of_the_tree_can_be_sent(file):
    """A key that is wrong or a file that is missing shows here, before an engine has started for it."""
    workload = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(WorkloadConfig), OmegaConf.load(file)))
    assert isinstance(workload, WorkloadConfig) and workload.name == file.stem
    for point in workload.points:
        spec = point.spec(1)
        assert all(request.input_tokens > 0 for request, _ in zip(planned_requests(spec), range(500), strict=False))


def test_the_trace_in_the_tree_is_replayed():
    spec = WorkloadPoint(pattern="trace", trace_file="conf/workload/traces/office-minute.jsonl").spec(0)
    assert spec.total == 42 and spec.longest_request_tokens <= 540


def test_the_sampler_is_slower_where_it_takes_its_core_from_the_engine():
    assert [TelemetryConfig().samples_per_s(kind) for kind in ("cuda", "cpu")] == [20.0, 4.0]
    assert TelemetryConfig(hz=50).samples_per_s("cpu") == 50
