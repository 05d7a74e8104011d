"""Rules of single releases, with the values their own logs and sources show."""

from __future__ import annotations

import pytest

from analysis import defaults
from analysis.defaults import Batch
from analysis.gpus import GIB

H100 = 81559 * 2**20


@pytest.mark.parametrize(
    ("version", "share"), [((0, 8, 5), 0.9), ((0, 19, 1), 0.9), ((0, 20, 0), 0.92), ((0, 33), 0.92)]
)
def test_utilization_rose_with_0_20(version, share):
    assert defaults.gpu_memory_utilization(version) == share


@pytest.mark.parametrize(
    ("version", "total", "name", "expected"),
    [
        ((0, 19, 0), H100, "NVIDIA H100 80GB HBM3", (1024, 8192)),  # what the public H100 starts ran with
        ((0, 8, 5), 80 * GIB, "NVIDIA A100-SXM4-80GB", (1024, 8192)),  # before A100 was excepted
        ((0, 9, 0), 80 * GIB, "NVIDIA A100-SXM4-80GB", (256, 2048)),
        ((0, 27, 0), 179 * GIB, "NVIDIA B200", (1024, 8192)),
        ((0, 28, 0), 179 * GIB, "NVIDIA B200", (1024, 16384)),
        ((0, 32, 0), 24 * GIB, "NVIDIA GeForce RTX 4090", (256, 2048)),
    ],
)
def test_batch_defaults_by_release_and_gpu(version, total, name, expected):
    assert defaults.batch_defaults(version, total, name) == expected


def test_given_limits_are_kept_and_defaults_fitted_to_them():
    default = (1024, 8192)
    assert defaults.resolve_batch((0, 32), default, 64, 512, 4096) == Batch(64, 512)
    assert defaults.resolve_batch((0, 32), default, None, 512, 4096) == Batch(512, 512)
    assert defaults.resolve_batch((0, 10, 0), default, None, 512, 4096) == Batch(1024, 512)
    assert defaults.resolve_batch((0, 32), default, 2, None, 1000) == Batch(2, 2000)
    assert defaults.resolve_batch((0, 11, 0), default, 2, None, 1000) == Batch(2, 8192)
    assert defaults.resolve_batch((0, 32), default, None, None, 4096, throughput_mode=True) == Batch(2048, 16384)


@pytest.mark.parametrize(
    ("version", "batch", "count", "largest"),
    [
        ((0, 8, 5), Batch(1024, 8192), 67, 512),  # "67 graphs" of the releases with steps of 8
        ((0, 9, 2), Batch(8, 8192), 67, 512),  # where max_num_seqs did not count yet
        ((0, 10, 2), Batch(8, 8192), 5, 16),
        ((0, 19, 0), Batch(1024, 8192), 51, 512),  # as counted in the public H100 logs
        ((0, 32, 0), Batch(64, 8192), 19, 128),
        ((0, 28, 0), Batch(37, 2048), 12, 72),
        ((0, 29, 0), Batch(37, 2048), 13, 72),  # 37 itself came with 0.29
    ],
)
def test_capture_sizes_by_release(version, batch, count, largest):
    sizes = defaults.capture_sizes(version, batch)
    assert (len(sizes), sizes[-1]) == (count, largest)
    assert list(sizes) == sorted(set(sizes))


def test_a_small_token_budget_is_captured_whole_since_0_20_1():
    assert defaults.capture_sizes((0, 20, 0), Batch(64, 100))[-1] == 96
    assert defaults.capture_sizes((0, 20, 1), Batch(64, 100))[-1] == 100


def test_what_kind_of_graphs():
    assert defaults.cudagraph_mode((0, 10, 2)) == "PIECEWISE"
    assert defaults.cudagraph_mode((0, 11, 0)) == "FULL_AND_PIECEWISE"
    assert defaults.cudagraph_mode((0, 32, 0), optimization_level=0) == "NONE"
    assert defaults.cudagraph_mode((0, 32, 0), optimization_level=1) == "PIECEWISE"


@pytest.mark.parametrize(
    ("version", "architecture", "mixture", "quantized", "runner"),
    [
        ((0, 20, 2), "Qwen3ForCausalLM", False, False, "v1"),
        ((0, 22, 0), "Qwen3ForCausalLM", False, False, "v2"),
        ((0, 22, 0), "Qwen3ForCausalLM", False, True, "v1"),
        ((0, 22, 0), "LlamaForCausalLM", False, False, "v1"),
        ((0, 23, 0), "LlamaForCausalLM", False, False, "v2"),
        ((0, 24, 0), "LlamaForCausalLM", False, True, "v2"),
        ((0, 24, 0), "Qwen2ForCausalLM", False, False, "v1"),
        ((0, 25, 1), "Qwen2ForCausalLM", False, False, "v2"),
        ((0, 25, 1), "Qwen3MoeForCausalLM", True, False, "v1"),
        ((0, 25, 1), "DeepseekV2ForCausalLM", True, False, "v2"),
        ((0, 29, 0), "Qwen3MoeForCausalLM", True, False, "v2"),
    ],
)
def test_model_runner(version, architecture, mixture, quantized, runner):
    assert defaults.model_runner(version, architecture, mixture=mixture, quantized=quantized) == runner


def test_the_runner_can_be_forced():
    assert defaults.model_runner((0, 32), "X", mixture=False, quantized=False, forced=False) == "v1"
    assert defaults.model_runner((0, 19), "X", mixture=False, quantized=False, forced=True) == "v2"


@pytest.mark.parametrize(
    ("version", "runner", "setting", "reserved"),
    [
        ((0, 17, 1), "v1", True, False),
        ((0, 19, 0), "v1", None, False),
        ((0, 19, 0), "v1", True, True),
        ((0, 20, 0), "v1", None, True),
        ((0, 25, 1), "v1", None, True),
        ((0, 25, 1), "v2", None, False),
        ((0, 28, 0), "v2", True, False),
        ((0, 29, 0), "v2", None, True),
        ((0, 32, 0), "v2", False, False),
    ],
)
def test_whether_graphs_are_reserved_in_the_budget(version, runner, setting, reserved):
    assert defaults.graph_estimate_in_budget(version, runner, setting) is reserved


def test_tokens_in_flight():
    assert defaults.in_flight_tokens((0, 25), "v2", 8192, 1) == 8192
    assert defaults.in_flight_tokens((0, 26), "v2", 8192, 1) == 16384
    assert defaults.in_flight_tokens((0, 26), "v1", 8192, 4) == 32768


def test_yarn_counts_from_its_original_length_until_0_29():
    config = {
        "max_position_embeddings": 40960,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    }
    assert defaults.length_limit((0, 29), config).default == 131072
    assert defaults.length_limit((0, 30), config).default == 40960


def test_longrope_starts_from_its_original_length():
    config = {
        "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]},
    }  # fmt: skip
    assert defaults.length_limit((0, 32), config) == defaults.LengthLimit(4096, 131072)


def test_a_config_without_a_length_gets_2048():
    assert defaults.length_limit((0, 32), {}).default == 2048


def test_releases_outside_the_sources_are_noted():
    assert defaults.version_note((0, 33, 1)) is None
    assert "newer" in (defaults.version_note((0, 40)) or "")
    assert "older" in (defaults.version_note((0, 6, 3)) or "")
