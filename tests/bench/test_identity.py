"""Two starts are one point exactly when the same thing is measured."""

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bench.config import (
    BenchConfig,
    DeviceConfig,
    EngineConfig,
    ModelConfig,
    QuantizationConfig,
    WorkloadConfig,
    WorkloadPoint,
)
from bench.config.knee import KneeConfig
from bench.identity import content_hash, point_id

SHAPE = {"architectures": ["LlamaForCausalLM"], "vocab_size": 100, "num_attention_heads": 8}


def _cfg(**changes):
    base = BenchConfig(
        model=ModelConfig(name="m", config=SHAPE),
        quantization=QuantizationConfig(name="bf16"),
        engine=EngineConfig(max_num_seqs=8),
        workload=WorkloadConfig(name="w", points=[WorkloadPoint(name="a")]),
    )
    return dataclasses.replace(base, **changes)


def _id(cfg, shape=SHAPE, kind="cpu", launcher="spawn"):
    return point_id(cfg, shape, kind, launcher)


@pytest.mark.parametrize(
    "same",
    [
        _cfg(set="other"),
        _cfg(repeat=3, repeats=5),
        _cfg(engine=EngineConfig(max_num_seqs=8, port=8123, startup_timeout_s=5)),
        _cfg(engine_log=False),
        _cfg(rerun="all"),
    ],
)
def test_where_and_how_often_is_not_identity(same):
    assert _id(same) == _id(_cfg())


@pytest.mark.parametrize(
    "other",
    [
        _cfg(engine=EngineConfig(max_num_seqs=9)),
        _cfg(engine=EngineConfig(max_num_seqs=8, env={"VLLM_USE_V2_MODEL_RUNNER": "0"})),
        _cfg(quantization=QuantizationConfig(name="bf16", dtype="float32")),
        _cfg(workload=WorkloadConfig(name="w", points=[WorkloadPoint(name="a", concurrency=9)])),
        _cfg(model=ModelConfig(name="m", source="path", path="/x", config=SHAPE)),
    ],
)
def test_what_is_measured_is_identity(other):
    assert _id(other) != _id(_cfg())


def test_shape_device_and_launcher_are_identity():
    ids = {
        _id(_cfg()),
        _id(_cfg(), SHAPE | {"vocab_size": 101}),
        _id(_cfg(), kind="cuda"),
        _id(_cfg(), launcher="warm"),
    }
    assert len(ids) == 4


def test_key_order_does_not_matter():
    assert content_hash({"a": 1, "b": [2]}) == content_hash({"b": [2], "a": 1})


def test_a_variable_that_the_engine_inherits_makes_another_environment(monkeypatch):
    from bench import environment
    from bench.config import DeviceConfig

    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    monkeypatch.setattr(environment, "device_kind", lambda device: "cpu")
    plain = environment.collect(DeviceConfig(kind="cpu"))["environment_id"]
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    assert environment.collect(DeviceConfig(kind="cpu"))["environment_id"] == plain
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    assert environment.collect(DeviceConfig(kind="cpu"))["environment_id"] != plain


def test_points_measured_before_a_setting_existed_are_still_the_same_points():
    """A set of the first version goes on where it was left: its ids are those of the same request today."""
    files = sorted(Path("results/reference-cpu/engines").glob("*.parquet"))
    assert files
    for path in files[:12]:
        (row,) = pq.read_table(path, partitioning=None).to_pylist()
        asked = json.loads(row["request_json"])
        points = [WorkloadPoint(**point) for point in asked["workload"]["points"]]
        cfg = BenchConfig(
            model=ModelConfig(**asked["model"]),
            quantization=QuantizationConfig(**asked["quantization"]),
            engine=EngineConfig(**asked["engine"]),
            workload=WorkloadConfig(name=asked["workload"]["name"], points=points),
            device=DeviceConfig(**asked["device"]),
        )
        shape = json.loads(row["model_config_json"])
        assert point_id(cfg, shape, row["device_kind"], row["launcher"]) == row["point_id"]


def test_a_knee_is_identity_and_who_sends_is_not():
    def of(**changes):
        return _id(_cfg(workload=WorkloadConfig(name="w", points=[WorkloadPoint(name="a", **changes)])))

    plain = of()
    assert of(workers=3, save_requests=True) == plain
    knee = of(knee=KneeConfig(slo={"ttft_p99_s": 0.5}))
    assert knee != plain and of(knee=KneeConfig(slo={"ttft_p99_s": 0.4})) != knee
    assert of(slo_ttft_s=0.5) != plain and of(duration_s=5.0, num_requests=32) != plain
