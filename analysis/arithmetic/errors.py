"""What the arithmetic refuses, each in one sentence that names the field and the value."""

from __future__ import annotations

from collections.abc import Iterable


class ArithmeticRefusal(ValueError):
    """The byte counts cannot be computed for this request."""


class UnknownArchitecture(ArithmeticRefusal):
    """No tensor layout is registered for `architectures` of this config.json."""

    def __init__(self, named: object, known: Iterable[str]) -> None:
        self.named = named
        self.known = tuple(sorted(known))
        super().__init__(
            f"architecture {named!r} is not known; known are {', '.join(self.known)} "
            "(with vLLM installed, --oracle vllm asks vLLM's own classes about any other)"
        )


class MalformedConfig(ArithmeticRefusal):
    """A field of config.json is missing or cannot be."""

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        super().__init__(f"config.json: field {field!r} {problem}")


class UnsupportedQuantization(ArithmeticRefusal):
    """This quantization_config has no tensor layout here."""


class UnsupportedPartition(ArithmeticRefusal):
    """This tensor or pipeline parallel size does not divide the model; vLLM refuses it as well."""


class CorruptCheckpoint(ValueError):
    """A safetensors file is truncated or is not one."""
