"""From what a request calls its model to the config.json that vLLM would read."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from analysis import catalogue
from analysis.predict import hub
from analysis.predict.command import merged
from analysis.predict.features import text_config
from analysis.predict.request import Request, RequestError


@dataclass(frozen=True, slots=True)
class Model:
    """A resolved model. `key` is equal for equal configs, and is all that counts in comparisons.

    `source` says for people where the shape is from; `notes` are warnings about it.
    """

    key: str
    config: Mapping[str, Any] = field(compare=False, repr=False)
    source: str = field(compare=False, default="")
    notes: tuple[str, ...] = field(compare=False, default=())


def resolve(request: Request) -> Model:
    """The model of a request, quantized and overridden as it asks. Raises RequestError."""
    if request.config is not None:
        found = _inline(request.config)
    else:
        assert request.model is not None
        found = _named(request.model, request.revision)
    if request.hf_overrides:
        found = _keyed(merged(dict(found.config), dict(request.hf_overrides)), found.source, found.notes)
    if request.quantization:
        return _quantized(found, request.quantization.lower())
    return found


@lru_cache(maxsize=4096)
def unquantized(model: Model) -> Model:
    """The same shape without its quantization, which no KV cache depends on: one key for all its formats."""
    if "quantization_config" not in model.config:
        return model
    return _keyed({key: value for key, value in model.config.items() if key != "quantization_config"}, model.source)


def _keyed(config: Mapping[str, Any], source: str, notes: tuple[str, ...] = ()) -> Model:
    return Model(json.dumps(config, sort_keys=True), config, source, notes)


def _inline(config: Mapping[str, Any]) -> Model:
    try:
        return _keyed(config, "inline config")
    except TypeError as odd:
        raise RequestError(f"config is no JSON object: {odd}") from None


@lru_cache(maxsize=4096)
def _named(name: str, revision: str | None) -> Model:
    path = Path(name).expanduser()
    if max(map(len, name.split("/"))) > 255 or len(name) > 4095:
        raise RequestError(f"model {name[:40]!r}... is longer than any name or path can be")
    if path.is_dir() or name.endswith(".json") or name.startswith(("/", "./", "../", "~")):
        return _local(path, name)
    if name in _catalogue_names():
        return _entry(name, f"catalogue entry {name}")
    by_id = _by_hub_id()
    if entry := by_id.get(name.lower()):
        return _entry(entry, f"catalogue entry {entry}")
    base, wanted = _split_quantization(name)
    entry = by_id.get(base.lower()) or _by_base(base)
    if entry is not None and wanted is None:
        return _entry(
            entry, f"catalogue entry {entry}",
            (f"{name} is taken to have the shape of {_hub_ids()[entry]}; its longest request may differ",),
        )  # fmt: skip
    if entry is not None and wanted is not None:
        quantization = _quantization(wanted)
        composed = catalogue.compose(catalogue.load_model(entry), quantization)
        note = (
            f"{name} is taken to be {_hub_ids()[entry]} in {quantization.label}, by its name; "
            "give its config.json to be sure"
        )
        return _keyed(composed, f"catalogue entries {entry} and {wanted}", (note,))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise RequestError(f"model {name!r} is not in the catalogue{_close(name)}")
    try:
        where, config = hub.config_json(name, revision)
    except hub.HubRefusal as refusal:
        raise RequestError(f"model {name!r} is not in the catalogue{_close(name)} and {refusal}") from None
    return _keyed(config, f"{where} {name}")


@cache
def _hub_ids() -> dict[str, str]:
    """Catalogue entry to hub id, without a YAML parser: predictions must start in a blink."""
    found = {}
    for path in sorted((catalogue.CONF / "model").glob("*.yaml")):
        if match := re.search(r"^hub_id:\s*['\"]?([^\s'\"#]+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            found[path.stem] = path.stem if match[1] in ("null", "~") else match[1]
    return found


@cache
def _catalogue_names() -> frozenset[str]:
    return frozenset(catalogue.model_names())


@cache
def _quantization_names() -> tuple[str, ...]:
    return tuple(catalogue.quantization_names())


@cache
def _quantization(name: str) -> catalogue.Quantization:
    try:
        return catalogue.load_quantization(name)
    except catalogue.CatalogueError as broken:
        raise RequestError(str(broken)) from None


@cache
def _by_hub_id() -> dict[str, str]:
    return {hub_id.lower(): entry for entry, hub_id in _hub_ids().items()}


PLAIN_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""Catalogue entries that are a dtype and no quantization."""


_NATIVE: dict[str, dict[str, Any]] = {
    "GptOssForCausalLM": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
        ],
    }
}  # fmt: skip
"""quantization_config of models that are published in no other format; the catalogue holds bare shapes."""


def _entry(name: str, source: str, notes: tuple[str, ...] = ()) -> Model:
    try:
        config = catalogue.load_model(name).config
        native = _NATIVE.get(str((config.get("architectures") or [""])[0]))
        if native is None:
            return _keyed(config, source, notes)
        method = native["quant_method"]
        return _keyed({**config, "quantization_config": native}, f"{source}, {method} as published", notes)
    except catalogue.CatalogueError as broken:
        raise RequestError(str(broken)) from None


