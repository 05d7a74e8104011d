"""Which layers a quantization_config covers, and with which format."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis.arithmetic.errors import UnsupportedQuantization
from analysis.arithmetic.layout import Attention, Experts, Linear
from analysis.arithmetic.schemes.base import PLAIN, Format, Target
from analysis.arithmetic.schemes.eight_bit import EightBit, Granularity
from analysis.arithmetic.schemes.four_bit_float import Mxfp4
from analysis.arithmetic.schemes.packed import Awq, Gptq, PackQuantized
from analysis.arithmetic.tensor import Tensor

Layer = Linear | Experts
_REQUIRED = object()


class Quantization:
    """Nothing is quantized. The methods below answer per layer."""

    method: str | None = None

    def of(self, layer: Layer) -> Format:
        """The format of this layer's weights."""
        return PLAIN

    def attention(self, part: Attention, target: Target) -> Iterator[Tensor]:
        """What the method registers on the attention operator: the scales of the KV cache, until they are
        consumed."""
        return iter(())


class _Block(Quantization):
    """Reads one quantization_config block with errors that name it."""

    def __init__(self, block: Mapping[str, Any]) -> None:
        self.block = block

    def value(self, *names: str, default: Any = _REQUIRED) -> Any:
        for name in names:
            if self.block.get(name) is not None:
                return self.block[name]
        if default is _REQUIRED:
            raise UnsupportedQuantization(
                f"quantization_config of method {self.method}: {names[0]!r} is missing"
            )
        return default

    def refuse(self, names: str, value: object, known: str) -> UnsupportedQuantization:
        return UnsupportedQuantization(
            f"quantization_config of method {self.method}: {names} = {value!r} is not known; known: {known}"
        )


def _listed(names: Sequence[str], entries: Sequence[str]) -> bool:
    """Whether every part of a fused layer contains one of the entries, as vLLM's substring rule has it."""
    return all(any(entry in name for entry in entries) for name in names)


class GptqQuantization(_Block):
    """`modules_in_block_to_quantize` names the layers; without it, a real checkpoint's headers do, and they
    hold every linear layer of the decoder but a mixture's router. `dynamic` excepts layers ("-:") or changes
    their bits ("+:")."""

    method = "gptq"

    def __init__(self, block: Mapping[str, Any]) -> None:
        super().__init__(block)
        named = self.value("modules_in_block_to_quantize", default=[])
        self.named = [
            entry for item in named for entry in (item if isinstance(item, list | tuple) else [item])
        ]
        self.dynamic: Mapping[str, Any] = self.value("dynamic", default={})
        if self.value("lm_head", default=False):
            raise self.refuse("lm_head", True, "false (an lm_head in 16 bits)")

    def of(self, layer: Layer) -> Format:
        if isinstance(layer, Linear):
            covered = (
                _listed(layer.checkpoint_names(), self.named)
                if self.named
                else layer.parallel != "replicated" or layer.group == "attention"
            )
            if not covered:
                return PLAIN
        settings = dict(self.block)
        for pattern, override in self.dynamic.items():
            sign, _, body = pattern.partition(":") if pattern[:2] in ("+:", "-:") else ("+", ":", pattern)
            name = layer.checkpoint if isinstance(layer, Experts) else layer.name
            if re.match(body, name):
                if sign == "-":
                    return PLAIN
                settings.update(override)
                break
        bits, group, symmetric = settings.get("bits"), settings.get("group_size"), settings.get("sym", True)
        if bits not in (4, 8):
            raise self.refuse("bits", bits, "4, 8")
        if not isinstance(group, int) or not (group == -1 or group > 0):
            raise self.refuse("group_size", group, "-1 or a positive number")
        return Gptq(bits, group, bool(symmetric))


class AwqQuantization(_Block):
    """Every linear layer of the decoder, a mixture's router included, but `modules_to_not_convert`."""

    method = "awq"

    def __init__(self, block: Mapping[str, Any]) -> None:
        super().__init__(block)
        bits = self.value("bits", "w_bit")
        if bits != 4:
            raise self.refuse("bits", bits, "4")
        group = self.value("group_size", "q_group_size")
        if not isinstance(group, int) or not (group == -1 or group > 0):
            raise self.refuse("group_size", group, "-1 or a positive number")
        if self.value("lm_head", default=False):
            raise self.refuse("lm_head", True, "false (an lm_head in 16 bits)")
        self.format = Awq(bits, group, bool(self.value("zero_point", default=True)))
        self.skipped = list(self.value("modules_to_not_convert", default=[]))

    def of(self, layer: Layer) -> Format:
        names = (layer.checkpoint,) if isinstance(layer, Experts) else layer.checkpoint_names()
        return PLAIN if _listed(names, self.skipped) or _listed((layer.name,), self.skipped) else self.format


class Fp8Quantization(_Block):
    """The `fp8` method: per tensor, or per block where `weight_block_size` says so. Layers are excepted by
    full name."""

    method = "fp8"

    def __init__(self, block: Mapping[str, Any]) -> None:
        super().__init__(block)
        scheme = self.value("activation_scheme", default="dynamic")
        if scheme not in ("dynamic", "static"):
            raise self.refuse("activation_scheme", scheme, "dynamic, static")
        blocks = self.value("weight_block_size", default=None)
        if blocks is None:
            self.format = EightBit("float8_e4m3fn", "tensor", static_input=scheme == "static")
        else:
            if len(blocks) != 2 or not all(isinstance(size, int) and size > 0 for size in blocks):
                raise self.refuse("weight_block_size", blocks, "two positive numbers")
            self.format = EightBit("float8_e4m3fn", "block", "weight_scale_inv", block=(blocks[0], blocks[1]))
        self.skipped = set(self.value("ignored_layers", "modules_to_not_convert", default=[]))

    def of(self, layer: Layer) -> Format:
        names = (layer.checkpoint,) if isinstance(layer, Experts) else layer.checkpoint_names()
        excepted = layer.name in self.skipped or all(name in self.skipped for name in names)
        return PLAIN if excepted else self.format

    def attention(self, part: Attention, target: Target) -> Iterator[Tensor]:
        for name in ("q_scale", "k_scale", "v_scale", "prob_scale"):
            yield Tensor(f"{part.name}.{name}", (), target.dtype, "parameter", "kv_scales")


