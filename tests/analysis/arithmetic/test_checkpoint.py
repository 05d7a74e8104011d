"""Checkpoint sizes against the totals that model cards publish, and headers of real and broken files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from analysis import catalogue
from analysis.arithmetic import CorruptCheckpoint, MalformedConfig, checkpoint_bytes, read_safetensors_header
from analysis.arithmetic.checkpoint import checkpoint_tensors

# metadata.total_size of the published model.safetensors.index.json: the tensors' bytes, headers excepted.
PUBLISHED_TOTAL_BYTES = {
    "qwen2.5-7b": 15231233024, "llama-3.1-8b": 16060522496, "mistral-7b": 14496047104,
    "qwen3-8b": 16381470720, "qwen3-30b-a3b": 61064245248,
}  # fmt: skip


def with_format(model: str, quantization: str) -> dict[str, Any]:
    return catalogue.compose(catalogue.load_model(model), catalogue.load_quantization(quantization))


@pytest.mark.parametrize("name", PUBLISHED_TOTAL_BYTES)
def test_sizes_are_the_published_ones(name: str) -> None:
    config = with_format(name, "bf16")
    assert sum(t.bytes for t in checkpoint_tensors(config)) == PUBLISHED_TOTAL_BYTES[name]
    assert 0 < checkpoint_bytes(config) / PUBLISHED_TOTAL_BYTES[name] - 1 < 1e-4


def test_names_are_those_of_a_checkpoint() -> None:
    names = {t.name for t in checkpoint_tensors(with_format("tiny-qwen2", "bf16"))}
    assert "model.layers.3.self_attn.k_proj.bias" in names and "model.layers.0.mlp.up_proj.weight" in names
    assert "lm_head.weight" not in names, "tied"
    assert not any("qkv" in name or "cos_sin" in name for name in names)
    names = {t.name for t in checkpoint_tensors(with_format("tiny-qwen3-moe", "gptq"))}
    assert (
        "model.layers.2.mlp.experts.31.down_proj.qweight" in names
        and "model.layers.2.mlp.gate.weight" in names
    )
    assert "model.layers.0.self_attn.o_proj.g_idx" in names


@pytest.mark.parametrize(
    "fmt", [f for f in catalogue.quantization_names() if f not in ("fp32", "bf16", "fp16")]
)
def test_a_quantized_checkpoint_is_smaller(fmt: str) -> None:
    node = catalogue.load_quantization(fmt)
    small, plain = (
        checkpoint_bytes(with_format("qwen2.5-7b", fmt)),
        checkpoint_bytes(with_format("qwen2.5-7b", "bf16")),
    )
    # 7.6 B parameters, 1.1 B of them embeddings that stay 16-bit.
    floor = (1.09 * 2 + 6.52 * node.weight_bits / 8) * 1e9
    assert floor < small < 1.07 * floor < plain


def test_a_checkpoint_needs_its_dtype() -> None:
    with pytest.raises(MalformedConfig, match="torch_dtype"):
        checkpoint_bytes(catalogue.load_model("qwen2.5-7b").config)


def written(path: Path, tensors: dict[str, tuple[str, list[int], int]]) -> Path:
    """A safetensors file with these tensors (dtype, shape, bytes), all zeros."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + size]}
        place += size
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(place))
    return path


GOOD = {"a": ("BF16", [3, 4], 24), "b": ("F32", [], 4), "c": ("I32", [0, 5], 0), "d": ("F8_E4M3", [7], 7)}


def test_a_whole_file(tmp_path: Path) -> None:
    path = written(tmp_path / "m.safetensors", GOOD)
    header = read_safetensors_header(path)
    assert header.tensors == {
        name: (dtype, tuple(shape), size) for name, (dtype, shape, size) in GOOD.items()
    }
    assert header.tensor_bytes == 35 and header.metadata == {"format": "pt"}
    assert header.header_bytes + header.tensor_bytes == header.file_bytes == path.stat().st_size


def test_it_agrees_with_the_library(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    library = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "m.safetensors"
    library.save_file(
        {"x": numpy.ones((3, 5), numpy.float16), "y": numpy.arange(4)}, path, metadata={"k": "v"}
    )
    header = read_safetensors_header(path)
    assert header.tensors == {"x": ("F16", (3, 5), 30), "y": ("I64", (4,), 32)} and header.metadata == {
        "k": "v"
    }


def test_a_written_checkpoint_has_the_expected_size(tmp_path: Path) -> None:
    """The prediction against a file that the real library wrote."""
    numpy = pytest.importorskip("numpy")
    library = pytest.importorskip("safetensors.numpy")
    config = {
        **with_format("tiny-llama", "fp16"),
        "num_hidden_layers": 1,
        "vocab_size": 512,
        "hidden_size": 128,
    }
    kinds = {"float16": numpy.float16}
    tensors = {t.name: numpy.zeros(t.shape, kinds[t.dtype]) for t in checkpoint_tensors(config)}
    path = tmp_path / "model.safetensors"
    library.save_file(tensors, path, metadata={"format": "pt"})
    header = read_safetensors_header(path)
    assert header.tensor_bytes == sum(t.bytes for t in checkpoint_tensors(config))
    assert abs(path.stat().st_size - checkpoint_bytes(config)) <= 64


@pytest.mark.parametrize("kept", [0, 5, 8, 60, -1, -20])
def test_a_truncated_file(tmp_path: Path, kept: int) -> None:
    path = written(tmp_path / "m.safetensors", GOOD)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CorruptCheckpoint, match="m.safetensors is truncated"):
        read_safetensors_header(path)


def raw_file(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        (b"{not json", b"", "not JSON"),
        (b"\xff\xfe\x00", b"", "not JSON"),
        (b"[1, 2]", b"", "not a JSON object"),
        (b'{"a": 3}', b"", "lacks a shape"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', b"1234", "cannot take 4 bytes"),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', b"1234", "lacks a shape"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}', b"1234", "at offsets"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', b"12345678", "gap or overlap"),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
            b"12345",
            "1 bytes that belong to no tensor",
        ),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
            b' "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}}',
            b"123456",
            "gap or overlap",
        ),
    ],
)
def test_a_corrupt_header(tmp_path: Path, header: bytes, data: bytes, said: str) -> None:
    with pytest.raises(CorruptCheckpoint, match=said):
        read_safetensors_header(raw_file(tmp_path / "m.safetensors", header, data))


def test_something_else_altogether(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("<!DOCTYPE html><html>Access to this model is restricted</html>")
    with pytest.raises(CorruptCheckpoint, match="no safetensors file"):
        read_safetensors_header(path)
    with pytest.raises(FileNotFoundError):
        read_safetensors_header(tmp_path / "absent.safetensors")