_QUANTIZED_NAMES: tuple[tuple[str, str], ...] = (
    (r"-gptq-int8$", "gptq-int8"),
    (r"-gptq(-int4|-4bit.*)?$", "gptq"),
    (r"-awq(-int4)?$", "awq"),
    (r"-quantized\.w4a16$|-w4a16(-g128)?$", "w4a16"),
    (r"-quantized\.w8a8$|-int8-w8a8$|-w8a8$|-w8a8-int8$", "int8-w8a8"),
    (r"-fp8-dynamic$", "fp8-dynamic"),
)
"""How checkpoints of the big publishers (Qwen, TheBloke, RedHatAI, neuralmagic) say their format in their name."""
_FP8 = re.compile(r"-fp8$", re.IGNORECASE)


def _split_quantization(name: str) -> tuple[str, str | None]:
    """`Qwen/Qwen2.5-7B-Instruct-AWQ` is (`Qwen/Qwen2.5-7B-Instruct`, `awq`)."""
    for pattern, quantization in _QUANTIZED_NAMES:
        if match := re.search(pattern, name, re.IGNORECASE):
            return name[: match.start()], quantization
    if match := _FP8.search(name):
        # Qwen and DeepSeek publish FP8 in blocks, others per tensor.
        blocks = name.lower().startswith(("qwen/", "deepseek-ai/"))
        return name[: match.start()], "fp8-block" if blocks else "fp8"
    return name, None


def _short(hub_id: str) -> str:
    """The model itself, whoever publishes it and however it was tuned."""
    last = hub_id.rpartition("/")[2].lower().removeprefix("meta-")
    return re.sub(r"-(instruct|chat|it|hf|base)(?=-|$)", "", last)


def _by_base(name: str) -> str | None:
    wanted = name.rpartition("/")[2].lower().removeprefix("meta-")
    shorter = None
    for entry, hub_id in _hub_ids().items():
        if hub_id.rpartition("/")[2].lower().removeprefix("meta-") == wanted:
            return entry
        if _short(hub_id) == _short(name):
            shorter = shorter or entry
    return shorter


def _local(path: Path, name: str) -> Model:
    file = path / "config.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        where = f"{name} holds no config.json" if path.is_dir() else f"there is no {name}"
        raise RequestError(f"model {where}") from None
    except OSError as unreadable:
        raise RequestError(f"model {name} cannot be read: {unreadable.strerror}") from None
    except ValueError as broken:
        raise RequestError(f"model {name}: {file.name} is not JSON: {broken}") from None
    if not isinstance(content, dict):
        raise RequestError(f"model {name}: {file.name} holds {type(content).__name__}, not an object")
    return _keyed(content, str(file))


def _close(name: str) -> str:
    known = {key.lower(): key for key in (*_hub_ids(), *_hub_ids().values())}
    lowered = name.lower()
    near = difflib.get_close_matches(lowered, known, n=3, cutoff=0.6)
    near += [key for key in known if key not in near and lowered.rpartition("/")[2] in key][: 3 - len(near)]
    return f" (close: {', '.join(known[key] for key in near)})" if near else ""


_SAME_METHOD = {
    "awq_marlin": "awq", "auto_awq": "awq", "gptq_marlin": "gptq", "auto_gptq": "gptq", "compressed_tensors":
    "compressed-tensors",
}  # fmt: skip

@lru_cache(maxsize=4096)
def _quantized(model: Model, wanted: str) -> Model:
    """The model in the quantization asked for: a catalogue entry, or a value of vLLM's --quantization.

    On a config that is quantized already, the option must name its method, as in vLLM; the config's own block counts.
    """
    method = _SAME_METHOD.get(wanted, wanted)
    block = model.config.get("quantization_config") or text_config(model.config).get("quantization_config")
    known = _quantization_names()
    if block and wanted != "none":
        named = block.get("quant_method") if isinstance(block, Mapping) else None
        entry = _quantization(wanted) if wanted in known else None
        asked = entry.config.get("quant_method") if entry is not None and entry.config else method
        if _SAME_METHOD.get(str(named), named) == asked:
            return model
        raise RequestError(
            f"quantization is {wanted!r}, but the model's own quantization_config says {named!r}; vLLM refuses that"
        )
    if wanted == "none" or wanted in PLAIN_DTYPES:
        config = {key: value for key, value in model.config.items() if key != "quantization_config"}
        if wanted != "none":
            config = catalogue.compose(config, _quantization(wanted))
        notes = (*model.notes, "the quantization_config of the model is left out") if block else model.notes
        return _keyed(config, model.source, notes)
    if wanted in known:
        composed = catalogue.compose(model.config, _quantization(wanted))
        for name in ("torch_dtype", "dtype"):  # online quantization keeps the model's own dtype
            if model.config.get(name):
                composed["torch_dtype"] = model.config[name]
        return _keyed(composed, f"{model.source}, quantized as {wanted}", model.notes)
    if method in known:
        return _quantized(model, method)
    raise RequestError(
        f"quantization {wanted!r} is not known for a model without a quantization_config; "
        f"known are none, {', '.join(known)}"
    )
