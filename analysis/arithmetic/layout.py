"""The parts a model is made of, before anyone decided how their weights are stored.

A model file (`models/`) yields these; a quantization scheme (`schemes/`) turns each into the tensors that one
rank of the engine holds, or into those of a checkpoint on disk. Sizes are element counts of the whole model;
a rank's share follows from `parallel`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Parallel = Literal["column", "row", "replicated"]


@dataclass(frozen=True, slots=True)
class Output:
    """One of the matrices that a fused linear layer stacks: its checkpoint name, its rows, its rows on a
    rank."""

    name: str
    size: int
    rank_size: int


@dataclass(frozen=True, slots=True)
class Linear:
    """y = W x (+ b), with `outputs` stacked in one tensor as the engine holds them (qkv_proj, gate_up_proj).

    `column` splits the output over TP ranks, `row` the input, `replicated` neither. `rank_input` is the input
    size on a rank.
    """

    name: str
    group: str
    input_size: int
    rank_input: int
    outputs: tuple[Output, ...]
    parallel: Parallel
    bias: bool = False
    quantizable: bool = True
    """Whether a quantization may cover it: the routers of most mixtures never are."""
    stored: tuple[str, ...] = ()
    """Names in the checkpoint where it stacks the matrices itself; empty for one name per matrix."""

    @property
    def rank_output(self) -> int:
        return sum(output.rank_size for output in self.outputs)

    @property
    def output_size(self) -> int:
        return sum(output.size for output in self.outputs)

    @property
    def parent(self) -> str:
        """The module that holds this layer: `model.layers.0.self_attn` of
        `model.layers.0.self_attn.qkv_proj`."""
        return self.name.rpartition(".")[0]

    def checkpoint_names(self) -> tuple[str, ...]:
        """The layer's names in the checkpoint, one per matrix it stores."""
        return tuple(f"{self.parent}.{name}" for name in self.stored or [output.name for output in self.outputs])

    def checkpoint_rows(self) -> tuple[int, ...]:
        """Rows of each of `checkpoint_names`."""
        return (self.output_size,) if self.stored else tuple(output.size for output in self.outputs)


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture's expert MLPs, held as two stacks: w13 = [experts, 2 x intermediate, hidden], w2 = its
    transpose shape.

    `name` is the module of the stacks in the engine, `checkpoint` the prefix of one expert's linear layers on
    disk.
    """

    name: str
    checkpoint: str
    count: int
    hidden_size: int
    intermediate_size: int
    rank_intermediate: int
    group: str = "experts"
    biases: bool = False
    stored: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    """Names of an expert's matrices in the checkpoint."""
    stacked: tuple[str, str] | None = None
    """Names of the two stacks where the checkpoint holds all experts of a layer in one tensor each."""

    def checkpoint_names(self) -> tuple[str, ...]:
        if self.stacked:
            return tuple(f"{self.checkpoint}.{name}" for name in self.stacked)
        return tuple(f"{self.checkpoint}.0.{name}" for name in self.stored)


@dataclass(frozen=True, slots=True)
class Embedding:
    """A [vocabulary, hidden] table, split over TP ranks by rows; `rank_rows` includes the padding."""

    name: str
    group: str
    rows: int
    rank_rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Vector:
    """One value per channel, replicated on every rank: the weight of a norm. `dtype` None is the model's."""

    name: str
    group: str
    size: int
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Array:
    """Anything else that no format quantizes; `shape` is that of a rank. `dtype` None is the model's."""

    name: str
    group: str
    shape: tuple[int, ...]
    kind: Literal["parameter", "buffer"] = "parameter"
    dtype: str | None = None
    whole: tuple[int, ...] | None = None
    """Shape in the checkpoint where TP splits it."""


CacheKind = Literal["full", "sliding", "mla"]


@dataclass(frozen=True, slots=True)
class Attention:
    """The attention operator itself: it holds the scales of its KV cache, and the cache of one layer.

    `kv_elements` are the cached numbers per token on a rank: keys and values of its heads, or MLA's one latent
    vector. `window` is how many tokens a sliding layer looks back.
    """

    name: str
    kv_elements: int
    kind: CacheKind = "full"
    window: int | None = None
    derived: tuple[tuple[int, ...], ...] = ()
    """Shapes that loading adds in the model's dtype: MLA keeps its expansion again, transposed for decoding."""


@dataclass(frozen=True, slots=True)
class RopeCache:
    """The cos/sin table of the rotary embedding, one for all layers of a rank that rotate alike. `dtype` None is
    the model's."""

    name: str
    positions: int
    rotary_dim: int
    buffer: str = "cos_sin_cache"
    dtype: str | None = None
    cuda_dtype: str | None = None
    """Where a CUDA kernel wants another one."""


Part = Linear | Experts | Embedding | Vector | Array | Attention | RopeCache