class CompressedTensors(_Block):
    """Groups of layers, each with a weight and an activation scheme; `ignore` excepts layers by name or `re:`
    pattern."""

    method = "compressed-tensors"

    def __init__(self, block: Mapping[str, Any]) -> None:
        super().__init__(block)
        self.groups = list(self.value("config_groups").values())
        self.ignored = list(self.value("ignore", default=[]))
        self.formats = [self._format(group) for group in self.groups]

    def of(self, layer: Layer) -> Format:
        names = layer.checkpoint_names()
        if all(_matches(name, self.ignored) for name in names):
            return PLAIN
        for group, made in zip(self.groups, self.formats, strict=True):
            targets = group.get("targets") or []
            if "Linear" in targets or all(_matches(name, targets) for name in names):
                return made
        return PLAIN

    def attention(self, part: Attention, target: Target) -> Iterator[Tensor]:
        for name in ("k_scale", "v_scale", "q_scale"):
            yield Tensor(f"{part.name}.{name}", (1,), "float32", "parameter", "kv_scales")
        for name in ("k_zero_point", "v_zero_point", "q_zero_point"):
            yield Tensor(f"{part.name}.{name}", (1,), target.dtype, "parameter", "kv_scales")

    def _format(self, group: Mapping[str, Any]) -> Format:
        weights, inputs = group.get("weights") or {}, group.get("input_activations")
        bits, kind, strategy = weights.get("num_bits"), weights.get("type", "int"), weights.get("strategy")
        packing = group.get("format") or self.value("format", default="")
        symmetric = bool(weights.get("symmetric", True))
        if packing == "pack-quantized" and kind == "int" and inputs is None and bits in (4, 8):
            if strategy not in ("group", "channel"):
                raise self.refuse("weights.strategy", strategy, "group, channel")
            return PackQuantized(bits, weights.get("group_size") or -1, symmetric)
        if bits == 8 and inputs is not None and inputs.get("num_bits") == 8 and inputs.get("type") == kind:
            granularity = _granularity(strategy)
            if granularity and kind in ("int", "float") and not (kind == "int" and granularity == "block"):
                return EightBit(
                    "int8" if kind == "int" else "float8_e4m3fn",
                    granularity,
                    static_input=not inputs.get("dynamic"),
                    symmetric_input=bool(inputs.get("symmetric", True)),
                    block=self._block_structure(weights.get("block_structure") or [128, 128]),
                )
        raise UnsupportedQuantization(
            f"compressed-tensors group with format {packing!r}, {bits}-bit {kind} weights per {strategy} and "
            f"{'no' if inputs is None else inputs.get('num_bits')} activation bits has no layout here; "
            "known are pack-quantized int4/int8 (group, channel), int-quantized W8A8 and float-quantized W8A8"
        )

    def _block_structure(self, blocks: Any) -> tuple[int, int]:
        """`[128, 128]`, or `128x128` as older exports write it."""
        sizes = blocks.split("x") if isinstance(blocks, str) else blocks
        if len(sizes) != 2 or not all(str(size).isdigit() and int(size) > 0 for size in sizes):
            raise self.refuse("weights.block_structure", blocks, "two positive numbers")
        return int(sizes[0]), int(sizes[1])


class Mxfp4Quantization(_Block):
    """The experts of gpt-oss, nothing else."""

    method = "mxfp4"

    def of(self, layer: Layer) -> Format:
        return Mxfp4() if isinstance(layer, Experts) else PLAIN


def _granularity(strategy: object) -> Granularity | None:
    known: dict[object, Granularity] = {"tensor": "tensor", "channel": "channel", "block": "block"}
    return known.get(strategy)


def _matches(name: str, entries: Sequence[str]) -> bool:
    return any(
        re.match(entry.removeprefix("re:"), name) is not None if entry.startswith("re:") else entry == name
        for entry in entries
    )


METHODS: dict[str, type[_Block]] = {
    "gptq": GptqQuantization,
    "gptq_marlin": GptqQuantization,
    "auto_gptq": GptqQuantization,
    "awq": AwqQuantization,
    "awq_marlin": AwqQuantization,
    "auto_awq": AwqQuantization,
    "fp8": Fp8Quantization,
    "compressed-tensors": CompressedTensors,
    "mxfp4": Mxfp4Quantization,
    "gpt_oss_mxfp4": Mxfp4Quantization,
}


def quantization(block: Mapping[str, Any] | None) -> Quantization:
    """The reader of this quantization_config. Raises UnsupportedQuantization, naming the method or the
    field."""
    if not block:
        return Quantization()
    method = block.get("quant_method")
    if method not in METHODS:
        raise UnsupportedQuantization(
            f"quant_method {method!r} is not known; known are {', '.join(sorted(METHODS))}"
        )
    return METHODS[method](block)
