"""What is served: a true architecture with dummy weights, a local checkpoint or a hub checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.config.checks import one_of, require

SOURCES = ("config", "path", "hub")


@dataclass
class ModelConfig:
    """One model of the catalogue (`conf/model`)."""

    name: str = "unnamed"
    hub_id: str | None = None
    """The hub's name of the checkpoint that has this shape."""
    family: str = ""
    source: str = "config"
    """`config`: dummy weights of the shape in `config`; `path`: checkpoint in `path`; `hub`: checkpoint `hub_id`."""
    path: str | None = None
    revision: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    """The model's config.json."""

    def __post_init__(self) -> None:
        one_of("model.source", self.source, SOURCES)
        require(
            self.source != "path" or bool(self.path), "model.path", self.path,
            "model.source=path needs the checkpoint's directory, as in model.path=/data/my-model",
        )  # fmt: skip
        require(
            self.source != "hub" or bool(self.hub_id), "model.hub_id", self.hub_id,
            "model.source=hub needs the checkpoint's hub name, as in model.hub_id=Qwen/Qwen2.5-7B-Instruct",
        )  # fmt: skip

    @property
    def load_format(self) -> str:
        """vLLM's --load-format: `dummy` allocates the true tensors without a file."""
        return "dummy" if self.source == "config" else "auto"


@dataclass
class QuantizationConfig:
    """How the weights are stored, and the dtype of everything that is not quantized (`conf/quantization`)."""

    name: str = "bf16"
    label: str = ""
    dtype: str = "bfloat16"
    """vLLM's --dtype: activations, embeddings and unquantized weights."""
    weight_bits: int = 16
    group_size: int | None = None
    engine_quantization: str | None = None
    """vLLM's --quantization, only where config.json alone does not say it."""
    config: dict[str, Any] | None = None
    """The `quantization_config` block of config.json; null for unquantized weights."""
    expects: str = ""
    """What to know about this format, for people."""

    def __post_init__(self) -> None:
        one_of("quantization.dtype", self.dtype, ("float32", "bfloat16", "float16", "auto"))
