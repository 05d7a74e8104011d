"""The model directory an engine reads: written for dummy weights, checked for a local or hub checkpoint."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config import BenchConfig
from bench.errors import BadRequest, first_line


@dataclass(frozen=True)
class ModelSource:
    """What a run serves. `argument` goes to `vllm serve`; `config` is the config.json the engine will read."""

    config: dict[str, Any]
    argument: str | None
    """None for dummy weights, whose directory is written by `write_model_dir` at launch."""
    file_bytes: int | None = None
    """Size of the checkpoint's weight files, bytes."""
    notes: tuple[str, ...] = ()


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of config.json with the language model's shape; multimodal models nest it."""
    return config.get("text_config") or config


def vocabulary_size(config: dict[str, Any]) -> int:
    """Token ids that a prompt may use."""
    size = text_config(config).get("vocab_size")
    if not isinstance(size, int) or size < 2:
        raise BadRequest(f"model.config.vocab_size={size}: config.json needs the model's vocabulary size")
    return size


def resolve(cfg: BenchConfig) -> ModelSource:
    """The model as this request names it, checked as far as can be without starting anything.

    Raises `BadRequest` for a checkpoint that is missing, unreadable or not the size its config.json implies.
    """
    if cfg.model.source == "config":
        return ModelSource(compose_config(cfg), None)
    source = _checkpoint(cfg)
    _check_format(cfg, source.config)
    return source


def _checkpoint(cfg: BenchConfig) -> ModelSource:
    if cfg.model.source == "path":
        # Absolute: the engine runs in a folder of its own.
        return _local(Path(str(cfg.model.path)).expanduser().absolute(), "model.path")
    return _hub(cfg)


def _check_format(cfg: BenchConfig, config: dict[str, Any]) -> None:
    """A checkpoint is served in the format it was written in: a row under another format's name would lie."""

    def form(block: Any) -> tuple[Any, Any]:
        block = block if isinstance(block, dict) else {}
        return block.get("quant_method"), block.get("bits")

    written = form(text_config(config).get("quantization_config") or config.get("quantization_config"))
    if cfg.quantization.engine_quantization is None and form(cfg.quantization.config) != written:
        method, bits = written
        stored = f"{method} weights" + (f" of {bits} bits" if bits else "") if method else "weights as they are"
        raise BadRequest(
            f"quantization={cfg.quantization.name}: the checkpoint stores {stored}; choose the quantization that it has"
        )


def compose_config(cfg: BenchConfig) -> dict[str, Any]:
    """config.json of a dummy model: the catalogue's shape, the quantization's block and dtype."""
    config = copy.deepcopy(dict(cfg.model.config))
    if not config.get("architectures"):
        raise BadRequest(
            f"model.config: {cfg.model.name} names no `architectures`; dummy weights need the model's whole config.json"
        )
    if cfg.quantization.dtype != "auto":
        config["torch_dtype"] = cfg.quantization.dtype
    config.pop("quantization_config", None)
    if cfg.quantization.config is not None:
        config["quantization_config"] = copy.deepcopy(cfg.quantization.config)
    return config


def write_model_dir(config: dict[str, Any], root: Path) -> Path:
    """Write config.json into a folder of `root` named by its content; returns the folder."""
    text = json.dumps(config, indent=1, sort_keys=True)
    folder = root / hashlib.sha256(text.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(text)
    return folder


def _local(folder: Path, field: str) -> ModelSource:
    from analysis.arithmetic import read_safetensors_header

    if not folder.is_dir():
        raise BadRequest(f"{field}={folder}: no such folder; give the checkpoint's directory")
    config = _read_config(folder, field)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BadRequest(f"{field}={folder}: no *.safetensors file in it; give a complete checkpoint")
    total = 0
    for file in files:
        try:
            read_safetensors_header(file)
            total += file.stat().st_size
        except (OSError, ValueError) as error:
            raise BadRequest(f"{field}={folder}: {file.name} cannot be read ({error}); copy it again") from error
    return ModelSource(config, str(folder), total, _check_size(config, total, field, str(folder)))


def _read_config(folder: Path, field: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise BadRequest(f"{field}={folder}: its config.json cannot be read ({error})") from error
    if not isinstance(config, dict) or not config.get("architectures"):
        raise BadRequest(f"{field}={folder}: its config.json names no `architectures`; is it a model's?")
    return config


def _hub(cfg: BenchConfig) -> ModelSource:
    """Size-check a hub checkpoint from the hub's own file list, before anything is downloaded."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = str(cfg.model.hub_id)
    try:
        path = hf_hub_download(name, "config.json", revision=cfg.model.revision)
        config = _read_config(Path(path).parent, "model.hub_id")
        info = HfApi().model_info(name, revision=cfg.model.revision, files_metadata=True)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise BadRequest(
            f"model.hub_id={name}: the hub gave no answer for it ({first_line(error)}); check the name, the network "
            "and your token, or use model.source=config for dummy weights or model.source=path for a local copy"
        ) from error
    sizes = [f.size or 0 for f in info.siblings or () if f.rfilename.endswith(".safetensors")]
    total = sum(sizes)
    return ModelSource(config, name, total, _check_size(config, total, "model.hub_id", name))


def _check_size(config: dict[str, Any], total_bytes: int, field: str, value: str) -> tuple[str, ...]:
    """Compare weight files with what config.json implies; a clear mismatch is refused, an unknown shape noted."""
    from analysis.arithmetic import UnknownArchitecture, checkpoint_bytes

    try:
        expected = checkpoint_bytes(config)
    except (UnknownArchitecture, ValueError, KeyError) as error:
        return (f"checkpoint size not checked: {error}",)
    error = total_bytes / expected - 1
    # Checkpoints add headers, tied copies or stored buffers (a few per cent); a missing shard or another
    # precision is at least a tenth.
    if abs(error) > 0.08:
        raise BadRequest(
            f"{field}={value}: its weight files hold {total_bytes / 2**30:.2f} GiB but its config.json implies "
            f"{expected / 2**30:.2f} GiB; the checkpoint is incomplete or not the one its config describes"
        )
    return ()
