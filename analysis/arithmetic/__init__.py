"""Exact arithmetic from config.json: the bytes of weights, of the KV cache and of a checkpoint. Standard
library only."""

from __future__ import annotations

from analysis.arithmetic.checkpoint import CheckpointHeader, checkpoint_bytes, read_safetensors_header
from analysis.arithmetic.errors import (
    ArithmeticRefusal,
    CorruptCheckpoint,
    MalformedConfig,
    UnknownArchitecture,
    UnsupportedPartition,
    UnsupportedQuantization,
)
from analysis.arithmetic.kv import (
    KVCapacity,
    kv_blocks_per_request,
    kv_bytes_per_block,
    kv_bytes_per_token,
    kv_capacity,
    kv_layers,
    kv_plan,
    sliding_window,
)
from analysis.arithmetic.kv_groups import KVGroup, KVLayer, KVPlan
from analysis.arithmetic.loaded import ExpectedLoad, LoadedCheck, check_loaded, expected_loaded_bytes
from analysis.arithmetic.models import REGISTRY, text_config
from analysis.arithmetic.tensor import Tensor
from analysis.arithmetic.weights import (
    DEFAULT_VLLM_VERSION,
    FROM_CONFIG,
    WeightBytes,
    weight_bytes,
    weight_tensors,
)

ARCHITECTURES = tuple(sorted(REGISTRY))

__all__ = [
    "ARCHITECTURES", "DEFAULT_VLLM_VERSION", "FROM_CONFIG",
    "ArithmeticRefusal", "CorruptCheckpoint", "MalformedConfig", "UnknownArchitecture",
    "UnsupportedPartition", "UnsupportedQuantization",
    "CheckpointHeader", "ExpectedLoad", "KVCapacity", "KVGroup", "KVLayer", "KVPlan", "LoadedCheck", "Tensor",
    "WeightBytes", "check_loaded", "checkpoint_bytes", "expected_loaded_bytes", "kv_blocks_per_request",
    "kv_bytes_per_block", "kv_bytes_per_token", "kv_capacity", "kv_layers", "kv_plan", "read_safetensors_header",
    "sliding_window", "text_config", "weight_bytes", "weight_tensors",
]  # fmt: skip
