"""The tensors that one rank of vLLM holds after loading a model, and their bytes.

They are the tensors vLLM's model classes create, before kernels repack them (a repacked weight keeps its size
to within a fraction of a per cent): fused QKV and gate/up, the vocabulary padded to 64 rows, quantized layers
with scales and zero points, 16-bit embeddings and head, the RoPE table and the four scale buffers of every
attention operator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from analysis.arithmetic import models
from analysis.arithmetic.allocator import allocated_bytes
from analysis.arithmetic.dtypes import model_dtype
from analysis.arithmetic.errors import MalformedConfig
from analysis.arithmetic.layout import Array, Attention, Embedding, Experts, Linear, Part, RopeCache, Vector
from analysis.arithmetic.parallel import Shard
from analysis.arithmetic.schemes import PLAIN, Platform, Quantization, Target, quantization
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
    platform: Platform = "cuda",
) -> list[Tensor]:
    """Every parameter and buffer of one rank, in the order of the model's modules.

    Args:
        config: the content of config.json.
        dtype: vLLM's --dtype; None or "auto" follows config.json.
        quantization_config: the block to apply; left out, the one in `config`; None, none at all.
        max_model_len: accepted because a caller has it; no tensor of the registered architectures depends on
        it.
        vllm_version: GPTQ tensors differ before 0.30, MXFP4 experts before 0.20.
        platform: `cuda` or `cpu`; MXFP4 experts are padded to what the platform's kernel takes.

    Raises:
        UnknownArchitecture, MalformedConfig, UnsupportedQuantization, UnsupportedPartition.
    """
    return _held(
        config,
        dtype=dtype,
        quantization_config=quantization_config,
        tensor_parallel_size=tensor_parallel_size,
        pipeline_parallel_size=pipeline_parallel_size,
        pipeline_rank=pipeline_rank,
        max_model_len=max_model_len,
        vllm_version=vllm_version,
        platform=platform,
    )[0]


def _held(
    config: Mapping[str, Any],
    *,
    dtype: str | None = None,
    quantization_config: Mapping[str, Any] | None = FROM_CONFIG,
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    pipeline_rank: int = 0,
    max_model_len: int | None = None,
    vllm_version: str = DEFAULT_VLLM_VERSION,
    platform: Platform = "cuda",
) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of `weight_tensors`, and those that a GPU engine makes from them after loading, beside them."""
    if max_model_len is not None and max_model_len < 1:
        raise MalformedConfig("max_model_len", f"is {max_model_len}; it must be 1 or more")
    shard = Shard(tensor_parallel_size, pipeline_parallel_size, pipeline_rank)
    target = Target(model_dtype(config, dtype), parse_version(vllm_version), tensor_parallel_size, platform)
    block = config.get("quantization_config") if quantization_config is FROM_CONFIG else quantization_config
    scheme = quantization(block)
    parts = models.parts(config, shard)
    made = [tensor for part in parts for tensor in _tensors(part, scheme, target)]
    derived = [
        Tensor(f"{part.name}.derived{place}", shape, target.dtype, "buffer", "attention")
        for part in parts
        if isinstance(part, Attention) and platform == "cuda"
        for place, shape in enumerate(part.derived)
    ]
    return [t for t in made if t.kind == "parameter"] + [t for t in made if t.kind == "buffer"], derived


def _tensors(part: Part, scheme: Quantization, target: Target) -> Iterator[Tensor]:
    match part:
        case Linear():
            form = scheme.of(part) if part.quantizable else PLAIN
            yield from form.linear(part, target)
            if part.bias:
                yield Tensor(f"{part.name}.bias", (part.rank_output,), target.dtype, "parameter", part.group)
        case Experts():
            yield from scheme.of(part).experts(part, target)
        case Embedding():
            yield Tensor(part.name, (part.rank_rows, part.columns), target.dtype, "parameter", part.group)
        case Vector():
            yield Tensor(part.name, (part.size,), part.dtype or target.dtype, "parameter", part.group)
        case Array():
            yield Tensor(part.name, part.shape, part.dtype or target.dtype, part.kind, part.group)
        case RopeCache():
            shape = (part.positions, part.rotary_dim)
            own = part.cuda_dtype if part.cuda_dtype and target.platform == "cuda" else part.dtype
            yield Tensor(f"{part.name}.{part.buffer}", shape, own or target.dtype, "buffer", "rope")
        case Attention():
            if part.kind != "mla":  # whose scales vLLM keeps as buffers alone
                yield from scheme.attention(part, target)
            for name in ("_k_scale", "_v_scale", "_q_scale", "_prob_scale"):
                yield Tensor(f"{part.name}.{name}", (), "float32", "buffer", "kv_scales")


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Bytes of one rank.

    `derived` is what loading adds on a GPU beside them (MLA's expansion, kept again in the form that decoding wants).
    `allocator_rounded` is what torch's CUDA caching allocator counts for all of it, which is what vLLM
    reports as the memory its weights take; `by_group` splits parameters and buffers by what they serve.
    """

    parameters: int
    buffers: int
    allocator_rounded: int
    by_group: dict[str, int]
    derived: int = 0

    @property
    def total(self) -> int:
        """Parameters and buffers, unrounded."""
        return self.parameters + self.buffers


def weight_bytes(config: Mapping[str, Any], **options: Any) -> WeightBytes:
    """Bytes of `weight_tensors(config, **options)`; the same options and errors."""
    return total_bytes(*_held(config, **options))


def total_bytes(tensors: list[Tensor], derived: Sequence[Tensor] = ()) -> WeightBytes:
    groups: dict[str, int] = {}
    for tensor in tensors:
        groups[tensor.group] = groups.get(tensor.group, 0) + tensor.bytes
    return WeightBytes(
        parameters=sum(t.bytes for t in tensors if t.kind == "parameter"),
        buffers=sum(t.bytes for t in tensors if t.kind == "buffer"),
        allocator_rounded=allocated_bytes(t.bytes for t in [*tensors, *derived]),
        by_group=groups,
        derived=sum(t.bytes for t in derived),
    )
