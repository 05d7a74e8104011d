"""Checkpoints on disk: their expected size, and the header of a safetensors file.

The format: 8 bytes little-endian length, that many bytes of JSON, then the tensors
(https://github.com/huggingface/safetensors, README "Format").
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from analysis.arithmetic import models
from analysis.arithmetic.dtypes import canonical
from analysis.arithmetic.errors import CorruptCheckpoint, MalformedConfig
from analysis.arithmetic.layout import Array, Embedding, Experts, Linear, Part, Vector
from analysis.arithmetic.parallel import Shard
from analysis.arithmetic.schemes import PLAIN, Format, Quantization, quantization
from analysis.arithmetic.schemes.four_bit_float import Mxfp4
from analysis.arithmetic.tensor import Tensor

MAX_HEADER_BYTES = 100_000_000
"""The safetensors library refuses longer headers."""
_LENGTH_BYTES = 8
_ELEMENT_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64, "BOOL": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
_STORED = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


def checkpoint_tensors(config: Mapping[str, Any]) -> list[Tensor]:
    """The tensors of a published checkpoint with this config.json: unfused, unpadded, a tied head left
    out."""
    declared = config.get("torch_dtype") or config.get("dtype")
    if not isinstance(declared, str):
        raise MalformedConfig("torch_dtype", "is missing" if declared is None else f"is {declared!r}, not a dtype")
    scheme = quantization(config.get("quantization_config"))
    dtype = canonical(declared)
    return [tensor for part in models.parts(config, Shard()) for tensor in _stored(part, scheme, dtype)]


def _stored(part: Part, scheme: Quantization, dtype: str) -> Iterator[Tensor]:
    match part:
        case Linear():
            form = scheme.of(part) if part.quantizable else PLAIN
            for name, rows in zip(part.checkpoint_names(), part.checkpoint_rows(), strict=True):
                yield from form.matrix(name, rows, part.input_size, dtype)
                if part.bias:
                    yield Tensor(f"{name}.bias", (rows,), dtype)
        case Experts():
            yield from _stored_experts(part, scheme.of(part), dtype)
        case Embedding():
            yield Tensor(part.name, (part.rows, part.columns), dtype)
        case Vector():
            yield Tensor(part.name, (part.size,), part.dtype or dtype)
        case Array() if part.kind == "parameter":
            yield Tensor(part.name, part.whole or part.shape, part.dtype or dtype)


def _stored_experts(part: Experts, form: Format, dtype: str) -> Iterator[Tensor]:
    """One tensor per expert and matrix, or two stacks per layer where the publisher stacks them."""
    count, hidden, inner = part.count, part.hidden_size, part.intermediate_size
    if part.stacked:
        both = ((part.stacked[0], 2 * inner, hidden), (part.stacked[1], hidden, inner))
        for name, rows, columns in both:
            prefix = f"{part.checkpoint}.{name}"
            if isinstance(form, Mxfp4):
                yield from form.stack(prefix, count, rows, columns, dtype)
            elif form is PLAIN:
                yield Tensor(prefix, (count, rows, columns), dtype)
            else:  # quantizers unstack the experts first
                for expert in range(count):
                    yield from form.matrix(f"{part.checkpoint}.{expert}.{name}", rows, columns, dtype)
            if part.biases:
                yield Tensor(f"{prefix}_bias", (count, rows), dtype)
        return
    for expert in range(count):
        prefix = f"{part.checkpoint}.{expert}"
        for place, name in enumerate(part.stored):
            rows, columns = (hidden, inner) if place == 2 else (inner, hidden)
            yield from form.matrix(f"{prefix}.{name}", rows, columns, dtype)


def checkpoint_bytes(config: Mapping[str, Any]) -> int:
    """Expected size of the checkpoint's safetensors files, headers included, if it were one file.

    Shards add some kilobytes; GPTQ exports often add zero biases to every layer (under 0.1 % of the size).
    Compare with a tolerance of 1 %.
    """
    tensors = checkpoint_tensors(config)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + tensor.bytes
        header[tensor.name] = {
            "dtype": _STORED[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end],
        }  # fmt: skip
        start = end
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return _LENGTH_BYTES + -(-length // 8) * 8 + start


@dataclass(frozen=True, slots=True)
class CheckpointHeader:
    """What a safetensors file says about itself."""

    path: Path
    file_bytes: int
    header_bytes: int
    tensors: dict[str, tuple[str, tuple[int, ...], int]]
    """Name to (dtype as stored, such as BF16; shape; bytes)."""
    metadata: dict[str, str]

    @property
    def tensor_bytes(self) -> int:
        return sum(size for _, _, size in self.tensors.values())


def read_safetensors_header(path: str | Path) -> CheckpointHeader:
    """Read and check the header: no tensor data is read, only its extent.

    Raises CorruptCheckpoint (one sentence with the file's name) on a truncated file or a broken header,
    OSError when the file cannot be read.
    """
    path = Path(path)
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        lead = file.read(_LENGTH_BYTES)
        if len(lead) < _LENGTH_BYTES:
            raise CorruptCheckpoint(f"{path} is truncated: {file_bytes} bytes, fewer than the 8 of a header length")
        length = int.from_bytes(lead, "little")
        if length > MAX_HEADER_BYTES:
            raise CorruptCheckpoint(f"{path} is no safetensors file: it declares a header of {length} bytes")
        if _LENGTH_BYTES + length > file_bytes:
            raise CorruptCheckpoint(f"{path} is truncated: {file_bytes} bytes, its header alone ends at {8 + length}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as broken:
        raise CorruptCheckpoint(f"{path} has a header that is not JSON ({broken})") from None
    if not isinstance(header, dict):
        raise CorruptCheckpoint(f"{path} has a header that is not a JSON object")
    metadata = header.pop("__metadata__", None) or {}
    tensors = {name: _entry(path, name, entry) for name, entry in header.items()}
    _check_extent(path, header, file_bytes - _LENGTH_BYTES - length)
    return CheckpointHeader(path, file_bytes, _LENGTH_BYTES + length, tensors, dict(metadata))


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int]:
    """One tensor's dtype, shape and bytes, with the three checked against each other."""

    def whole(values: Any) -> bool:
        return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)

    if not isinstance(entry, dict) or not whole(entry.get("shape")) or not whole(entry.get("data_offsets")):
        raise CorruptCheckpoint(f"{path}: the header entry of tensor {name!r} lacks a shape or offsets")
    dtype, shape, offsets = entry.get("dtype"), entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or len(offsets) != 2 or offsets[1] < offsets[0]:
        raise CorruptCheckpoint(f"{path}: tensor {name!r} has dtype {dtype!r} at offsets {offsets}")
    size = offsets[1] - offsets[0]
    bits = _ELEMENT_BITS.get(dtype)
    if bits is not None and -(-prod(shape) * bits // 8) != size:
        raise CorruptCheckpoint(f"{path}: tensor {name!r}, {dtype} of shape {shape}, cannot take {size} bytes")
    return dtype, tuple(shape), size


def _check_extent(path: Path, header: Mapping[str, Any], data_bytes: int) -> None:
    """The tensors follow one another without gap or overlap up to the end of the file."""
    place = 0
    for start, end in sorted(entry["data_offsets"] for entry in header.values()):
        if start != place:
            raise CorruptCheckpoint(
                f"{path}: the tensors leave a gap or overlap at byte {min(start, place)} of the data"
            )
        place = end
    if place > data_bytes:
        raise CorruptCheckpoint(
            f"{path} is truncated: its tensors need {place} bytes of data, the file has {data_bytes}"
        )
    if place < data_bytes:
        raise CorruptCheckpoint(f"{path} holds {data_bytes - place} bytes that belong to no tensor")
