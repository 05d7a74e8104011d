"""The tensors that one rank of vLLM holds after loading a model, and their bytes.

They are the tensors vLLM's model classes create, before kernels repack them (a repacked weight keeps its size
to within a fraction of a per cent): fused QKV and gate/up, the vocabulary padded to 64 rows, quantized layers
with scales and zero points, 16-bit embeddings and head, the RoPE table and the four scale buffers of every
attention operator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from analysis.arithmetic import models
from analysis.arithmetic.allocator import allocated_bytes
from analysis.arithmetic.dtypes import model_dtype
from analysis.arithmetic.errors import MalformedConfig
from analysis.arithmetic.layout import Attention, Embedding, Experts, Linear, Part, RopeCache, Vector
from analysis.arithmetic.parallel import Shard
from analysis.arithmetic.schemes import Quantization, Target, quantization
from analysis.arithmetic.tensor import Tensor

DEFAULT_VLLM_VERSION = "0.32.0"

FROM_CONFIG: Final[dict[str, Any]] = {}
"""Stands for "the quantization_config in config.json"; None is "none, whatever config.json says"."""


def parse_version(version: str) -> tuple[int, ...]:
    """`0.32.0+cpu` is (0, 32, 0). Raises ValueError on what is no version."""
    release = version.split("+")[0].split("-")[0]
    numbers = []
    for piece in release.split("."):
        digits = piece[: len(piece) - len(piece.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    if len(numbers) < 2:
        raise ValueError(f"vllm_version {version!r} is not a version such as {DEFAULT_VLLM_VERSION}")
    return tuple(numbers)


def weight_tensors(
    config: Mapping[str, Any],
    *,
    dtype: str | None = None,
    quantization_config: Mapping[str, Any] | None = FROM_CONFIG,
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    pipeline_rank: int = 0,
    max_model_len: int | None = None,
    vllm_version: str = DEFAULT_VLLM_VERSION,
) -> list[Tensor]:
    """Every parameter and buffer of one rank, in the order of the model's modules.

    Args:
        config: the content of config.json.
        dtype: vLLM's --dtype; None or "auto" follows config.json.
        quantization_config: the block to apply; left out, the one in `config`; None, none at all.
        max_model_len: accepted because a caller has it; no tensor of the registered architectures depends on
        it.
        vllm_version: GPTQ tensors differ before 0.30.

    Raises:
        UnknownArchitecture, MalformedConfig, UnsupportedQuantization, UnsupportedPartition.
    """
    if max_model_len is not None and max_model_len < 1:
        raise MalformedConfig("max_model_len", f"is {max_model_len}; it must be 1 or more")
    shard = Shard(tensor_parallel_size, pipeline_parallel_size, pipeline_rank)
    target = Target(model_dtype(config, dtype), parse_version(vllm_version), tensor_parallel_size)
    block = config.get("quantization_config") if quantization_config is FROM_CONFIG else quantization_config
    scheme = quantization(block)
    made = [tensor for part in models.parts(config, shard) for tensor in _tensors(part, scheme, target)]
    return [t for t in made if t.kind == "parameter"] + [t for t in made if t.kind == "buffer"]


def _tensors(part: Part, scheme: Quantization, target: Target) -> Iterator[Tensor]:
    match part:
        case Linear():
            yield from scheme.of(part).linear(part, target)
            if part.bias:
                yield Tensor(f"{part.name}.bias", (part.rank_output,), target.dtype, "parameter", part.group)
        case Experts():
            yield from scheme.of(part).experts(part, target)
        case Embedding():
            yield Tensor(part.name, (part.rank_rows, part.columns), target.dtype, "parameter", part.group)
        case Vector():
            yield Tensor(part.name, (part.size,), target.dtype, "parameter", part.group)
        case RopeCache():
            shape = (part.positions, part.rotary_dim)
            yield Tensor(f"{part.name}.cos_sin_cache", shape, target.dtype, "buffer", "rope")
        case Attention():
            yield from scheme.attention(part, target)
            for name in ("_k_scale", "_v_scale", "_q_scale", "_prob_scale"):
                yield Tensor(f"{part.name}.{name}", (), "float32", "buffer", "kv_scales")


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Bytes of one rank.

    `allocator_rounded` is what torch's CUDA caching allocator counts for the same tensors, which is what vLLM
    reports as the memory its weights take; `by_group` splits parameters and buffers by what they serve.
    """

    parameters: int
    buffers: int
    allocator_rounded: int
    by_group: dict[str, int]

    @property
    def total(self) -> int:
        """Parameters and buffers, unrounded."""
        return self.parameters + self.buffers


def weight_bytes(config: Mapping[str, Any], **options: Any) -> WeightBytes:
    """Bytes of `weight_tensors(config, **options)`; the same options and errors."""
    return total_bytes(weight_tensors(config, **options))


def total_bytes(tensors: list[Tensor]) -> WeightBytes:
    groups: dict[str, int] = {}
    for tensor in tensors:
        groups[tensor.group] = groups.get(tensor.group, 0) + tensor.bytes
    return WeightBytes(
        parameters=sum(t.bytes for t in tensors if t.kind == "parameter"),
        buffers=sum(t.bytes for t in tensors if t.kind == "buffer"),
        allocator_rounded=allocated_bytes(t.bytes for t in tensors),
        by_group=groups,
    )
