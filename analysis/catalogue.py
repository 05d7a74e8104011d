"""The models and quantizations of `conf/`, read as plain YAML: no Hydra, no interpolation."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

CONF = Path(__file__).resolve().parent.parent / "conf"


class CatalogueError(ValueError):
    """A catalogue entry is missing or malformed; the message names the file and the field."""


@dataclass(frozen=True, slots=True)
class Model:
    """One file of `conf/model`. `config` is the content of the model's config.json, without dtype or
    quantization."""

    name: str
    hub_id: str | None
    family: str
    source: str
    path: str | None
    revision: str | None
    config: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Quantization:
    """One file of `conf/quantization`. `config` is the quantization_config block; None when nothing is
    quantized."""

    name: str
    label: str
    dtype: str
    weight_bits: int
    group_size: int | None
    engine_quantization: str | None
    config: dict[str, Any] | None = field(repr=False)
    expects: str = ""


Entry = TypeVar("Entry", Model, Quantization)


def model_names(conf: Path = CONF) -> list[str]:
    return _names(conf / "model")


def quantization_names(conf: Path = CONF) -> list[str]:
    return _names(conf / "quantization")


def load_model(name: str, conf: Path = CONF) -> Model:
    """Raises CatalogueError, naming the known entries, on an unknown name or a malformed file."""
    return _load(Model, conf / "model", name)


def load_quantization(name: str, conf: Path = CONF) -> Quantization:
    """Raises CatalogueError, naming the known entries, on an unknown name or a malformed file."""
    return _load(Quantization, conf / "quantization", name)


def compose(model: Model | Mapping[str, Any], quantization: Quantization | None) -> dict[str, Any]:
    """The config.json an engine is started with: the shape, its dtype, and the quantization block if there is
    one."""
    config = copy.deepcopy(dict(model.config if isinstance(model, Model) else model))
    if quantization is not None:
        config["torch_dtype"] = quantization.dtype
        config.pop("quantization_config", None)
        if quantization.config is not None:
            config["quantization_config"] = copy.deepcopy(quantization.config)
    return config


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _load(kind: type[Entry], folder: Path, name: str) -> Entry:
    import yaml  # type: ignore[import-untyped]  # here, so that importing the package costs nothing

    path = folder / f"{name}.yaml"
    if name not in _names(folder):
        raise CatalogueError(
            f"{folder.name} {name!r} is not in the catalogue; known are {', '.join(_names(folder))}"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as broken:
        raise CatalogueError(f"{path.name} is not YAML: {broken}") from None
    if not isinstance(content, dict):
        raise CatalogueError(f"{path.name} holds {type(content).__name__}, not keys and values")
    known = {one.name for one in fields(kind)}
    if unknown := sorted(set(content) - known):
        raise CatalogueError(
            f"{path.name}: field {unknown[0]!r} is not known; known are {', '.join(sorted(known))}"
        )
    if missing := sorted(known - set(content) - {"expects"}):
        raise CatalogueError(f"{path.name}: field {missing[0]!r} is missing")
    if content["name"] != name:
        raise CatalogueError(
            f"{path.name}: name is {content['name']!r}; it must be the file's name, {name!r}"
        )
    return kind(**content)
