"""Gemma 3 with its SigLIP image tower (vLLM model_executor/models/gemma3_mm.py, siglip.py).

Nothing of the model is left out. What an image takes while it is encoded is no weight and is not counted here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from analysis.arithmetic.errors import MalformedConfig
from analysis.arithmetic.fields import Fields
from analysis.arithmetic.layout import Array, Linear, Output, Part, Vector
from analysis.arithmetic.models import gemma
from analysis.arithmetic.models.decoder import linear
from analysis.arithmetic.parallel import Shard

SIGLIP_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 16,
}  # fmt: skip
"""What transformers' SiglipVisionConfig fills in."""


def parts(fields: Fields, shard: Shard) -> Iterator[Part]:
    text, vision = block(fields, "text_config"), block(fields, "vision_config")
    tower = Fields({**SIGLIP_DEFAULTS, **vision})
    width, hidden = tower.integer("hidden_size"), Fields(gemma.with_defaults(text)).integer("hidden_size")
    yield from siglip(tower, shard, "vision_tower.vision_model")
    yield Array("multi_modal_projector.mm_input_projection_weight", "vision", (width, hidden))
    yield Vector("multi_modal_projector.mm_soft_emb_norm.weight", "vision", width)
    for part in gemma.gemma3(Fields(text), shard):
        yield replace(part, name=f"language_model.{part.name}")


def block(fields: Fields, name: str) -> Mapping[str, Any]:
    found = fields.config.get(name)
    if not isinstance(found, Mapping):
        raise MalformedConfig(name, "is missing" if found is None else f"is {found!r}, not an object")
    return found


def siglip(fields: Fields, shard: Shard, prefix: str) -> Iterator[Part]:
    """Patches, positions, encoder layers with biases everywhere, a last norm; TP splits it as it splits text."""
    width, inner = fields.integer("hidden_size"), fields.integer("intermediate_size")
    patch = fields.integer("patch_size")
    positions = (fields.integer("image_size") // patch) ** 2
    heads = fields.integer("num_attention_heads")
    if width % heads:
        raise MalformedConfig("vision_config.hidden_size", f"is {width}, which {heads} heads do not divide")
    rank_width = shard.split(heads, "vision_config.num_attention_heads") * (width // heads)
    kernel = (width, fields.integer("num_channels"), patch, patch)
    yield Array(f"{prefix}.embeddings.patch_embedding.weight", "vision", kernel)
    yield Vector(f"{prefix}.embeddings.patch_embedding.bias", "vision", width)
    yield Array(f"{prefix}.embeddings.position_embedding.weight", "vision", (positions, width))
    yield Array(f"{prefix}.embeddings.position_ids", "vision", (1, positions), "buffer", "int64")
    stacked = tuple(Output(name, width, rank_width) for name in ("q_proj", "k_proj", "v_proj"))
    for layer in range(fields.integer("num_hidden_layers")):
        place = f"{prefix}.encoder.layers.{layer}"
        yield Linear(f"{place}.self_attn.qkv_proj", "vision", width, width, stacked, "column", True)
        yield linear(f"{place}.self_attn.out_proj", "vision", width, {"out_proj": width}, shard, "row", True)
        yield linear(f"{place}.mlp.fc1", "vision", width, {"fc1": inner}, shard, "column", True)
        yield linear(f"{place}.mlp.fc2", "vision", inner, {"fc2": width}, shard, "row", True)
        yield from norm(f"{place}.layer_norm1", width)
        yield from norm(f"{place}.layer_norm2", width)
    yield from norm(f"{prefix}.post_layernorm", width)


def norm(name: str, size: int) -> Iterator[Part]:
    yield Vector(f"{name}.weight", "vision", size)
    yield Vector(f"{name}.bias", "vision", size)
